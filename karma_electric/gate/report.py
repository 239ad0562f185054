"""The gate's report for people: what was judged, what was tried, what was found, and the texts that failed."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from karma_electric.gate.results import (
    CheckResult,
    Evidence,
    GateResult,
    claim,
    dimension_scores,
    paraphrase_rows,
)
from karma_electric.wording import counted

_LONGEST_QUOTE = 600
_SPREAD_STEP = 0.5  # points
_MOST_FAILURES_QUOTED = 12  # of one check; the evidence holds all
_CLAIMED = {
    "no": "",
    "yes": ", which a server claims and nobody could check",
    "yes, of the release's own files": ", which a server claims; they are the hashes of the release's files",
}
_NUMBERS_ONLY = ("positions", "fired", "finish", "log_probabilities", "antijudge_version")


def gate_report(result: GateResult) -> str:
    """Markdown."""
    engine = result.engine
    claimed = _CLAIMED[claim(engine)]
    lines = [
        "# Gate report",
        "",
        f"Verdict: **{result.verdict}**.",
        "",
        f"Judged by {engine.engine} {engine.build}{claimed}:",
        "",
        f"- weights sha256 `{engine.weights_sha256}`",
        f"- axis sha256 `{engine.axis_sha256 or 'none'}`",
        "",
        *_judge_model(result),
        "A check passes when its whole confidence interval lies on the right side of its bar, fails when the interval",
        "lies on the wrong side, and is inconclusive in between: more items would be needed. A bar of `all` allows no",
        "failure, and asks for enough items that none of them failing says something. Unreadable and missing answers",
        "count as failed.",
        "",
        "| check | passed | rate | interval | bar | verdict | what so many items can show |",
        "|---|---|---|---|---|---|---|",
        *(_row(check) for check in result.checks),
        "",
    ]
    if result.subset is not None:
        lines += [
            f"This run asked at most {counted(result.subset, 'item')} a check; a subset's verdict is never pass.",
            "",
        ]
    if figured := [check for check in result.checks if check.figures]:
        lines += ["| check | figure | value |", "|---|---|---|"]
        lines += [
            f"| {check.name} | {name.replace('_', ' ')} | {value:.3f} |"
            for check in figured
            for name, value in check.figures.items()
        ]
        lines += [""]
    lines += [*_tried(result), *_scores(result.evidence), *_spread(result.evidence), "## What did not pass", ""]
    for check in result.checks:
        lines += _failures(check.name, [row for row in result.evidence if row.check == check.name and not row.passed])
    if not any(True for _ in result.failures()):
        lines += ["Nothing.", ""]
    return "\n".join(lines)


def _judge_model(result: GateResult) -> list[str]:
    """Who else judged the conversations, and what that changed."""
    judge = result.judge_model
    if judge is None:
        return []
    verdicts = [row.findings for row in result.evidence if "judge_verdict" in row.findings]
    changed = sum(found["verdict"] != found["rules_verdict"] for found in verdicts)
    return [
        f"A judge model read the conversations, too: {judge.build}{_CLAIMED[claim(judge)]}, weights sha256",
        f"`{judge.weights_sha256}`. A fail of the rules stands; where the rules are unclear, the judge's verdict",
        f"counts; otherwise the worse of both. It changed the verdict of {changed} of "
        f"{counted(len(verdicts), 'conversation')}.",
        "",
    ]


def _row(check: CheckResult) -> str:
    interval = f"{check.interval.low:.1%} to {check.interval.high:.1%}"
    verdict = (check.verdict or "reported") + (f" ({check.reason})" if check.reason else "")
    cells = (
        check.name,
        f"{check.passed} of {check.n}",
        f"{check.passed / check.n:.1%}" if check.n else "none",
        interval if check.n else "none",
        check.bar,
        verdict,
        check.power,
    )
    return f"| {' | '.join(cells)} |"


def _tried(result: GateResult) -> list[str]:
    """Every check's items by category: how many passed of how many."""
    lines = ["## What was tried", "", "| check | passed, by category |", "|---|---|"]
    for check in result.checks:
        counts: dict[str, list[bool]] = {}
        for row in result.evidence:
            if row.check == check.name:
                counts.setdefault(row.category, []).append(row.passed)
        cells = [f"{category} {sum(passed)} of {len(passed)}" for category, passed in counts.items()]
        lines.append(f"| {check.name} | {', '.join(cells) or check.reason} |")
    return [*lines, ""]


def _scores(evidence: Sequence[Evidence]) -> list[str]:
    """Means of the dimensions, of the better and the worse answers of the pairs."""
    given: dict[str, dict[str, list[int]]] = {}
    for dimension, side, score in dimension_scores(evidence):
        given.setdefault(dimension, {"better": [], "worse": []})[side].append(score)
    if not given:
        return []
    lines = ["## Scores of the pairs", "", "| dimension | better answer | worse answer |", "|---|---|---|"]
    for dimension, sides in given.items():
        means = (f"{statistics.fmean(scores):.2f}" if scores else "none" for scores in sides.values())
        lines.append(f"| {dimension} | {' | '.join(means)} |")
    return [*lines, ""]


def _spread(evidence: Sequence[Evidence]) -> list[str]:
    """How many prompts have which spread over their wordings."""
    deviations = [row["std"] for row in paraphrase_rows(evidence)]
    if not deviations:
        return []
    bins = Counter(int(deviation / _SPREAD_STEP) for deviation in deviations)
    lines = ["## Spread of one answer's scores over wordings", "", "| std, points | prompts |", "|---|---|"]
    for place in sorted(bins):
        low = place * _SPREAD_STEP
        lines.append(f"| {low:g} to below {low + _SPREAD_STEP:g} | {bins[place]} |")
    return [*lines, ""]


def _failures(check: str, rows: list[Evidence]) -> list[str]:
    lines: list[str] = []
    for row in rows[:_MOST_FAILURES_QUOTED]:
        lines += [f"### {check}: {row.id} ({row.category})", ""]
        for part in (row.item, row.answers, row.findings):
            for key, value in sorted(part.items()):  # as the evidence holds them, so that it gives this report again
                if key not in ("id", "suite", "category", "fail_signals", "pass_signals", *_NUMBERS_ONLY):
                    lines += _quotes(key, value)
        lines += [""]
    if len(rows) > _MOST_FAILURES_QUOTED:
        lines += [f"And {len(rows) - _MOST_FAILURES_QUOTED} more of {check}, in the evidence.", ""]
    return lines


def _quotes(key: str, value: Any) -> list[str]:
    if value in ([], {}, "", None):
        return []
    if isinstance(value, dict):
        return [line for name, inner in sorted(value.items()) for line in _quotes(f"{key} {name}", inner)]
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return [f"- {key}: {_quoted(each)}" for each in value]
    if isinstance(value, list) and all(isinstance(each, dict) for each in value):
        return [line for each in value for line in _quotes(key, ", ".join(f"{n} {v}" for n, v in sorted(each.items())))]
    return [f"- {key}: {_quoted(str(value))}"]


def _quoted(text: str) -> str:
    """On one line, shortened, and as code, so that a model's Markdown stays text; signs that don't print as U+FFFD."""
    flat = "".join(sign if sign.isprintable() else "\ufffd" for sign in " ".join(text.split())).replace("`", "'")
    if not flat:
        return "(empty)"
    return f"`{flat if len(flat) <= _LONGEST_QUOTE else flat[:_LONGEST_QUOTE] + ' ...'}`"
