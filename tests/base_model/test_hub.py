"""The hub's real client against a local server, and against no server."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import errors

from karma_electric.base_model.hub import explain
from karma_electric.base_model.params import BaseSection, HubBase
from karma_electric.errors import InputError, KarmaError, SetupError
from karma_electric.integrity import verify_manifest
from karma_electric.parameters import parse_parameters
from tests.base_model.hub_server import COMMIT, hub

REPOSITORY = Path(__file__).parent.parent.parent
SCRIPT = """
import sys
from pathlib import Path
from karma_electric.base_model.make import make_base
from karma_electric.base_model.params import HubBase
from karma_electric.errors import KarmaError
params = HubBase(source="hub", repo="test/tiny", revision="a" * 40, license="mit")
try:
    make_base(params, Path(sys.argv[1]))
except KarmaError as error:
    print(type(error).__name__, error)
"""


def make_in_process(output: Path, endpoint: str, home: Path) -> str:
    """Run make_base with another hub address, which the client reads when it is imported; what it printed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"PYTHONPATH": str(REPOSITORY)}
    finished = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(output)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    return finished.stdout


@pytest.fixture
def repo(tiny_llama: Path, tmp_path: Path) -> Path:
    """The tiny model as a repo, beside files that must not be fetched."""
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "repo"))
    (folder / "manifest.json").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "modeling.py").write_text("raise SystemExit")
    return folder


def test_a_repo_becomes_links_and_a_manifest(repo: Path, tmp_path: Path) -> None:
    output, home = tmp_path / "models/base", tmp_path / "home"
    with hub(repo) as server:
        assert make_in_process(output, server.url, home) == ""
    identity = verify_manifest(output)["identity"]
    assert identity == {
        "source": "hub",
        "repo": "test/tiny",
        "revision": COMMIT,
        "license": "mit",
        "architecture": "LlamaForCausalLM",
        "hidden_size": 256,
        "n_layers": 4,
        "vocab_size": identity["vocab_size"],
    }
    linked = {path.name for path in output.iterdir() if path.is_symlink()}
    assert linked == {path.name for path in repo.iterdir()} - {"pytorch_model.bin", "modeling.py"}
    assert linked == {name for name in linked if (output / name).resolve().is_relative_to(home)}
    assert all((output / name).read_bytes() == (repo / name).read_bytes() for name in linked)
    assert not list(home.rglob("modeling.py"))
    assert str(tmp_path) not in (output / "manifest.json").read_text()

    before = (output / "manifest.json").read_bytes()  # again, from the cache alone
    shutil.rmtree(output)
    assert make_in_process(output, "http://127.0.0.1:1", home) == ""
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


@pytest.mark.parametrize(
    ("refusal", "start"),
    [
        ((403, "GatedRepo", "/test/tiny/resolve/"), "SetupError base.repo: test/tiny is gated; accept its licence at"),
        ((401, "RepoNotFound", "/"), "InputError base.repo: test/tiny does not exist, or is private or gated"),
        ((404, "RevisionNotFound", "/"), "InputError base.revision: test/tiny has no commit aaaa"),
        ((500, "", "/"), "SetupError base.repo: test/tiny cannot be downloaded from"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    repo: Path, tmp_path: Path, refusal: tuple[int, str, str], start: str
) -> None:
    with hub(repo, refusal=refusal) as server:
        said = make_in_process(tmp_path / "base", server.url, tmp_path / "home")
    assert said.startswith(start)
    assert said.count("\n") == 1
    assert "https://huggingface.co/test/tiny" in said
    assert not (tmp_path / "base").exists()


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
