"""Whether a release is what was signed: signature, every hash, headers, card, and the gate's verdict on these bytes.

It needs the release's folder and nothing else: a stranger who has downloaded the model repo can run it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma_electric.canonical import read_json_object
from karma_electric.errors import InputError, IntegrityError
from karma_electric.gguf_files.reader import read_header
from karma_electric.integrity import MANIFEST_NAME
from karma_electric.release.card import CARD_NAME, PROVENANCE_NAME, verify_card
from karma_electric.release.digests import paths_below, sha256_files
from karma_electric.release.judging_code import JUDGING_CODE, judging_code_sha256
from karma_electric.release.manifest import read_release_manifest
from karma_electric.release.signature import PUBLIC_KEY_NAME, Identity, verify_signature
from karma_electric.release.signature_file import IGNORED, SIGNATURE_NAME

GATE_NAME, REPORT_NAME, EVIDENCE_NAME = "gate.json", "gate.md", "evidence/gate.jsonl"
REQUIRED = (CARD_NAME, GATE_NAME, REPORT_NAME, EVIDENCE_NAME, "reproduce.json")
FINDING_TOLERANCE = 1e-6  # of a number in an item's finding: another CPU's logarithms differ in the last bit
_VERDICTS = ("pass", "fail", "inconclusive")


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found to hold. `signed_by` is None for a folder without a signature; it says whose key it was.
    `report_made_again`: gate.md is, byte by byte, what the evidence gives; its numbers are those of gate.json, too.
    """

    name: str
    version: str
    verdict: str
    files: int
    total_bytes: int
    signed_by: str | None
    numbers_in_card: int
    judged_again: bool
    report_made_again: bool


def verify_release(
    folder: Path,
    *,
    signer: Path | Identity | None = None,
    unsigned: bool = False,
    gate: bool = False,
    report: Callable[[str], None],
) -> Verification:
    """Check a release. `signer` is a public key, or who signed without one; None takes the key that lies in the folder.
    `unsigned` accepts a release without a signature; `gate` judges again from the evidence.

    Raises IntegrityError at the first thing that does not hold, InputError when there is no release in `folder`.
    """
    if not (folder / MANIFEST_NAME).is_file():
        raise InputError(f"{folder / MANIFEST_NAME}: missing; expected the folder of a release")
    manifest = read_release_manifest(folder)
    total = sum(entry["size"] for entry in manifest["files"])
    report(f"{folder}: checking {len(manifest['files'])} files, {total / 1e6:.1f} MB")
    digests = _digests(folder, signer=signer, unsigned=unsigned)
    _check_files(folder, manifest, digests)
    for entry in manifest["files"]:
        _check_header(folder / entry["path"])
    found = read_json_object(folder / GATE_NAME)
    _check_judged(folder, manifest, found, digests)
    card = verify_card(folder)
    report_made_again = False
    if gate:
        report(f"{folder}: judging again from the evidence")
        report_made_again = _judge_again(folder, found)
    identity = manifest["identity"]
    whose = None if unsigned else PUBLIC_KEY_NAME if signer is None else str(signer)
    return Verification(
        name=str(identity["name"]),
        version=str(identity["version"]),
        verdict=found["verdict"],
        files=len(manifest["files"]),
        total_bytes=total,
        signed_by=whose,
        numbers_in_card=len(card.numbers),
        judged_again=gate,
        report_made_again=report_made_again,
    )


def _digests(folder: Path, *, signer: Path | Identity | None, unsigned: bool) -> dict[str, str]:
    """Path -> SHA-256 of every file on disk, as signed, or as hashed here when no signature is asked for."""
    if not unsigned:
        return verify_signature(folder, signer=signer)
    if signer is not None:
        raise InputError("--unsigned asks for no signature, and a key or an identity for one; leave out one of them")
    return sha256_files(folder, paths_below(folder, ignored=IGNORED))


