from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

GRAPH_TESTS = "tests/pipeline/"

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=50, database=None)
settings.load_profile("fixed")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random Llama, with its manifest. Not to be written to."""
    from karma_electric.integrity import write_manifest
    from tests.tiny_model import make_tiny_llama

    folder = make_tiny_llama(tmp_path_factory.mktemp("tiny") / "model")
    write_manifest(
        folder, {"source": "folder", "repo": "test/tiny", "license": "mit", "architecture": "LlamaForCausalLM"}
    )
    return folder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the full counts, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`make test` leaves out the tests marked long; pytest says how many. The graph's tests come first."""
    if not config.getoption("--long"):
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    items.sort(key=lambda item: not item.nodeid.startswith(GRAPH_TESTS))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Of two processes of tests one takes the graph's, which share a build; the other takes the rest, file by file."""
    return _ByFile(config, log)


class _ByFile(LoadScopeScheduling):  # type: ignore[misc]  # xdist is not typed
    def _split_scope(self, nodeid: str) -> str:
        return GRAPH_TESTS if nodeid.startswith(GRAPH_TESTS) else nodeid.partition("::")[0]
