"""Whether a release may be published: what the gate said, about which bytes, and which commit built it."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

from karma_electric.canonical import read_json_object
from karma_electric.errors import GateFailedError, GateInconclusiveError, InputError, IntegrityError
from karma_electric.gate.report import gate_report
from karma_electric.gate.run import replay_gate
from karma_electric.graph import read_lock
from karma_electric.integrity import sha256_file
from karma_electric.release.judging_code import JUDGING_CODE, judging_code_sha256
from karma_electric.release.staging import Release
from karma_electric.release.verify import EVIDENCE_NAME, GATE_NAME, REPORT_NAME


def check_gate(release: Release) -> str:
    """The gate's verdict, after it was found to be about these bytes and to follow from the evidence.

    Raises IntegrityError when the gate judged other files, when its evidence, judged again, says something else, or
    when its report is not the one that today's code writes, which provenance.json will name as the one that did.
    """
    path = release.local(GATE_NAME)
    gate = read_json_object(path)
    judged: dict[str, Any] = gate["judged"] if isinstance(gate.get("judged"), dict) else {}
    released = {artifact.sha256: name for name, (artifact, _) in release.files.items()}
    for key in ("weights_sha256", "axis_sha256", "evidence_sha256"):
        if judged.get(key) not in released:
            raise IntegrityError(
                f"{path}: judged.{key} is {str(judged.get(key))[:16]}…, which is no file of this release; "
                "run `dvc repro gate`"
            )
    again = replay_gate(release.local(EVIDENCE_NAME))
    found = again.metrics
    if found != gate:
        raise IntegrityError(
            f"{path}: says {gate.get('verdict')!r}, its evidence says {found['verdict']!r} or differs in a number; "
            "run `dvc repro gate`"
        )
    report = release.local(REPORT_NAME)
    if report.read_bytes() != gate_report(again.result).encode("utf-8"):
        raise IntegrityError(f"{report}: not the report of this evidence; run `dvc repro`")
    return str(found["verdict"])


def check_verdict(verdict: str) -> None:
    """Raises GateFailedError or GateInconclusiveError unless the verdict is pass."""
    advice = "its gate.md says why; or publish it as what it is: --candidate --reason TEXT"
    if verdict == "fail":
        raise GateFailedError(f"the gate's verdict is fail, so nothing is published; {advice}")
    if verdict != "pass":
        raise GateInconclusiveError(f"the gate's verdict is {verdict}, so nothing is published; {advice}")


def read_provenance(root: Path, release: Release, *, override: dict[str, str] | None) -> dict[str, Any]:
    """Which commit and lock built the release, where, and against which verdict it is published, if it is.

    Raises InputError for uncommitted changes, and for a dvc.lock that is not committed or describes other files.
    """
    changed = _git(root, "status", "--porcelain").splitlines()
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise InputError(f"{changed[0][3:]}{more}: not committed, so no commit names what is published; commit it")
    lock = root / "dvc.lock"
    if not _git(root, "ls-files", "dvc.lock"):
        raise InputError(f"{lock}: not committed; run `git add dvc.lock` and commit it")
    outputs = read_lock(lock.read_text("utf-8"), str(lock)).get("release", {})
    if folder_md5(release.folder) not in outputs.values():
        raise InputError(f"{lock}: describes another {release.folder}; run `dvc repro`, then commit dvc.lock")
    return {
        "commit": _git(root, "rev-parse", "HEAD").strip(),
        "dvc_lock_sha256": sha256_file(lock),
        JUDGING_CODE: judging_code_sha256(),
        "machine": machine(),
        "override": override,
    }


def folder_md5(folder: Path) -> str:
    """The hash by which dvc.lock names a folder: of the list of its files' MD5 sums, in the order of their paths."""
    listed = [
        {"md5": hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest(), "relpath": name}
        for name, path in sorted((p.relative_to(folder).as_posix(), p) for p in folder.rglob("*") if p.is_file())
    ]
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode("utf-8"), usedforsecurity=False).hexdigest() + ".dir"


def machine() -> dict[str, str]:
    """What kind of machine this is; not which one."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": _processor_of_linux() or platform.processor() or "unknown",
        "python": platform.python_version(),
    }


def _processor_of_linux() -> str:
    """The name that Linux gives to the processor; empty on another system, and where it gives none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise InputError("git: not found; publishing names the commit that a release was built from") from None
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split())[:200]
        raise InputError(f"git {words[0]}: {said}; publish from the repository that built the release") from error
    return done.stdout
