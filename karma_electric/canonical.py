"""One spelling for JSON, so that equal values are equal bytes; and a bounded reader for JSON lines."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from karma_electric.errors import InputError

MAX_LINE_BYTES = 16 * 1024 * 1024


def canonical_json(value: object) -> str:
    """Compact JSON with sorted keys, UTF-8 text and no NaN. Equal values give equal text."""
    return _ENCODER.encode(value)


def readable_json(value: object) -> str:
    """Indented JSON in the key order given, ending in a newline: for files that people read and git diffs."""
    return json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def rounded(value: float, digits: int = 6) -> float:
    """`value` to `digits` significant decimals, so that a metric file does not record the last bits of a sum."""
    if not math.isfinite(value):
        raise ValueError(f"a metric must be finite, found {value}")
    return float(f"{value:.{digits}g}")


def read_json_lines(path: Path, *, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) for each non-blank line of a UTF-8 file.

    Raises InputError, naming file and line, for a missing file, a line that is too long, text that is not UTF-8 or not
    JSON, a duplicated key, a number that is not finite, or a value that is not an object.
    """
    try:
        stream = path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a file of JSON lines") from error
    with stream:
        number = 0
        while line := stream.readline(max_line_bytes + 1):
            number += 1
            if len(line) > max_line_bytes:
                raise InputError(f"{path}:{number}: the line is longer than {max_line_bytes} bytes; split the row")
            if line.strip():
                yield number, parse_json_object(line, f"{path}:{number}")


def write_json_lines(rows: Iterable[object]) -> bytes:
    """The rows as canonical JSON, one a line, UTF-8."""
    return "".join(canonical_json(row) + "\n" for row in rows).encode("utf-8")


def read_json_object(path: Path, *, max_bytes: int = MAX_LINE_BYTES) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError, as `parse_json_object` does, and for a file that is too large."""
    try:
        with path.open("rb") as stream:
            data = stream.read(max_bytes + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a JSON file") from error
    if len(data) > max_bytes:
        raise InputError(f"{path}: larger than {max_bytes} bytes; expected a small JSON file")
    return parse_json_object(data, str(path))


def parse_json_object(data: bytes, where: str) -> dict[str, Any]:
    """The object in UTF-8 JSON; `where` starts every error.

    Raises InputError as `parse_json` does, and for a value that is not an object.
    """
    value = parse_json(data, where, expected="one JSON object")
    if not isinstance(value, dict):
        raise InputError(f"{where}: found a {type(value).__name__}, expected a JSON object")
    return value


def parse_json(data: bytes, where: str, *, expected: str = "JSON") -> Any:
    """The value in UTF-8 JSON; `where` starts every error.

    Raises InputError for text that is not UTF-8 or not JSON, a duplicated key, and a number that is not finite.
    """
    try:
        return _DECODER.decode(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 at byte {error.start}; save the file as UTF-8") from error
    except RecursionError as error:
        raise InputError(f"{where}: nested too deeply") from error
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error}); expected {expected}") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        repeated = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {repeated[:80]!r} stands twice")
    return result


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits[:80]} is too large for a number")
    return value


# Made once: json.dumps and json.loads with options make a new one for every call.
_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
_DECODER = json.JSONDecoder(object_pairs_hook=_without_duplicates, parse_constant=_no_constant, parse_float=_finite)
