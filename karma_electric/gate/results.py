"""What a gate run found: checks, evidence rows, and the files that were judged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from karma_electric.canonical import rounded
from karma_electric.engines.protocol import EngineIdentity
from karma_electric.gate.intervals import Interval
from karma_electric.gate.verdict import Verdict, overall_verdict


@dataclass(frozen=True)
class Evidence:
    """One judged item: what was asked, what was answered, and what followed."""

    check: str
    id: str
    category: str
    passed: bool
    detail: dict[str, Any]

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Check:
    """One line of the gate: how many items, how many passed, how sure, and the verdict against its bar."""

    name: str
    bar: str
    n: int
    passed: int
    interval: Interval
    verdict: Verdict | None  # None: reported, not judged
    figures: dict[str, float] = field(default_factory=dict)  # of checks that judge a mean, in points

    def as_metrics(self) -> dict[str, Any]:
        metrics: dict[str, Any] = {
            "n": self.n,
            "passed": self.passed,
            "rate": rounded(self.passed / self.n),
            "low": rounded(self.interval.low),
            "high": rounded(self.interval.high),
        }
        metrics |= {name: rounded(value) for name, value in self.figures.items()}
        return metrics | {"verdict": self.verdict or "reported"}


@dataclass(frozen=True)
class GateResult:
    """The whole gate. A run on a subset of the items can fail, but never pass."""

    checks: list[Check]
    evidence: list[Evidence]
    engine: EngineIdentity
    subset: int | None

    @property
    def verdict(self) -> Verdict:
        verdict = overall_verdict(check.verdict for check in self.checks if check.verdict is not None)
        return "inconclusive" if self.subset is not None and verdict == "pass" else verdict

    def as_metrics(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "items_per_check": self.subset if self.subset is not None else "all",
            "judged": {
                "engine": self.engine.engine,
                "build": self.engine.build,
                "weights_sha256": self.engine.weights_sha256,
                "axis_sha256": self.engine.axis_sha256,
            },
            "checks": {check.name: check.as_metrics() for check in self.checks},
        }

    def rate_rows(self) -> list[dict[str, Any]]:
        """Plot rows: each check's rate and interval."""
        return [
            {
                "check": check.name,
                "rate": rounded(check.passed / check.n),
                "low": rounded(check.interval.low),
                "high": rounded(check.interval.high),
                "verdict": check.verdict or "reported",
            }
            for check in self.checks
        ]

    def failures(self) -> Iterable[Evidence]:
        return (evidence for evidence in self.evidence if not evidence.passed)
