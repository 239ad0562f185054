from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karma_electric.base_model.folder import hash_folder
from karma_electric.base_model.make import make_base
from karma_electric.base_model.params import FolderBase
from karma_electric.errors import InputError, IntegrityError
from karma_electric.integrity import verify_manifest


@pytest.fixture
def source(tiny_llama: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "source"))
    (folder / "manifest.json").unlink()
    return folder


def pinned(folder: Path, sha256: str | None = None) -> FolderBase:
    return FolderBase(
        source="folder", path=str(folder), sha256=sha256 or hash_folder(folder), repo="test/tiny", license="mit"
    )


def test_a_folder_is_copied_with_a_manifest(source: Path, tmp_path: Path) -> None:
    params = pinned(source)
    lines: list[str] = []
    manifest = make_base(params, tmp_path / "base", report=lines.append)
    assert verify_manifest(tmp_path / "base") == manifest
    assert manifest["identity"] == {
        "source": "folder",
        "repo": "test/tiny",
        "sha256": params.sha256,
        "license": "mit",
        "architecture": "LlamaForCausalLM",
        "hidden_size": 256,
        "n_layers": 4,
        "vocab_size": json.loads((source / "config.json").read_text())["vocab_size"],
    }
    for path in source.iterdir():
        copy = tmp_path / "base" / path.name
        assert copy.read_bytes() == path.read_bytes()
        assert copy.stat().st_ino != path.stat().st_ino
    assert lines[-1].startswith(f"base: test/tiny, {len(list(source.iterdir()))} files, ")


def test_another_hash_is_refused_and_the_output_kept(source: Path, tmp_path: Path) -> None:
    promised = hash_folder(source)
    make_base(pinned(source), tmp_path / "base")
    before = (tmp_path / "base/manifest.json").read_bytes()
    (source / "chat_template.jinja").write_text("changed")
    with pytest.raises(IntegrityError) as refused:
        make_base(pinned(source, promised), tmp_path / "base")
    assert promised in str(refused.value)
    assert hash_folder(source) in str(refused.value)
    assert (tmp_path / "base/manifest.json").read_bytes() == before
    verify_manifest(tmp_path / "base")


def test_local_paths_are_dropped_from_configs(source: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer_config.json"):
        config = json.loads((source / name).read_text())
        extra = {"_name_or_path": str(source), "is_local": True, "local_files_only": False}
        (source / name).write_text(json.dumps(config | extra))
    make_base(pinned(source), tmp_path / "base")
    for name in ("config.json", "tokenizer_config.json"):
        assert str(tmp_path) not in (tmp_path / "base" / name).read_text()
        assert not {"_name_or_path", "is_local"} & set(json.loads((tmp_path / "base" / name).read_text()))


def test_a_local_path_elsewhere_in_a_config_is_refused(source: Path, tmp_path: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"notes": [{"from": str(source / "old")}]}))
    with pytest.raises(IntegrityError, match="holds the local path"):
        make_base(pinned(source), tmp_path / "base")


@pytest.mark.parametrize(
    ("name", "content", "kind", "fault"),
    [
        ("config.json", '{"architectures": ["GPT2LMHeadModel"]}', InputError, "architectures is"),
        ("config.json", '{"architectures": ["LlamaForCausalLM"]}', InputError, "hidden_size is None"),
        ("config.json", "{", InputError, "not JSON"),
        ("config.json", None, InputError, r"config\.json: cannot be read"),
        ("tokenizer.json", None, InputError, r"no tokenizer\.json"),
        ("chat_template.jinja", None, InputError, "no chat template"),
        ("chat_template.jinja", " ", InputError, "no chat template"),
        ("chat_template.jinja", "{{ strftime_now('%Y') }}", InputError, "today's date"),
        ("model.safetensors", "short", IntegrityError, r"model\.safetensors"),
        ("model.safetensors", None, IntegrityError, r"model\.safetensors: cannot be read"),
    ],
)
def test_a_folder_that_is_no_whole_model_is_refused(
    source: Path, tmp_path: Path, name: str, content: str | None, kind: type[Exception], fault: str
) -> None:
    (source / name).unlink()
    if content is not None:
        (source / name).write_text(content)
    with pytest.raises(kind, match=fault):
        make_base(pinned(source), tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_a_folder_that_is_missing_or_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, fault in (("none", "no such folder"), ("empty", "holds no files")):
        with pytest.raises(InputError, match=fault):
            make_base(pinned(tmp_path / name, "0" * 64), tmp_path / "base")


@pytest.mark.parametrize("output", ["source", "source/base", "."])
def test_an_output_that_would_replace_the_source_is_refused(source: Path, tmp_path: Path, output: str) -> None:
    with pytest.raises(InputError, match="overlap"):
        make_base(pinned(source), tmp_path / output)
    assert (source / "model.safetensors").is_file()


names = st.text("ab.", min_size=1, max_size=3).filter(lambda name: name not in {".", ".."})
trees = st.dictionaries(names, st.binary(max_size=3), min_size=1, max_size=4)


@given(trees, trees)
def test_hashes_are_equal_exactly_when_files_are(
    tmp_path_factory: pytest.TempPathFactory, one: dict[str, bytes], other: dict[str, bytes]
) -> None:
    hashes = []
    for tree in (one, other):
        folder = tmp_path_factory.mktemp("tree")
        for name, content in reversed(tree.items()):
            (folder / name).write_bytes(content)
        hashes.append(hash_folder(folder))
    assert (hashes[0] == hashes[1]) == (one == other)


def test_the_hash_follows_paths_and_bytes_alone(source: Path, tmp_path: Path) -> None:
    before = hash_folder(source)
    (source / "manifest.json").write_text("left out")
    os.utime(source / "config.json", (0, 0))
    (source / "config.json").chmod(0o600)
    assert hash_folder(source.rename(tmp_path / "moved")) == before
