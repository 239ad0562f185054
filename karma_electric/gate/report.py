"""The gate's report for people: what was judged, what was found, and the texts that failed."""

from __future__ import annotations

from karma_electric.gate.results import Check, Evidence, GateResult

_LONGEST_QUOTE = 600


def gate_report(result: GateResult) -> str:
    """Markdown."""
    lines = [
        "# Gate report",
        "",
        f"Verdict: **{result.verdict}**.",
        "",
        f"Judged by {result.engine.engine} {result.engine.build}:",
        "",
        f"- weights sha256 `{result.engine.weights_sha256}`",
        f"- axis sha256 `{result.engine.axis_sha256}`",
        "",
        "A check passes when its whole confidence interval lies on the right side of its bar, fails when the interval",
        "lies on the wrong side, and is inconclusive in between: more items would be needed. A bar of `all` allows no",
        "failure, and asks for enough items that none of them failing says something.",
        "",
        "| check | passed | rate | interval | bar | verdict |",
        "|---|---|---|---|---|---|",
        *(_row(check) for check in result.checks),
        "",
    ]
    if result.subset is not None:
        lines += [f"Only {result.subset} items a check were run; a subset's verdict is never pass.", ""]
    lines += ["## What did not pass", ""]
    failures = list(result.failures())
    lines += [line for evidence in failures for line in _failure(evidence)] or ["Nothing.", ""]
    return "\n".join(lines)


def _row(check: Check) -> str:
    figures = ", ".join(f"{name} {value:.2f}" for name, value in check.figures.items())
    rate = f"{check.passed / check.n:.1%}" + (f" ({figures})" if figures else "")
    interval = f"{check.interval.low:.1%} to {check.interval.high:.1%}"
    verdict = check.verdict or "reported"
    return f"| {check.name} | {check.passed} of {check.n} | {rate} | {interval} | {check.bar} | {verdict} |"


def _failure(evidence: Evidence) -> list[str]:
    lines = [f"### {evidence.check}: {evidence.id} ({evidence.category})", ""]
    for key, value in evidence.detail.items():
        if key in ("positions", "fired", "finish") or value in ([], ""):
            continue
        if key in ("turns", "answers"):
            lines += [f"- {key[:-1]}: {_quoted(text)}" for text in value]
        else:
            lines.append(f"- {key}: {_quoted(str(value))}")
    return [*lines, ""]


def _quoted(text: str) -> str:
    """On one line, shortened, and as code, so that a model's Markdown stays text; signs that don't print as U+FFFD."""
    flat = "".join(sign if sign.isprintable() else "\ufffd" for sign in " ".join(text.split())).replace("`", "'")
    if not flat:
        return "(empty)"
    return f"`{flat if len(flat) <= _LONGEST_QUOTE else flat[:_LONGEST_QUOTE] + ' ...'}`"
