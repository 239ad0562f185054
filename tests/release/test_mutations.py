"""No byte, number, verdict or row of a signed release can be changed unseen; and a forger who makes every hash fit
again is caught where the release contradicts itself."""

from __future__ import annotations

import collections
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from karma_electric.canonical import canonical_json, read_json_object, readable_json
from karma_electric.errors import IntegrityError
from karma_electric.gate.evidence_file import read_evidence
from karma_electric.integrity import sha256_bytes, sha256_file
from karma_electric.release.finishing import finish_release
from karma_electric.release.judging_code import JUDGING_CODE
from karma_electric.release.verify import Verification, verify_release
from tests.release.mutations import all_mutations, leaves, signature_bytes, survivors, with_another
from tests.release.release_files import signed_release, write_json


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished release and its public key; not to be changed."""
    return signed_release(tmp_path_factory.mktemp("signed"))


@pytest.fixture
def release(signed: tuple[Path, Path], tmp_path: Path) -> Path:
    return shutil.copytree(signed[0], tmp_path / "release")


def checker(folder: Path, key: Path | None, *, gate: bool = False) -> Callable[[], str]:
    """What a verification says against `folder`, or nothing. Without a key it asks for no signature."""

    def check() -> str:
        try:
            verify_release(folder, signer=key, unsigned=key is None, gate=gate, report=lambda line: None)
        except IntegrityError as error:
            return str(error)
        return ""

    assert check() == ""
    return check


def test_a_handful_of_each_kind_is_caught(signed: tuple[Path, Path], release: Path) -> None:
    everything = all_mutations(release, each=1, at_most=3, seed=1) + list(signature_bytes(release, 401))
    by_kind = collections.defaultdict(list)
    for mutation in everything:
        by_kind[mutation.kind].append(mutation)
    draw = random.Random(1)
    chosen = [mutation for found in by_kind.values() for mutation in draw.sample(found, min(3, len(found)))]
    assert len(by_kind) >= 18
    unseen, words = survivors(release, chosen, checker(release, signed[1]))
    assert not [(mutation.kind, mutation.path) for mutation in unseen]
    assert len(words) == len(chosen) >= 50


@pytest.mark.long
def test_all_of_each_kind_are_caught(signed: tuple[Path, Path], release: Path) -> None:
    chosen = all_mutations(release, each=5, at_most=None, seed=2) + list(signature_bytes(release, 7))
    unseen, words = survivors(release, chosen, checker(release, signed[1]))
    assert not [(mutation.kind, mutation.path) for mutation in unseen]
    assert len(words) == len(chosen) > 3000


def test_without_a_signature_the_manifest_names_the_file(release: Path) -> None:
    finish_release(release, private_key=None)
    chosen = [m for m in all_mutations(release, each=1, at_most=3, seed=3) if m.path != "manifest.json"]
    chosen = random.Random(3).sample(chosen, 40)
    unseen, words = survivors(release, chosen, checker(release, None))
    assert not [(mutation.kind, mutation.path) for mutation in unseen]
    assert all(mutation.path in said for mutation, said in zip(chosen, words, strict=True))


def forge(release: Path, name: str, data: bytes) -> None:
    """Change a file, and make every hash, the card and the manifest fit again; the signature is left out."""
    (release / name).write_bytes(data)
    finish_release(release, private_key=None)


def test_a_forged_verdict_or_metric_is_not_what_the_evidence_says(release: Path) -> None:
    """Every value of gate.json, with card and manifest made to fit."""
    gate = read_json_object(release / "gate.json")
    kept = {path: path.read_bytes() for path in release.rglob("*") if path.is_file()}
    places = list(leaves(gate))
    for place in random.Random(4).sample(places, 12):
        if place[0] == "judged":
            continue  # of other files: tested by itself
        forge(release, "gate.json", readable_json(with_another(gate, place)).encode())
        with pytest.raises(IntegrityError, match=r"evidence says|no verdict of a gate|not the report"):
            verify_release(release, unsigned=True, gate=True, report=lambda line: None)
        for path, data in kept.items():
            path.write_bytes(data)


def forge_row(release: Path, number: int, row: dict[str, object]) -> None:
    """Another row of the evidence: its header, gate.json, card and manifest are made to fit."""
    path = release / "evidence/gate.jsonl"
    rows = read_evidence(path).rows
    rows[number] = row
    lines = [canonical_json(each) + "\n" for each in rows]
    header = json.loads(path.read_bytes().splitlines()[0]) | {"rows_sha256": sha256_bytes("".join(lines).encode())}
    path.write_text(canonical_json(header) + "\n" + "".join(lines), "utf-8")
    gate = read_json_object(release / "gate.json")
    gate["judged"]["evidence_sha256"] = sha256_file(path)
    forge(release, "gate.json", readable_json(gate).encode())


@pytest.mark.parametrize("part", ["passed", "findings", "category"])
def test_a_forged_finding_is_not_what_its_answers_give(release: Path, part: str) -> None:
    rows = read_evidence(release / "evidence/gate.jsonl").rows
    number = next(index for index, row in enumerate(rows) if row["passed"] is False and row["findings"])
    row = rows[number]
    changed = with_another(row, next(leaves(row[part], (part,))))
    forge_row(release, number, changed)
    verify_release(release, unsigned=True, report=lambda line: None)
    with pytest.raises(IntegrityError, match=f"{row['check']} {row['id']}: its answers give another finding"):
        verify_release(release, unsigned=True, gate=True, report=lambda line: None)


def test_a_forged_report_is_not_that_of_the_evidence(release: Path) -> None:
    text = (release / "gate.md").read_text("utf-8")
    forge(release, "gate.md", text.replace("## What did not pass", "## What passed").encode())
    with pytest.raises(IntegrityError, match=r"gate\.md: not the report of this evidence"):
        verify_release(release, unsigned=True, gate=True, report=lambda line: None)


@pytest.mark.parametrize("recorded", ["0" * 64, None])
def test_a_report_by_another_version_may_have_other_words_and_is_not_said_to_hold(
    release: Path, recorded: str | None
) -> None:
    """Its evidence and gate.json are held against each other as ever."""
    text = (release / "gate.md").read_text("utf-8")
    provenance = read_json_object(release / "provenance.json")
    del provenance[JUDGING_CODE]
    write_json(release / "provenance.json", provenance if recorded is None else {**provenance, JUDGING_CODE: recorded})
    forge(release, "gate.md", text.replace("## What did not pass", "## Failures").encode())
    found = verified(release)
    assert (found.judged_again, found.report_made_again) == (True, False)
    gate = read_json_object(release / "gate.json")
    gate["checks"]["format"]["passed"] -= 1
    forge(release, "gate.json", readable_json(gate).encode())
    with pytest.raises(IntegrityError, match="differs in a number"):
        verified(release)


def verified(release: Path) -> Verification:
    return verify_release(release, unsigned=True, gate=True, report=lambda line: None)
