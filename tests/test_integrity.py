from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karma_electric.errors import IntegrityError
from karma_electric.integrity import (
    MANIFEST_NAME,
    atomic_directory,
    atomic_file,
    describe_files,
    read_manifest,
    sha256_bytes,
    sha256_file,
    verify_manifest,
    write_bytes,
    write_manifest,
    write_text,
)

NAMES = st.sampled_from(["a.bin", "b.bin", "sub/a.bin", "sub/deep/c.bin", "sub/manifest.json", ".hidden"])
TREES = st.dictionaries(NAMES, st.binary(max_size=6), min_size=1, max_size=4)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, hidden ones too."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@contextmanager
def described_folder(files: dict[str, bytes]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        folder = fill(Path(name), files)
        write_manifest(folder, {"kind": "test"})
        yield folder


def run(code: str, folder: Path) -> int:
    """The exit code of a child that runs `code` in `folder`."""
    header = "import os, shutil, pathlib\nfrom karma_electric.integrity import *\n"
    return subprocess.run([sys.executable, "-c", header + code], cwd=folder, check=False).returncode


def test_a_file_appears_whole_and_readable_by_all(tmp_path: Path) -> None:
    write_bytes(tmp_path / "new" / "file", b"one")
    write_text(tmp_path / "new" / "file", "dvě")
    assert tree(tmp_path) == {"new/file": "dvě".encode()}
    assert (tmp_path / "new" / "file").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_file_stays_when_the_block_raises(tmp_path: Path, error: type[BaseException]) -> None:
    write_text(tmp_path / "file", "old")

    def write_half() -> None:
        with atomic_file(tmp_path / "file") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert tree(tmp_path) == {"file": b"old"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_folder_stays_when_the_block_raises(tmp_path: Path, error: type[BaseException]) -> None:
    fill(tmp_path, {"out/a": b"old", "out/b": b"old"})

    def write_half() -> None:
        with atomic_directory(tmp_path / "out") as temporary:
            (temporary / "a").write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert tree(tmp_path) == {"out/a": b"old", "out/b": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    fill(tmp_path, {"out/a": b"old", "out/gone": b"old"})
    with atomic_directory(tmp_path / "out") as temporary:
        fill(temporary, {"a": b"new", "sub/b": b"new"})
        (temporary / "a").chmod(0o600)
        (temporary / "sub").chmod(0o700)
    assert tree(tmp_path) == {"out/a": b"new", "out/sub/b": b"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    modes = {p.name: p.stat().st_mode & 0o777 for p in [tmp_path / "out", *(tmp_path / "out").rglob("*")]}
    assert modes == {"out": 0o755, "a": 0o644, "sub": 0o755, "b": 0o644}


def test_a_folder_takes_the_place_of_a_link_and_the_link_s_target_stays(tmp_path: Path) -> None:
    fill(tmp_path, {"elsewhere/a": b"not ours"})
    for target in ("elsewhere", "nowhere"):
        (tmp_path / "out").symlink_to(target)
        with atomic_directory(tmp_path / "out") as temporary:
            fill(temporary, {"a": b"new"})
        assert not (tmp_path / "out").is_symlink()
        assert tree(tmp_path) == {"elsewhere/a": b"not ours", "out/a": b"new"}
        shutil.rmtree(tmp_path / "out")


def test_a_crash_inside_leaves_the_old_content(tmp_path: Path) -> None:
    fill(tmp_path, {"file": b"old", "out/a": b"old", "out/b": b"old"})
    file_code = "with atomic_file(pathlib.Path('file')) as t:\n    t.write_text('half'); os._exit(9)"
    folder_code = "with atomic_directory(pathlib.Path('out')) as t:\n    (t / 'a').write_text('half'); os._exit(9)"
    assert run(file_code, tmp_path) == 9
    assert run(folder_code, tmp_path) == 9
    assert (tmp_path / "file").read_bytes() == b"old"
    assert tree(tmp_path / "out") == {"a": b"old", "b": b"old"}
    left = [path.name for path in tmp_path.iterdir() if path.name not in {"file", "out"}]
    assert len(left) == 2
    assert all(name.endswith(".partial") for name in left)  # which git and DVC ignore


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_kill_while_a_folder_is_replaced_leaves_no_half(tmp_path: Path, step: int) -> None:
    """The child dies at its first rename, at its second, or when it deletes what was there."""
    fill(tmp_path, {"out/a": b"old", "out/b": b"old"})
    code = f"""
calls = 0
def dying(real):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == {step}:
            os._exit(9)
        return real(*arguments, **options)
    return call
pathlib.Path.replace = dying(pathlib.Path.replace)
shutil.rmtree = dying(shutil.rmtree)
with atomic_directory(pathlib.Path("out")) as temporary:
    (temporary / "a").write_text("new")
"""
    assert run(code, tmp_path) == 9
    found = tree(tmp_path / "out") if (tmp_path / "out").exists() else None
    assert found == {1: {"a": b"old", "b": b"old"}, 2: None, 3: {"a": b"new"}}[step]


def test_sha256_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    write_bytes(tmp_path / "file", b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "file") == sha256_bytes(b"abc") == known


@given(TREES)
def test_an_untouched_folder_is_as_promised(files: dict[str, bytes]) -> None:
    with described_folder(files) as folder:
        manifest = verify_manifest(folder)
        assert manifest["identity"] == {"kind": "test"}
        assert [entry["path"] for entry in manifest["files"]] == sorted(files)


@given(TREES, st.data())
def test_every_changed_bit_is_found(files: dict[str, bytes], data: st.DataObject) -> None:
    with described_folder(files) as folder:
        name = data.draw(st.sampled_from(sorted(files)))
        content = bytearray(files[name])
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        else:
            content += b"\0"
        (folder / name).write_bytes(content)
        with pytest.raises(IntegrityError, match="sha256 is") as caught:
            verify_manifest(folder)
        assert str(folder / name) in str(caught.value)


@given(TREES, st.data())
def test_every_added_or_removed_byte_or_file_is_found(files: dict[str, bytes], data: st.DataObject) -> None:
    with described_folder(files) as folder:
        name = data.draw(st.sampled_from(sorted(files)))
        change = data.draw(st.sampled_from(["append", "cut", "remove", "add", "rename"]))
        if change == "append":
            (folder / name).write_bytes(files[name] + b"x")
        elif change == "cut" and files[name]:
            (folder / name).write_bytes(files[name][:-1])
        elif change == "add":
            (folder / "sub").mkdir(exist_ok=True)
            (folder / "sub" / "added").write_bytes(b"")
        elif change == "rename":
            (folder / name).rename(folder / "renamed")
        else:
            (folder / name).unlink()
        with pytest.raises(IntegrityError, match=r"sha256 is|missing, though|not in manifest"):
            verify_manifest(folder)


@pytest.mark.parametrize("target", ["/", "nowhere", "sub"])
def test_a_link_that_no_hash_can_cover_is_refused(tmp_path: Path, target: str) -> None:
    fill(tmp_path, {"a": b"1", "sub/b": b"2"})
    write_manifest(tmp_path, {})
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(IntegrityError, match="link: neither a file nor a folder"):
        verify_manifest(tmp_path)


def test_a_link_to_a_file_counts_as_the_file(tmp_path: Path) -> None:
    fill(tmp_path, {"cache/blob": b"1", "model/config": b"2"})
    (tmp_path / "model" / "weights").symlink_to(tmp_path / "cache" / "blob")
    assert [entry["path"] for entry in write_manifest(tmp_path / "model", {})["files"]] == ["config", "weights"]
    (tmp_path / "cache" / "blob").write_bytes(b"3")
    with pytest.raises(IntegrityError, match="weights: sha256 is"):
        verify_manifest(tmp_path / "model")


def test_the_same_files_give_the_same_manifest(tmp_path: Path) -> None:
    files = {"b": b"1", "a": b"2", "sub/c": b"3"}
    for folder, order in (("one", files), ("two", dict(reversed(files.items())))):
        write_manifest(fill(tmp_path / folder, order), {"kind": "test"})
    assert (tmp_path / "one" / MANIFEST_NAME).read_bytes() == (tmp_path / "two" / MANIFEST_NAME).read_bytes()


def bad_manifests(good: dict[str, object], entry: dict[str, object]) -> dict[str, str]:
    return {
        "": "not JSON",
        '{"identity": {}, "files": [': "not JSON",
        '{"identity": {}, "files": [], "files": []}': "stands twice",
        "[" * 100_000: "nested too deeply",
        "[]": "expected a JSON object",
        json.dumps({"files": [entry]}): "not a manifest",
        json.dumps({**good, "extra": 1}): "not a manifest",
        json.dumps({"identity": [], "files": [entry]}): "not a manifest",
        json.dumps({**good, "files": {"a": entry}}): "files is no list",
        json.dumps({**good, "files": ["a"]}): "files is no list",
        json.dumps({**good, "files": [{"path": "a"}]}): "files is no list",
        json.dumps({**good, "files": [{**entry, "path": 1}]}): "files is no list",
        json.dumps({**good, "files": [{**entry, "size": "1"}]}): "files is no list",
        json.dumps({**good, "files": [{**entry, "sha256": None}]}): "files is no list",
        json.dumps({**good, "files": [entry, entry]}): "names a file twice",
    }


def test_a_manifest_of_another_form_is_an_integrity_error(tmp_path: Path) -> None:
    fill(tmp_path, {"a": b"1"})
    good = write_manifest(tmp_path, {})
    for text, message in bad_manifests(good, good["files"][0]).items():
        (tmp_path / MANIFEST_NAME).write_text(text)
        with pytest.raises(IntegrityError, match=message) as caught:
            verify_manifest(tmp_path)
        assert MANIFEST_NAME in str(caught.value)
        assert "rebuild the stage" in str(caught.value)


def test_a_missing_manifest_is_an_integrity_error(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"manifest\.json: cannot be read"):
        read_manifest(tmp_path)


def test_a_path_outside_the_folder_is_never_taken_for_a_file_of_it(tmp_path: Path) -> None:
    fill(tmp_path, {"outside": b"1", "folder/a": b"2"})
    entry = {**describe_files(tmp_path)[-1], "path": "../outside"}
    manifest = write_manifest(tmp_path / "folder", {})
    write_text(tmp_path / "folder" / MANIFEST_NAME, json.dumps({**manifest, "files": [*manifest["files"], entry]}))
    with pytest.raises(IntegrityError, match="outside: missing"):
        verify_manifest(tmp_path / "folder")
