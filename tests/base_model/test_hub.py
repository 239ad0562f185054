"""The hub's real client against a local server, and against no server."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import errors

from karma_electric.base_model.hub import explain
from karma_electric.base_model.params import BaseSection, HubBase
from karma_electric.errors import InputError, KarmaError, SetupError
from karma_electric.integrity import verify_manifest
from karma_electric.parameters import parse_parameters
from tests.hub_server.faults import Fault
from tests.hub_server.server import HubServer, serve_hub
from tests.hub_server.store import Repo

REPOSITORY = Path(__file__).parent.parent.parent
COMMIT = "a" * 40  # a commit of no repo here
SCRIPT = """
import sys
from pathlib import Path
from karma_electric.base_model.make import make_base
from karma_electric.base_model.params import HubBase
from karma_electric.errors import KarmaError
params = HubBase(source="hub", repo="test/tiny", revision=sys.argv[2], license="mit")
try:
    make_base(params, Path(sys.argv[1]))
except KarmaError as error:
    print(type(error).__name__, error)
"""


def make_in_process(output: Path, endpoint: str, home: Path, revision: str = COMMIT) -> str:
    """Run make_base with another hub address, which the client reads when it is imported; what it printed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"PYTHONPATH": str(REPOSITORY)}
    finished = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(output), revision],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    return finished.stdout


@pytest.fixture
def files(tiny_llama: Path, tmp_path: Path) -> Path:
    """The tiny model, beside files that must not be fetched."""
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "files"))
    (folder / "manifest.json").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "modeling.py").write_text("raise SystemExit")
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    with serve_hub(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def repo(server: HubServer, files: Path) -> Repo:
    """The hub's test/tiny with these files; what is not text is a large file."""
    store = server.hub.store
    repo = store.create_repo("model", "test/tiny", private=False)
    there = {
        path.name: store.add_object(path)
        if path.suffix in (".bin", ".safetensors")
        else repo.add_blob(path.read_bytes())
        for path in files.iterdir()
    }
    repo.add_commit(there, parent=repo.commit_of("main"), title="the model")
    return repo


def test_a_repo_becomes_links_and_a_manifest(server: HubServer, repo: Repo, files: Path, tmp_path: Path) -> None:
    output, home = tmp_path / "models/base", tmp_path / "home"
    revision = repo.commit_of("main")
    assert make_in_process(output, server.url, home, revision) == ""
    identity = verify_manifest(output)["identity"]
    assert identity == {
        "source": "hub",
        "repo": "test/tiny",
        "revision": revision,
        "license": "mit",
        "architecture": "LlamaForCausalLM",
        "hidden_size": 256,
        "n_layers": 4,
        "vocab_size": identity["vocab_size"],
    }
    linked = {path.name for path in output.iterdir() if path.is_symlink()}
    assert linked == {path.name for path in files.iterdir()} - {"pytorch_model.bin", "modeling.py"}
    assert linked == {name for name in linked if (output / name).resolve().is_relative_to(home)}
    assert all((output / name).read_bytes() == (files / name).read_bytes() for name in linked)
    assert not list(home.rglob("modeling.py"))
    assert str(tmp_path) not in (output / "manifest.json").read_text()

    before = (output / "manifest.json").read_bytes()  # again, from the cache alone
    shutil.rmtree(output)
    assert make_in_process(output, "http://127.0.0.1:1", home, revision) == ""
    assert (output / "manifest.json").read_bytes() == before


def test_no_network_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    said = make_in_process(tmp_path / "base", f"http://127.0.0.1:{port}", tmp_path / "home")
    assert said.startswith(f"SetupError base.repo: test/tiny cannot be downloaded from http://127.0.0.1:{port} (")
    assert said.count("\n") == 1
    assert "https://huggingface.co/test/tiny" in said
    assert "HF_TOKEN" in said
    assert not (tmp_path / "base").exists()


def test_what_the_hub_refuses_is_one_line(server: HubServer, repo: Repo, tmp_path: Path) -> None:
    def said(revision: str) -> str:
        said = make_in_process(tmp_path / "base", server.url, tmp_path / "home", revision)
        assert said.count("\n") == 1
        assert "https://huggingface.co/test/tiny" in said
        assert not (tmp_path / "base").exists()
        return said

    pinned = repo.commit_of("main")
    assert said(COMMIT).startswith("InputError base.revision: test/tiny has no commit aaaa")
    server.faults.planned.append(Fault("error", "info"))
    assert said(pinned).startswith("SetupError base.repo: test/tiny cannot be downloaded from")
    server.faults.clear()
    repo.set(gated=True)
    assert said(pinned).startswith("SetupError base.repo: test/tiny is gated; accept its licence at")
    repo.set(private=True)
    assert said(pinned).startswith("InputError base.repo: test/tiny does not exist, or is private or gated")


PARAMS = HubBase(source="hub", repo="meta-llama/Llama-3.1-8B-Instruct", revision=COMMIT, license="llama3.1")
RESPONSE = httpx2.Response(403, request=httpx2.Request("GET", "https://huggingface.co"))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.GatedRepoError("Cannot access gated repo\nfor url", response=RESPONSE), SetupError),
        (errors.RepositoryNotFoundError("401\nClient Error", response=RESPONSE), InputError),
        (errors.RevisionNotFoundError("404", response=RESPONSE), InputError),
        (errors.HfHubHTTPError("500\n\nServer Error", response=RESPONSE), SetupError),
        (errors.LocalEntryNotFoundError("not in the cache\nand no network"), SetupError),
        (errors.OfflineModeIsEnabled("offline"), SetupError),
        (httpx2.ConnectError("refused"), SetupError),
        (httpx2.ReadTimeout("late"), SetupError),
        (OSError(28, "No space left on device"), SetupError),
    ],
)
def test_every_error_of_the_client_is_one_line(error: Exception, kind: type[KarmaError]) -> None:
    explained = explain(error, PARAMS)
    assert type(explained) is kind
    assert "\n" not in str(explained)
    assert "https://huggingface.co/meta-llama/Llama-3.1-8B-Instruct" in str(explained)
    assert "HF_TOKEN" in str(explained) or isinstance(error, errors.RevisionNotFoundError)


@pytest.mark.parametrize("revision", ["main", "v1.0", "A" * 40, "a" * 39, "a" * 41, "a" * 40 + "\n"])
def test_an_unpinned_revision_is_refused(revision: str) -> None:
    value = {"source": "hub", "repo": "test/tiny", "revision": revision, "license": "mit"}
    with pytest.raises(InputError, match="revision"):
        parse_parameters({"base": value}, BaseSection, where=json.dumps("params.yaml"))
