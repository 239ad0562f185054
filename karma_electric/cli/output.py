"""What commands print: data on stdout, tables and colour for a person at a terminal, plain text or JSON otherwise."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any


def is_for_a_person() -> bool:
    """Whether a terminal shows what is printed."""
    return sys.stdout.isatty()


def print_json(value: Any) -> None:
    """One JSON value on one line, non-ASCII letters as they are."""
    print(json.dumps(value, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "") -> None:
    """A table at a terminal; otherwise the rows without a head, their cells between tabs."""
    cells = [["" if value is None else str(value) for value in row] for row in rows]
    if not is_for_a_person():
        for row in cells:
            print("\t".join(" ".join(cell.split()) for cell in row))
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", title_style="bold")
    for index, name in enumerate(columns):
        numbers = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        table.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    _console().print(table)


def print_text(text: str, *, style: str = "") -> None:
    """A line or more of text, in a style (such as `bold`, `red`, `dim`) at a terminal."""
    if not is_for_a_person():
        print(text)
        return
    from rich.text import Text

    _console().print(Text(text, style=style))


def print_marked(text: str, matches: Sequence[tuple[int, int]], *, indent: str = "") -> None:
    """A text whose `matches`, (start, end), stand out: in colour, or between brackets where there is none."""
    if is_for_a_person():
        from rich.text import Text

        shown = Text(indent + text)
        for start, end in matches:
            shown.stylize("bold yellow", start + len(indent), end + len(indent))
        _console().print(shown)
        return
    for start, end in reversed(matches):
        text = f"{text[:start]}[{text[start:end]}]{text[end:]}"
    print(indent + text)


def say(text: str) -> None:
    """Words for a person, about the data: on stderr."""
    print(text, file=sys.stderr, flush=True)


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False)
