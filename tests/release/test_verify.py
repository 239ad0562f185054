"""A signed release holds as it was signed, and no byte of it can be changed unseen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from karma_electric.canonical import read_json_object, readable_json
from karma_electric.errors import InputError, IntegrityError, SetupError
from karma_electric.gate.run import replay_gate
from karma_electric.integrity import sha256_file
from karma_electric.release import digests
from karma_electric.release.finishing import finish_release
from karma_electric.release.manifest import read_release_manifest
from karma_electric.release.signature import sign_release, verify_signature
from karma_electric.release.signature_file import SIGNATURE_NAME
from karma_electric.release.verify import Verification, verify_release
from tests.release.release_files import make_inputs, make_key, signed_release, stage, write_json


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished release and its public key; not to be changed."""
    return signed_release(tmp_path_factory.mktemp("signed"))


@pytest.fixture
def release(signed: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy under another name, to be changed."""
    return shutil.copytree(signed[0], tmp_path / "a copy of it")


@pytest.fixture
def key(signed: tuple[Path, Path]) -> Path:
    return signed[1]


def check(folder: Path, key: Path | None, *, gate: bool = False, unsigned: bool = False) -> Verification:
    return verify_release(folder, signer=key, gate=gate, unsigned=unsigned, report=lambda line: None)


def test_a_release_holds_wherever_it_lies(release: Path, key: Path) -> None:
    found = check(release, key, gate=True)
    assert (found.name, found.version, found.signed_by, found.judged_again) == ("tiny", "v8", str(key), True)
    assert found.report_made_again
    assert found.verdict == read_json_object(release / "gate.json")["verdict"]
    assert found.files == len(read_release_manifest(release)["files"])
    assert found.numbers_in_card > 150


def test_the_signature_covers_every_file(release: Path, key: Path) -> None:
    covered = verify_signature(release, signer=key)
    files = {path.relative_to(release).as_posix() for path in release.rglob("*") if path.is_file()}
    assert set(covered) == files - {SIGNATURE_NAME}
    assert {"manifest.json", "gate.json", "provenance.json", "README.md", "evidence/gate.jsonl"} <= set(covered)
    assert all(sha256_file(release / name) == digest for name, digest in covered.items())


def test_others_tools_read_the_signature(release: Path, key: Path) -> None:
    from model_signing import verifying

    verifying.Config().use_elliptic_key_verifier(public_key=key).verify(release, release / SIGNATURE_NAME)


def test_what_git_and_the_hubs_client_put_beside_is_no_part(release: Path, key: Path) -> None:
    (release / ".gitattributes").write_text("*.gguf filter=lfs\n")
    (release / ".cache/huggingface").mkdir(parents=True)
    (release / ".cache/huggingface/a.metadata").write_text("x")
    check(release, key)


def test_without_the_publishers_key_the_folders_own_is_taken_and_named(release: Path) -> None:
    assert check(release, None).signed_by == "public-key.pem"


def test_another_key_is_refused(release: Path, tmp_path: Path) -> None:
    other = make_key(tmp_path / "keys", "other")[1]
    with pytest.raises(IntegrityError, match="the signature does not hold"):
        check(release, other)


def test_a_release_signed_again_by_a_stranger_is_not_the_publishers(release: Path, key: Path, tmp_path: Path) -> None:
    stranger, strangers = make_key(tmp_path / "keys", "stranger")
    gate = read_json_object(release / "gate.json") | {"verdict": "pass"}
    (release / "gate.json").write_text(readable_json(gate))
    finish_release(release, private_key=stranger)
    assert check(release, strangers).verdict == "pass"
    with pytest.raises(IntegrityError, match="the signature does not hold"):
        check(release, key)
    with pytest.raises(IntegrityError, match="the gate's metrics say 'pass', its evidence says"):
        check(release, strangers, gate=True)


def test_evidence_that_was_swapped_with_its_hashes_is_refused_by_the_gate(release: Path, tmp_path: Path) -> None:
    """Everything is made to agree but one item's finding, which the rules don't find in its answers."""
    path = release / "evidence/gate.jsonl"
    assert replay_gate(path).metrics == read_json_object(release / "gate.json")
    gate = read_json_object(release / "gate.json")
    gate["checks"]["format"]["passed"] -= 1
    (release / "gate.json").write_text(readable_json(gate))
    private, public = make_key(tmp_path / "keys", "own")
    finish_release(release, private_key=private)
    check(release, public)
    with pytest.raises(IntegrityError, match="differs in a number"):
        check(release, public, gate=True)


@pytest.mark.parametrize("name", ["model.sig", "manifest.json", "gate.json", "provenance.json", "tiny-v8-Q8_0.gguf"])
def test_a_missing_file_is_refused(release: Path, key: Path, name: str) -> None:
    (release / name).unlink()
    with pytest.raises(InputError if name == "manifest.json" else IntegrityError, match=r"missing|does not hold"):
        check(release, key)


def test_a_file_too_many_is_refused(release: Path, key: Path) -> None:
    (release / "adapters/blend/extra.safetensors").write_bytes(b"x")
    with pytest.raises(IntegrityError, match=r"extra\.safetensors"):
        check(release, key)
    with pytest.raises(IntegrityError, match=r"extra\.safetensors: not in manifest\.json"):
        check(release, None, unsigned=True)


def test_an_unsigned_release_needs_to_be_accepted(tmp_path: Path) -> None:
    release = stage(make_inputs(tmp_path / "project"), tmp_path / "release")
    finish_release(release, private_key=None)
    with pytest.raises(IntegrityError, match="nobody vouches"):
        check(release, None)
    assert check(release, None, unsigned=True, gate=True).signed_by is None
    (release / "axis.safetensors").write_bytes((release / "projections.safetensors").read_bytes())
    with pytest.raises(IntegrityError, match=r"axis\.safetensors: sha256 is"):
        check(release, None, unsigned=True)


def test_headers_are_read_by_bounded_readers(release: Path, tmp_path: Path) -> None:
    private, public = make_key(tmp_path / "keys")
    for name, data in (("adapters/blend/adapter_model.safetensors", b"\xff" * 64), ("tiny-v8-Q4_K_M.gguf", b"GGUF")):
        kept = (release / name).read_bytes()
        (release / name).write_bytes(data)
        finish_release(release, private_key=private)
        with pytest.raises(IntegrityError, match=name):
            check(release, public)
        (release / name).write_bytes(kept)


def test_a_gate_about_other_files_is_refused(release: Path, tmp_path: Path) -> None:
    private, public = make_key(tmp_path / "keys")
    gate = read_json_object(release / "gate.json")
    write_json(release / "gate.json", gate | {"judged": gate["judged"] | {"weights_sha256": "0" * 64}})
    finish_release(release, private_key=private)
    with pytest.raises(IntegrityError, match=r"judged\.weights_sha256 is 000000000000…, which is not tiny-v8-Q8_0"):
        check(release, public)


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a//b", "a\\b", "", "."])
def test_a_manifest_that_names_a_path_outside_is_refused(release: Path, path: str) -> None:
    manifest = json.loads((release / "manifest.json").read_text())
    manifest["files"].insert(0, {**manifest["files"][0], "path": path})
    (release / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError, match="is no path, size, sha256 and stage"):
        read_release_manifest(release)


def test_keys_that_cannot_sign(release: Path, tmp_path: Path) -> None:
    private, _ = make_key(tmp_path / "keys")
    (tmp_path / "text").write_text("-----BEGIN SECRET WORDS-----")
    for path in (tmp_path / "text", tmp_path / "none", tmp_path):
        with pytest.raises(SetupError) as caught:
            finish_release(release, private_key=path)
        assert "SECRET" not in str(caught.value)
    with pytest.raises(SetupError, match="not the public key"):
        sign_release(release, signer=private, digests={})


def test_finishing_again_gives_the_same_files_but_the_signature(release: Path, tmp_path: Path) -> None:
    private, _ = make_key(tmp_path / "keys")
    finish_release(release, private_key=private)
    first = {path: path.read_bytes() for path in release.rglob("*") if path.is_file()}
    finish_release(release, private_key=private)
    changed = [path.name for path, data in first.items() if path.read_bytes() != data]
    assert changed in ([SIGNATURE_NAME], [])


def test_a_link_is_refused(release: Path, key: Path) -> None:
    target = release / "versions.yaml"
    target.rename(release.parent / "versions.yaml")
    target.symlink_to(release.parent / "versions.yaml")
    for signer, unsigned in ((key, False), (None, True)):
        with pytest.raises(IntegrityError, match=r"versions\.yaml: a link or no file"):
            check(release, signer, unsigned=unsigned)
    with pytest.raises(IntegrityError, match=r"versions\.yaml: a link or no file"):
        finish_release(release, private_key=None)


def test_large_files_are_read_once(release: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By signing and by verifying: the digests are handed on to the manifest and to the library."""
    from model_signing._hashing import io

    private, _ = make_key(tmp_path / "keys")
    read: list[str] = []

    def hashing(path: Path) -> str:
        read.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr(digests, "sha256_file", hashing)
    monkeypatch.delattr(io.SimpleFileHasher, "compute")
    large = ("tiny-v8-Q8_0.gguf", "tiny-v8-Q4_K_M.gguf", "axis.safetensors")
    check(release, key)
    assert [read.count(name) for name in large] == [1, 1, 1]
    finish_release(release, private_key=private)
    assert [read.count(name) for name in large] == [2, 2, 2]
