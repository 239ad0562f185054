"""The release's manifest names every artifact with the hash of its bytes."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karma_electric.errors import InputError
from karma_electric.release.manifest import Artifact, describe_artifact, release_manifest

NAMES = st.text("abcxyz019.-_", min_size=1, max_size=8).filter(lambda name: name.strip("."))


@settings(max_examples=25)
@given(st.dictionaries(NAMES, st.binary(max_size=64), max_size=6))
def test_every_artifact_stands_in_it_with_size_and_hash(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, data in files.items():
            (folder / path).write_bytes(data)
        artifacts = [describe_artifact(folder / path, path=path, stage="made") for path in files]
    manifest = release_manifest({"name": "tiny"}, artifacts)
    assert manifest == {
        "identity": {"name": "tiny"},
        "files": [
            {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "stage": "made"}
            for path, data in sorted(files.items())
        ],
    }
    assert release_manifest({"name": "tiny"}, reversed(artifacts)) == manifest


def test_a_missing_artifact_names_the_stage_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lost\.gguf: missing, .*run `dvc repro quantize@Q8_0`"):
        describe_artifact(tmp_path / "lost.gguf", path="lost.gguf", stage="quantize@Q8_0")


def test_a_folder_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing"):
        describe_artifact(tmp_path, path="folder", stage="made")


def test_two_artifacts_of_one_path_are_a_fault() -> None:
    artifact = Artifact("a", 1, "0" * 64, "made")
    with pytest.raises(ValueError, match="two artifacts of one path"):
        release_manifest({}, [artifact, artifact])
