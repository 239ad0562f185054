"""What the conformance kit found, as tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from karma_electric.errors import InputError
from karma_electric.integrity import write_text

if TYPE_CHECKING:
    from karma_electric.capping.conformance import Result
    from karma_electric.capping.conformance_run import Conformance, Parity

BEGIN: Final = "<!-- written by karma axis conform: begin -->"
END: Final = "<!-- written by karma axis conform: end -->"


def write_tables(document: Path, model: str, found: Conformance) -> None:
    """Put both tables between the markers of `document`. Raises InputError where it has none."""
    before, after = read_around(document)
    tables = f"Model: `{model}`.\n\n{results_table(found.results)}\n{parity_table(found.parity)}"
    write_text(document, f"{before}{BEGIN}\n\n{tables}\n{END}{after}")


def read_around(document: Path) -> tuple[str, str]:
    """What stands before and after the markers. Raises InputError for a document without them."""
    try:
        text = document.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{document}: cannot be read ({error}); expected a document with markers") from error
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"{document}: has no line {BEGIN!r} with {END!r} after it; add them")
    return before, after


def results_table(results: Sequence[Result]) -> str:
    """In Markdown."""
    lines = [
        "| path | case | from the oracle | bound | uncapped | cosine | effect of the cap | same token | verdict |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {each.path} | {each.case} | {each.difference:.1e} | {'-' if each.bound is None else f'{each.bound:g}'} | "
        f"{each.uncapped_difference:.1e} | {each.cosine:.9f} | {each.effect:.2f} | "
        f"{each.agreement:.0%} of {each.compared:.0%} | {'; '.join(each.faults) or 'conforms'} |"
        for each in results
    ]
    return "\n".join(lines) + "\n"


def parity_table(parity: Sequence[Parity]) -> str:
    """In Markdown."""
    lines = ["| weights | cap | max abs | cosine | greedy agreement |", "|---|---|---|---|---|"]
    lines += [
        f"| {each.weights} | {each.case} | {each.difference:.1e} | {each.cosine:.9f} | {each.agreement:.0%} |"
        for each in parity
    ]
    return "\n".join(lines) + "\n"
