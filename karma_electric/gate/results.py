"""What a gate run found: evidence for every item, a line for every check, and the files that were judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from karma_electric.canonical import rounded
from karma_electric.engines.protocol import EngineIdentity
from karma_electric.gate.intervals import Interval
from karma_electric.gate.verdict import Verdict, overall_verdict
from karma_electric.suites.evaluation import DIMENSIONS


@dataclass(frozen=True)
class Evidence:
    """One judged item. `answers` is what the model said, word for word; `findings` is what followed from it by the
    rules, which can be applied again without the model."""

    check: str
    id: str
    category: str
    passed: bool
    item: dict[str, Any]
    answers: dict[str, Any]
    findings: dict[str, Any]

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class CheckResult:
    """One line of the gate: how many items, how many passed, how sure, and the verdict against its bar."""

    name: str
    bar: str
    n: int
    passed: int
    interval: Interval  # of the rate passed / n
    verdict: Verdict | None  # None: reported, not judged
    power: str  # what this number of items can show
    figures: dict[str, float] = field(default_factory=dict)  # of checks that judge a mean or a difference
    reason: str = ""  # of a verdict that the rate does not explain

    def as_metrics(self) -> dict[str, Any]:
        metrics: dict[str, Any] = {"n": self.n, "passed": self.passed}
        if self.n:
            metrics["rate"] = rounded(self.passed / self.n)
            metrics |= {"low": rounded(self.interval.low), "high": rounded(self.interval.high)}
        metrics |= {name: rounded(value) for name, value in self.figures.items()}
        return metrics | {"verdict": self.verdict or "reported"}


@dataclass(frozen=True)
class GateResult:
    """The whole gate. A run on a subset of the items can fail, but never pass."""

    checks: list[CheckResult]
    evidence: list[Evidence]
    engine: EngineIdentity
    subset: int | None
    not_asked: dict[str, str] = field(default_factory=dict)  # checks that this engine could not be asked, and why
    judge_model: EngineIdentity | None = None  # the model that judged the conversations, too; None: the rules alone

    @property
    def verdict(self) -> Verdict:
        verdict = overall_verdict(check.verdict for check in self.checks if check.verdict is not None)
        return "inconclusive" if self.subset is not None and verdict == "pass" else verdict

    def as_metrics(self, *, evidence_sha256: str) -> dict[str, Any]:
        """For `dvc metrics diff`: nested by check, numbers and words only."""
        return {
            "verdict": self.verdict,
            "items_per_check": self.subset if self.subset is not None else "all",
            "judged": judged(self.engine) | {"evidence_sha256": evidence_sha256},
            **({} if self.judge_model is None else {"judge_model": judged(self.judge_model)}),
            "checks": {check.name: check.as_metrics() for check in self.checks},
        }

    def failures(self) -> Iterable[Evidence]:
        return (evidence for evidence in self.evidence if not evidence.passed)


def judged(identity: EngineIdentity) -> dict[str, Any]:
    """What was judged, or what judged, as the metrics and the evidence name it."""
    return {
        "engine": identity.engine,
        "build": identity.build,
        "weights_sha256": identity.weights_sha256,
        "axis_sha256": identity.axis_sha256 or "none",
        "claimed": claim(identity),
    }


def claim(identity: EngineIdentity) -> str:
    """How much of the identity is a claim: `no`, `yes`, or one that names the release's own files."""
    return CLAIMS[identity.claimed, identity.vouched]


CLAIMS = {(False, False): "no", (True, False): "yes", (True, True): "yes, of the release's own files"}


def rate_rows(checks: Sequence[CheckResult]) -> list[dict[str, Any]]:
    """Plot rows: each check's rate and interval."""
    return [
        {
            "check": check.name,
            "rate": rounded(check.passed / check.n),
            "low": rounded(check.interval.low),
            "high": rounded(check.interval.high),
            "verdict": check.verdict or "reported",
        }
        for check in checks
        if check.n
    ]


def dimension_scores(evidence: Sequence[Evidence]) -> Iterable[tuple[str, str, int]]:
    """(dimension, better or worse, score) of every rating of the pairs that there is."""
    for row in evidence:
        for side in ("better", "worse"):
            if isinstance(rating := row.answers.get(side), dict) and rating["overall"] is not None:
                scores = rating["dimensions"] | {"Overall": rating["overall"]}
                for dimension in (*DIMENSIONS, "Overall"):  # not in the order of the evidence: it is of sorted JSON
                    if dimension in scores:
                        yield dimension, side, scores[dimension]


def dimension_rows(evidence: Sequence[Evidence]) -> list[dict[str, Any]]:
    """Plot rows: how often each score was given, for every dimension, to better and to worse answers of the pairs."""
    counts = Counter(dimension_scores(evidence))
    return [
        {"dimension": dimension, "answer": side, "score": score, "count": count}
        for (dimension, side, score), count in sorted(counts.items())
    ]


def paraphrase_rows(evidence: Sequence[Evidence]) -> list[dict[str, Any]]:
    """Plot rows: the spread of each prompt's scores over its wordings, in points."""
    return [{"id": row.id, "std": row.findings["std"]} for row in evidence if row.check == "paraphrase"]
