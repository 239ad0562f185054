"""The evidence of a gate run as a file: a header that says what was judged, then a row for every item.

A file that lost a line, or gained one, is an IntegrityError: the header holds the number of rows and their hash.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from karma_electric.canonical import canonical_json, read_json_lines, write_json_lines
from karma_electric.engines.protocol import EngineIdentity
from karma_electric.errors import InputError, IntegrityError
from karma_electric.gate.params import GateParams
from karma_electric.gate.results import CLAIMS, GateResult, judged
from karma_electric.parameters import parse_parameters
from karma_electric.wording import counted

FORM = "karma-gate-evidence-1"
_WHERE = ("base_url", "served_model", "judge_url", "judge_model")  # they say where something answered, not what
_NOT_IN_THE_FILE = {
    "engine": "llama.cpp",
    **dict.fromkeys(_WHERE),
}  # the engine, in evidence from before there were others


@dataclass(frozen=True, slots=True)
class EvidenceFile:
    """What an evidence file holds."""

    identity: EngineIdentity
    params: GateParams
    prompts_sha256: dict[str, str]
    rows: list[dict[str, Any]]
    not_asked: dict[str, str] = field(default_factory=dict)  # checks without rows, and why
    judge_model: EngineIdentity | None = None  # the model that judged the conversations, too


def evidence_bytes(result: GateResult, params: GateParams, prompts_sha256: dict[str, str]) -> bytes:
    """The file: canonical JSON lines."""
    rows = [row.as_row() for row in result.evidence]
    header = {
        "form": FORM,
        "judged": judged(result.engine),
        "params": params.model_dump(mode="json", exclude=set(_WHERE)),
        "not_asked": result.not_asked,
        "prompts_sha256": prompts_sha256,
        "rows": len(rows),
        "rows_sha256": _rows_sha256(rows),
    }
    if result.judge_model is not None:
        header["judge_model"] = judged(result.judge_model)
    return write_json_lines([header, *rows])


def read_evidence(path: Path) -> EvidenceFile:
    """Raises InputError for a file of another kind, IntegrityError for one that is not whole."""
    lines = read_json_lines(path)
    try:
        _, header = next(lines)
    except StopIteration:
        raise IntegrityError(f"{path}: holds nothing; run the gate again") from None
    if header.get("form") != FORM:
        raise InputError(f"{path}:1: form is {header.get('form')!r}, expected {FORM!r}; is this a gate's evidence?")
    rows = [row for _, row in lines]
    if len(rows) != header.get("rows"):
        raise IntegrityError(
            f"{path}: holds {counted(len(rows), 'row')}, expected {header.get('rows')}; run the gate again"
        )
    if _rows_sha256(rows) != header.get("rows_sha256"):
        raise IntegrityError(f"{path}: a row is not the one that was written; run the gate again")
    try:
        identity = _identity(header["judged"])
        judge = _identity(header["judge_model"]) if "judge_model" in header else None
        asked = ("persona", "evaluator", *(("judge",) if judge is not None else ()))
        prompts = {name: str(header["prompts_sha256"][name]) for name in asked}
        not_asked = {str(name): str(reason) for name, reason in header.get("not_asked", {}).items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path}:1: does not say what was judged ({error}); run the gate again") from error
    told = header.get("params")
    params = _NOT_IN_THE_FILE | told if isinstance(told, dict) else told
    parsed = parse_parameters(params, GateParams, where=f"{path}:1: params")
    return EvidenceFile(identity, parsed, prompts, rows, not_asked, judge)


def _identity(found: dict[str, Any]) -> EngineIdentity:
    claimed, vouched = {word: flags for flags, word in CLAIMS.items()}[found["claimed"]]
    return EngineIdentity(
        engine=found["engine"],
        build=found["build"],
        weights_sha256=found["weights_sha256"],
        axis_sha256=None if found["axis_sha256"] == "none" else found["axis_sha256"],
        claimed=claimed,
        vouched=vouched,
    )


def _rows_sha256(rows: list[dict[str, Any]]) -> str:
    return hashlib.sha256("".join(canonical_json(row) + "\n" for row in rows).encode("utf-8")).hexdigest()
