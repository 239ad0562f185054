from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
import yaml

from karma_electric.errors import InputError
from karma_electric.training_db.lineage import Lineage, trace
from tests.training_db.rows import row, write_rows


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def write_manifest(path: Path, **rows: str) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rows": len(rows), "row_sha256": rows}))
    return path.read_bytes()


def lock(folder: Path, tag: str, *, cache: str = ".dvc/cache", **manifests: bytes) -> None:
    """Commit and tag a lock that names these manifests (set name -> bytes), and put them into DVC's cache."""
    stages = {}
    for name, data in manifests.items():
        md5 = hashlib.md5(data).hexdigest()
        kept = folder / cache / "files" / "md5" / md5[:2] / md5[2:]
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(data)
        stages[f"export@{name}"] = {"outs": [{"path": f"data/sets/{name}.manifest.json", "md5": md5}]}
    (folder / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    git(folder, "add", "dvc.lock")
    git(folder, "commit", "-m", tag, "--allow-empty")
    git(folder, "tag", tag)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet", "--initial-branch", "main")
    write_rows(tmp_path / "data" / "patches" / "v7" / "theme.jsonl", [row("other"), row("a")])
    write_rows(tmp_path / "data" / "patches" / "v8" / "gone.jsonl", [{"op": "retire", "id": "a"}])
    write_manifest(tmp_path / "data" / "sets" / "v6.manifest.json", other="11")
    write_manifest(tmp_path / "data" / "sets" / "v7.manifest.json", a="22", other="11")
    return tmp_path


def traced(project: Path, id_: str) -> Lineage:
    return trace(id_, patches=project / "data" / "patches", sets=project / "data" / "sets", repository=project)


def test_patches_and_sets_of_a_row(project: Path) -> None:
    found = traced(project, "a")
    assert [(patch.version, patch.operation, Path(patch.where).name) for patch in found.patches] == [
        ("v7", "add", "theme.jsonl:2"), ("v8", "retire", "gone.jsonl:1")
    ]  # fmt: skip
    assert [(kept.name, kept.row_sha256) for kept in found.sets] == [("v7", "22")]
    assert found.releases == []
    assert traced(project, "nobody").is_empty


def test_releases_are_tags_whose_sets_hold_the_row(project: Path) -> None:
    seven = write_manifest(project / "seven.json", a="22", other="11")
    eight = write_manifest(project / "eight.json", other="11")
    lock(project, "v10", v8=eight, v7=seven)
    lock(project, "v9", v7=seven)
    git(project, "rm", "--cached", "dvc.lock")
    git(project, "commit", "-m", "no lock")
    git(project, "tag", "notes")
    found = traced(project, "a").releases
    assert [(tag.tag, tag.name, tag.row_sha256, tag.is_known) for tag in found] == [
        ("v9", "v7", "22", True), ("v10", "v7", "22", True)
    ]  # fmt: skip
    assert [(tag.tag, tag.name) for tag in traced(project, "other").releases] == [
        ("v9", "v7"), ("v10", "v7"), ("v10", "v8")
    ]  # fmt: skip


@pytest.mark.parametrize("fault", ["missing", "spoilt"])
def test_a_manifest_that_is_not_in_the_cache_is_named_and_not_taken_for_a_no(project: Path, fault: str) -> None:
    data = write_manifest(project / "seven.json", a="22")
    lock(project, "v7", v7=data)
    (cached,) = (path for path in (project / ".dvc" / "cache").rglob("*") if path.is_file())
    if fault == "missing":
        cached.unlink()
    else:
        cached.write_bytes(data.replace(b"22", b"33"))
    (found,) = traced(project, "a").releases
    assert (found.tag, found.row_sha256, found.is_known) == ("v7", None, False)


def test_the_cache_may_be_elsewhere(project: Path) -> None:
    (project / ".dvc").mkdir()
    (project / ".dvc" / "config").write_text("[core]\n    analytics = false\n[cache]\n    dir = ../shared\n")
    lock(project, "v7", cache="shared", v7=write_manifest(project / "seven.json", a="22"))
    (found,) = traced(project, "a").releases
    assert found.row_sha256 == "22"


def test_outside_git_there_are_no_releases(tmp_path: Path) -> None:
    found = trace("a", patches=tmp_path / "none", sets=tmp_path / "none", repository=tmp_path)
    assert found.is_empty


def test_a_manifest_without_row_hashes_is_named(project: Path) -> None:
    (project / "data" / "sets" / "v7.manifest.json").write_text('{"rows": 3}')
    with pytest.raises(InputError, match=r"v7\.manifest\.json: row_sha256 is None, expected the hash of every row"):
        traced(project, "a")