def _check_files(folder: Path, manifest: dict[str, Any], digests: dict[str, str]) -> None:
    advice = "fetch the release again"
    promised = {entry["path"]: entry for entry in manifest["files"]}
    required = [*REQUIRED, *([] if SIGNATURE_NAME not in _names(folder) else [PROVENANCE_NAME])]
    for name in required:
        if name not in promised:
            raise IntegrityError(f"{folder / MANIFEST_NAME}: names no {name}, which every release has; {advice}")
    for name in sorted({*promised, *digests} - {MANIFEST_NAME}):
        if name not in promised:
            raise IntegrityError(f"{folder / name}: not in {MANIFEST_NAME}; remove it, or {advice}")
        if name not in digests:
            raise IntegrityError(f"{folder / name}: missing, though {MANIFEST_NAME} names it; {advice}")
        entry, size = promised[name], (folder / name).stat().st_size
        if (entry["sha256"], entry["size"]) != (digests[name], size):
            raise IntegrityError(
                f"{folder / name}: sha256 is {digests[name][:12]}… ({size} bytes), {MANIFEST_NAME} says "
                f"{entry['sha256'][:12]}… ({entry['size']} bytes); {advice}"
            )
    if MANIFEST_NAME not in digests:
        raise IntegrityError(f"{folder / MANIFEST_NAME}: not among the signed files; {advice}")


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _check_header(path: Path) -> None:
    """Raises IntegrityError for a GGUF or safetensors file whose header is not sound, by bounded readers."""
    if path.suffix == ".gguf":
        read_header(path)
    elif path.suffix == ".safetensors":
        from karma_electric.safetensors_files import open_safetensors

        open_safetensors(path)


def _check_judged(folder: Path, manifest: dict[str, Any], gate: dict[str, Any], digests: dict[str, str]) -> None:
    """The gate must have judged the files of this release, and the identity must name files that are there."""
    identity, judged = manifest["identity"], gate.get("judged")
    if gate.get("verdict") not in _VERDICTS or not isinstance(judged, dict):
        raise IntegrityError(f"{folder / GATE_NAME}: holds no verdict of a gate; fetch the release again")
    names = {
        "weights_sha256": identity.get("judged"),
        "axis_sha256": identity.get("axis"),
        "evidence_sha256": EVIDENCE_NAME,
    }
    for key, name in names.items():
        if name not in digests or judged.get(key) != digests[name]:
            raise IntegrityError(
                f"{folder / GATE_NAME}: judged.{key} is {str(judged.get(key))[:12]}…, which is not {name} of this "
                "release; fetch the release again"
            )


def _judge_again(folder: Path, gate: dict[str, Any]) -> bool:
    """Verdict, metrics and every item's finding must be what the rules make of the kept answers.

    So must the report, byte by byte, where the code that wrote it is that of today. Another version may have put the
    same numbers in other words: the result says whether the report is the one that is written today.
    """
    from karma_electric.canonical import canonical_json
    from karma_electric.gate.evidence_file import read_evidence
    from karma_electric.gate.report import gate_report
    from karma_electric.gate.run import check_same_verdict, replay_gate
    from karma_electric.release.comparison import text_difference

    evidence = folder / EVIDENCE_NAME
    advice = "fetch the release again"
    try:
        kept, run = read_evidence(evidence).rows, replay_gate(evidence)
        check_same_verdict(gate, run)
        for row, found in zip(kept, run.result.evidence, strict=True):
            again = canonical_json(found.as_row())
            if text_difference(canonical_json(row), again, relative=FINDING_TOLERANCE) is None:
                item = f"{found.check} {found.id}"
                raise IntegrityError(f"{evidence}: {item}: its answers give another finding; {advice}")
        report = gate_report(run.result)
    except InputError as error:
        raise IntegrityError(f"{error}; {advice}") from error
    if (folder / REPORT_NAME).read_bytes() == report.encode("utf-8"):
        return True
    if _published_with(folder) == judging_code_sha256():
        raise IntegrityError(f"{folder / REPORT_NAME}: not the report of this evidence; {advice}")
    return False


def _published_with(folder: Path) -> str | None:
    """What provenance.json says of the gate's code; None for a release that is older than this entry."""
    path = folder / PROVENANCE_NAME
    found = read_json_object(path).get(JUDGING_CODE) if path.is_file() else None
    return found if isinstance(found, str) else None
