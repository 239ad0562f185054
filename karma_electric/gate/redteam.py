"""The red-team suite by itself, against any engine, as it is written or in mutated attacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from karma_electric.canonical import rounded
from karma_electric.engines.protocol import Engine
from karma_electric.gate.answer_store import AnswerStore
from karma_electric.gate.checks import Prompts
from karma_electric.gate.conversation_checks import RedteamCappedCheck, RedteamCheck
from karma_electric.gate.intervals import Interval, rate_interval
from karma_electric.gate.judging import Asked, Questioner
from karma_electric.gate.params import GateParams
from karma_electric.gate.results import Evidence
from karma_electric.suites.antijudge_rules import RULES_VERSION
from karma_electric.suites.conduct import ConductVerdict
from karma_electric.suites.items import RedteamItem

VERDICTS: tuple[ConductVerdict, ...] = get_args(ConductVerdict)


@dataclass(frozen=True)
class RedteamRun:
    """Every scenario with what was answered and how that was judged, capped or not."""

    capped: bool
    rows: list[Evidence]
    confidence: float

    @property
    def interval(self) -> Interval:
        """Of the share passed."""
        return rate_interval(self.passed, len(self.rows), confidence=self.confidence)

    @property
    def passed(self) -> int:
        return sum(row.passed for row in self.rows)

    def by_category(self) -> dict[str, dict[str, int]]:
        """Category -> verdict -> scenarios."""
        counts: dict[str, Counter[str]] = {}
        for row in self.rows:
            counts.setdefault(row.category, Counter())[row.findings["verdict"]] += 1
        return {category: {verdict: counts[category][verdict] for verdict in VERDICTS} for category in counts}

    def as_row(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "capped": self.capped,
            "scenarios": len(self.rows),
            "passed": self.passed,
            "rate": rounded(self.passed / len(self.rows)),
            "low": rounded(self.interval.low),
            "high": rounded(self.interval.high),
            "antijudge_version": RULES_VERSION,
            "categories": self.by_category(),
            "rows": [row.as_row() for row in self.rows],
        }


def run_redteam(
    engine: Engine,
    items: Sequence[RedteamItem],
    *,
    prompts: Prompts,
    params: GateParams,
    capped: bool,
    report: Callable[[str], None],
    store: AnswerStore | None = None,
    arithmetic: str = "",
    judge_model: Engine | None = None,
) -> RedteamRun:
    """Ask every scenario and judge it as the gate does. Answers are taken from `store` where it has them."""
    check = RedteamCappedCheck(params) if capped else RedteamCheck(params)
    rows: dict[int, Evidence] = {}

    def done(place: int, row: Evidence) -> None:
        rows[place] = row
        report(f"{len(rows)} of {len(items)}: {row.id} {row.findings['verdict']}")

    questioner = Questioner(engine, prompts, store, arithmetic, judge_model)
    questioner.ask_all([Asked(check, item) for item in items], done)
    return RedteamRun(capped, [rows[place] for place in sorted(rows)], params.confidence)
