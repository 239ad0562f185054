from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.project import ALL_STAGES, Project, clone
from tests.tiny_model import make_tiny_llama


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the tiny base model, and the hash that pins it."""
    from karma_electric.base_model.folder import hash_folder

    folder = make_tiny_llama(tmp_path_factory.mktemp("base") / "tiny-llama")
    return folder, hash_folder(folder)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_base: tuple[Path, str]) -> Project:
    """The graph, built once from nothing and committed. Not to be changed: use `project`."""
    project = clone(tmp_path_factory.mktemp("built") / "project", *tiny_base)
    assert project.repro() == ALL_STAGES
    project.commit("built")
    return project


@pytest.fixture
def project(built: Project, tmp_path: Path) -> Project:
    """A copy of the built graph, to be changed."""
    return built.copy(tmp_path / "project")


@pytest.fixture(scope="session")
def built_elsewhere(tmp_path_factory: pytest.TempPathFactory, tiny_base: tuple[Path, str]) -> Project:
    """A second build from nothing: another folder, hash seed, home and time zone.

    Each process of it writes the names of the modules that it loaded to `../../modules`.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "modules").mkdir()
    (folder / "recorder").mkdir()
    (folder / "recorder/sitecustomize.py").write_text(_RECORDER)
    project = clone(folder / "deeper" / "project", *tiny_base)
    project.environment = {
        "PYTHONHASHSEED": "7",
        "TZ": "Pacific/Chatham",
        "HOME": str(folder),
        "PYTHONPATH": str(folder / "recorder"),
        "MODULES_FOLDER": str(folder / "modules"),
    }
    assert project.repro() == ALL_STAGES
    return project


_RECORDER = """
import atexit, json, os, sys

def record():
    words = sys.orig_argv
    stage = next((word for word in words if word.startswith("stages.")), None)
    if stage:
        names = sorted({name.split(".")[0] for name in list(sys.modules)})
        with open(os.path.join(os.environ["MODULES_FOLDER"], f"{stage}-{os.getpid()}.json"), "w") as file:
            json.dump(names, file)

atexit.register(record)
"""
