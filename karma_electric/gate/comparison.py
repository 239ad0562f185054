"""Two gate runs on the items that both asked: did a check change by more than chance explains?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from karma_electric.canonical import canonical_json
from karma_electric.errors import InputError
from karma_electric.gate.evidence_file import EvidenceFile, read_evidence
from karma_electric.gate.intervals import (
    BOOTSTRAP_RESAMPLES,
    BOOTSTRAP_SEED,
    mean_interval,
    paired_change_interval,
)

# Checks that judge a mean: the finding of an item that is compared, in points.
_MEANS = {"paraphrase": "std", "cross_language": "difference"}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One check: the change of the rate of items passed, or of a mean in points, after minus before."""

    check: str
    items: int
    change: float
    low: float
    high: float
    p_value: float  # corrected over the checks (Holm, Scandinavian Journal of Statistics 6, 1979)
    finding: str

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


def compare_evidence(before: Path, after: Path) -> list[Comparison]:
    """Compare check by check, at the confidence of the run after.

    Rates: McNemar's exact test. Means: a paired permutation test and a paired bootstrap. Raises InputError when no
    check has an item that both runs asked in the same words. A change of conversations that were not judged by the same
    judge model, or lack of one, is no finding about the model that answered.
    """
    first, second = read_evidence(before), read_evidence(after)
    same_judge = (first.judge_model, first.prompts_sha256.get("judge")) == (
        second.judge_model,
        second.prompts_sha256.get("judge"),
    )
    confidence = second.params.confidence
    found = []
    for check in dict.fromkeys(row["check"] for row in second.rows):
        pairs = _shared(first, second, check)
        if pairs:
            measured = _means(pairs, _MEANS[check], confidence) if check in _MEANS else _rates(pairs, confidence)
            by_others = not same_judge and any("judge" in row["answers"] for pair in pairs for row in pair)
            found.append((check, len(pairs), measured, by_others))
    if not found:
        raise InputError(f"{before} and {after}: asked no item in the same words; nothing can be compared")
    _, corrected, _, _ = multipletests([measured[3] for _, _, measured, _ in found], method="holm")
    return [
        Comparison(
            check,
            n,
            change,
            low,
            high,
            float(p),
            "another judge model" if by_others else _finding(check, change, float(p), confidence),
        )
        for (check, n, (change, low, high, _), by_others), p in zip(found, corrected, strict=True)
    ]


Pair = tuple[dict[str, Any], dict[str, Any]]
Measured = tuple[float, float, float, float]  # change, low, high, p-value


def _shared(first: EvidenceFile, second: EvidenceFile, check: str) -> list[Pair]:
    """Rows of one check about the same item: the same id and the same words."""
    known = {row["id"]: row for row in first.rows if row["check"] == check}
    rows = [row for row in second.rows if row["check"] == check and row["id"] in known]
    return [
        (known[row["id"]], row)
        for row in rows
        if canonical_json(known[row["id"]]["item"]) == canonical_json(row["item"])
    ]


def _rates(pairs: Sequence[Pair], confidence: float) -> Measured:
    before, after = [row["passed"] for row, _ in pairs], [row["passed"] for _, row in pairs]
    interval = paired_change_interval(before, after, confidence=confidence)
    table = [
        [sum(a == x and b == y for a, b in zip(before, after, strict=True)) for y in (True, False)]
        for x in (True, False)
    ]
    p_value = float(mcnemar(table, exact=True).pvalue) if before != after else 1.0
    return (sum(after) - sum(before)) / len(pairs), interval.low, interval.high, p_value


def _means(pairs: Sequence[Pair], name: str, confidence: float) -> Measured:
    changes = np.asarray([row["findings"][name] - old["findings"][name] for old, row in pairs], dtype=np.float64)
    mean = float(changes.mean())
    if not changes.any():
        return 0.0, 0.0, 0.0, 1.0
    random = np.random.default_rng(BOOTSTRAP_SEED)
    test = stats.permutation_test(
        (changes,), np.mean, permutation_type="samples", n_resamples=BOOTSTRAP_RESAMPLES, rng=random
    )
    interval = mean_interval(changes.tolist(), confidence=confidence)
    return mean, interval.low, interval.high, float(test.pvalue)


def _finding(check: str, change: float, p_value: float, confidence: float) -> str:
    if p_value >= 1 - confidence:
        return "no change shown"
    better = change < 0 if check in _MEANS else change > 0  # a smaller spread or difference is better
    return "better" if better else "worse"
