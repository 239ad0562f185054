"""The gate's report for people: what was judged, what was tried, what was found, and the texts that failed."""

from __future__ import annotations

from typing import Any

from karma_electric.gate.results import CheckResult, Evidence, GateResult

_LONGEST_QUOTE = 600
_MOST_FAILURES_QUOTED = 12  # of one check; the evidence holds all
_NUMBERS_ONLY = ("positions", "fired", "finish", "log_probabilities", "antijudge_version")


def gate_report(result: GateResult) -> str:
    """Markdown."""
    engine = result.engine
    claimed = ", as the server claims" if engine.claimed else ""
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
        lines += [f"At most {result.subset} items a check were run; a subset's verdict is never pass.", ""]
    if figured := [check for check in result.checks if check.figures]:
        lines += ["| check | figure | value |", "|---|---|---|"]
        lines += [
            f"| {check.name} | {name.replace('_', ' ')} | {value:.3f} |"
            for check in figured
            for name, value in check.figures.items()
        ]
        lines += [""]
    lines += ["## What did not pass", ""]
    for check in result.checks:
        lines += _failures(check.name, [row for row in result.evidence if row.check == check.name and not row.passed])
    if not any(True for _ in result.failures()):
        lines += ["Nothing.", ""]
    return "\n".join(lines)


def _row(check: CheckResult) -> str:
    interval = f"{check.interval.low:.1%} to {check.interval.high:.1%}"
    verdict = (check.verdict or "reported") + (f" ({check.reason})" if check.reason else "")
    cells = (
        check.name,
        f"{check.passed} of {check.n}",
        f"{check.passed / check.n:.1%}",
        interval,
        check.bar,
        verdict,
        check.power,
    )
    return f"| {' | '.join(cells)} |"


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
