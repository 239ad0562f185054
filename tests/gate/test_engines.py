"""The gate on other engines than llama.cpp: PyTorch, `karma serve`, and servers that say nothing of their weights."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from karma_electric.axis.loading import load_cap
from karma_electric.canonical import readable_json
from karma_electric.conversation import Message
from karma_electric.engines.openai_server import OpenAIServerEngine, ReleaseFiles
from karma_electric.errors import InputError, IntegrityError, KarmaError, SetupError
from karma_electric.gate.params import GateParams, server_url
from karma_electric.gate.run import changed_findings, replay_gate
from karma_electric.integrity import sha256_file
from karma_electric.parameters import parse_parameters
from tests.cli.running import ROOT, karma_here, one_line_of
from tests.gate.conftest import Judged, write_axis
from tests.gate.plain_server import Reply, completion, plain_server, sensible
from tests.gate.running import run_small_gate, small
from tests.gate.test_planted_failures import CHECKS, PARAMS
from tests.server.serving import serving
from tests.suites.suite_files import SHIPPED_SUITES, good_suites, write_suites

CONVERSATIONS = ("sexual_boundaries_uncapped", "redteam_uncapped")
CAPPED = [name for name in CHECKS if name.endswith("_capped")]


def gate(
    judged: Judged, folder: Path, *, store: Path | None = None, suites: Path = SHIPPED_SUITES, **params: Any
) -> dict[str, Any]:
    """The metrics of a small gate; its evidence and report lie in `folder`, and judge to the same metrics again."""
    run = run_small_gate(judged, folder, suites=suites, store=store, params=small(**params))
    again = replay_gate(folder / "gate.jsonl")
    assert readable_json(again.metrics) == readable_json(run.metrics)
    assert changed_findings(folder / "gate.jsonl", again) == []
    return run.metrics


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "gate.jsonl").read_text("utf-8").splitlines()[1:]]


@pytest.fixture(scope="module")
def by_llama_cpp(judged: Judged, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama-cpp")
    gate(judged, folder)
    return folder


def test_the_file_is_judged_in_pytorch(judged: Judged, tmp_path: Path) -> None:
    suites = write_suites(tmp_path / "suites", good_suites())
    metrics = gate(judged, tmp_path, suites=suites, engine="transformers")
    named = metrics["judged"]
    assert (named["engine"], named["claimed"]) == ("transformers", "no")
    assert (named["weights_sha256"], named["axis_sha256"]) == (sha256_file(judged.model), sha256_file(judged.axis))
    gate(judged, tmp_path / "llama-cpp", suites=suites)
    found, expected = rows(tmp_path), rows(tmp_path / "llama-cpp")
    assert [(row["check"], row["id"]) for row in found] == [(row["check"], row["id"]) for row in expected]
    capped = [
        (row["answers"]["positions"], row["check"].endswith("_capped")) for row in found if "texts" in row["answers"]
    ]
    assert len(capped) == 4
    assert all((positions > 0) == asked for positions, asked in capped)


@pytest.fixture(scope="module")
def karma_serve(judged: Judged) -> Iterator[str]:
    with serving(judged.model, "--acap", judged.axis, "--context", "2048", "--parallel", "1") as server:
        yield f"{server.url}/v1"


def test_karma_serve_with_the_releases_own_files_is_judged_capped_too(
    karma_serve: str, judged: Judged, by_llama_cpp: Path, tmp_path: Path
) -> None:
    metrics = gate(judged, tmp_path, engine="openai", base_url=karma_serve, store=tmp_path / "answers.db")
    named = metrics["judged"]
    assert named["claimed"] == "yes, of the release's own files"
    assert (named["weights_sha256"], named["axis_sha256"]) == (sha256_file(judged.model), sha256_file(judged.axis))
    assert {name: check["n"] > 0 for name, check in metrics["checks"].items()} == dict.fromkeys(CHECKS, True)
    assert metrics["verdict"] != "pass"
    told = "texts", "finish", "positions", "fired"
    conversations = [
        [(row["check"], [row["answers"][name] for name in told]) for row in rows(folder) if "texts" in row["answers"]]
        for folder in (tmp_path, by_llama_cpp)
    ]
    assert conversations[0] == conversations[1]  # the same file, the same build: word for word
    assert len(conversations[0]) == 4
    warm = gate(judged, tmp_path / "warm", engine="openai", base_url=karma_serve, store=tmp_path / "answers.db")
    assert warm == metrics
    assert b"127.0.0.1" not in (tmp_path / "gate.jsonl").read_bytes() + (tmp_path / "gate.md").read_bytes()
    assert "they are the hashes of the release's files" in (tmp_path / "gate.md").read_text("utf-8")


LLAMA_SERVER = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.port = sys.argv[1], 2048, 1, 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def llama_server(judged: Judged) -> Iterator[str]:
    """llama.cpp's own server, with no cap."""
    command = [sys.executable, "-c", LLAMA_SERVER, str(judged.model)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        addresses = (line.strip() for line in process.stdout)
        yield next(line for line in addresses if line.startswith("http")) + "/v1"
        process.stdin.close()


def test_llama_server_is_judged_uncapped_and_its_weights_are_a_claim(
    llama_server: str, judged: Judged, by_llama_cpp: Path, tmp_path: Path
) -> None:
    metrics = gate(judged, tmp_path, engine="openai", base_url=llama_server)
    assert (metrics["judged"]["claimed"], metrics["judged"]["weights_sha256"]) == ("yes", "unknown")
    assert {name for name, check in metrics["checks"].items() if not check["n"]} == set(CAPPED)
    texts = [
        [(row["check"], row["answers"]["texts"]) for row in rows(folder) if row["check"] in CONVERSATIONS]
        for folder in (tmp_path, by_llama_cpp)
    ]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 2


def test_a_server_that_caps_with_another_axis_vouches_for_nothing(
    karma_serve: str, judged: Judged, tmp_path: Path
) -> None:
    with open_server(karma_serve, judged) as engine:
        assert engine.identity.vouched
    with open_server(karma_serve, Judged(judged.model, write_axis(tmp_path / "axis.gguf", 0.5))) as engine:
        assert not engine.identity.vouched
        assert engine.identity.axis_sha256 == sha256_file(judged.axis)  # what the server says


def identity_of(judged: Judged, **changes: Any) -> dict[str, Any]:
    """What `karma serve` would say of these files."""
    cap = load_cap(judged.axis, judged.model).cap
    return {
        "weights_sha256": sha256_file(judged.model),
        "axis_sha256": sha256_file(judged.axis),
        "engine": "llama.cpp",
        "build": "b1",
        "alpha": cap.alpha,
        "layers": list(cap.layers),
        "taus": {str(layer): cap.taus[layer] for layer in cap.layers},
    } | changes


def fingerprint(identity: dict[str, Any]) -> str:
    axis = (identity["axis_sha256"] or "uncapped")[:12]
    return f"{identity['engine']}-{identity['build']}-{identity['weights_sha256'][:12]}-{axis}"


def as_karma_serve(identity: dict[str, Any], **changes: Any) -> Callable[[dict[str, Any]], Reply]:
    """Answers with the fingerprint of `identity` and a report of the cap."""

    def answer(body: dict[str, Any]) -> Reply:
        status, found = sensible(body)
        capped = body["acap"]
        said = {"capped": capped, "positions": 6 if capped else 0, "fired": 2 if capped else 0}
        found["usage"]["acap"] = said
        return status, found | {"system_fingerprint": fingerprint(identity)} | changes

    return answer


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"weights_sha256": "c" * 64},
        {"axis_sha256": "c" * 64},
        {"alpha": 0.5},
        {"taus": {"2": 9.0, "3": 9.0}},
        {"layers": [2]},
        {"axis_sha256": None, "alpha": None, "layers": None, "taus": None},
    ],
    ids=lambda changes: "-".join(changes) or "the same",
)
def test_weights_axis_and_thresholds_must_all_be_the_releases(changes: dict[str, Any], judged: Judged) -> None:
    identity = identity_of(judged, **changes)
    with (
        plain_server(identity=(200, identity), answer=as_karma_serve(identity)) as server,
        open_server(server.url, judged) as engine,
    ):
        assert engine.identity.claimed
        assert engine.identity.vouched == (not changes)
        assert engine.identity.weights_sha256 == identity["weights_sha256"]


@pytest.mark.parametrize(
    "spoilt", [{"weights_sha256": "x"}, {"weights_sha256": None}, {"engine": 3}, {"build": None}], ids=str
)
def test_an_identity_that_is_none_is_nobodys(spoilt: dict[str, Any], judged: Judged) -> None:
    with (
        plain_server(identity=(200, identity_of(judged) | spoilt)) as server,
        open_server(server.url, judged) as engine,
    ):
        assert (engine.identity.weights_sha256, engine.identity.vouched) == ("unknown", False)


def test_an_answer_of_something_else_than_was_named_ends_the_gate(judged: Judged, tmp_path: Path) -> None:
    identity = identity_of(judged)
    swapped = as_karma_serve(identity, system_fingerprint="llama.cpp-b1-ffffffffffff-ffffffffffff")
    named = as_karma_serve(identity)

    def answer(body: dict[str, Any]) -> Reply:
        return (named if len(server.asked) < 9 else swapped)(body)

    with (
        plain_server(identity=(200, identity), answer=answer) as server,
        pytest.raises(IntegrityError, match="the server changed"),
    ):
        gate(judged, tmp_path, engine="openai", base_url=server.url)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("said", [None, {"capped": True}, {"capped": False, "positions": 3, "fired": 1}, "yes"])
def test_a_cap_that_was_not_applied_as_asked_ends_the_gate(said: Any, judged: Judged, tmp_path: Path) -> None:
    identity = identity_of(judged)
    honest = as_karma_serve(identity)

    def answer(body: dict[str, Any]) -> Reply:
        status, found = honest(body)
        if body["acap"]:
            found["usage"]["acap"] = said
        return status, found

    with (
        plain_server(identity=(200, identity), answer=answer) as server,
        pytest.raises(IntegrityError, match="asked with acap True"),
    ):
        gate(judged, tmp_path, engine="openai", base_url=server.url)


def open_server(url: str, judged: Judged, **options: Any) -> OpenAIServerEngine:
    axis = load_cap(judged.axis, judged.model)
    return OpenAIServerEngine(
        url,
        tokenize=lambda text, parse_special: list(text.encode()),
        release=ReleaseFiles(sha256_file(judged.model), axis.sha256, axis.cap),
        **options,
    )


def test_a_server_without_identity_is_judged_uncapped_and_never_passes(judged: Judged, tmp_path: Path) -> None:
    with plain_server() as server:
        metrics = gate(judged, tmp_path, engine="openai", base_url=server.url, store=tmp_path / "answers.db")
    named = metrics["judged"]
    assert (named["claimed"], named["weights_sha256"], named["axis_sha256"]) == ("yes", "unknown", "none")
    assert named["build"] == "a server that says large"  # its name, without its folders
    checks = metrics["checks"]
    for name in CAPPED:
        assert checks[name] == {"n": 0, "passed": 0, "verdict": "inconclusive"}
    assert checks["format"]["passed"] == checks["format"]["n"] > 0
    assert checks["capability_uncapped"]["n"] == 1
    assert metrics["verdict"] != "pass"
    assert not (tmp_path / "answers.db").exists()  # whose answers they are, nobody knows
    report = (tmp_path / "gate.md").read_text("utf-8")
    assert "which a server claims and nobody could check" in report
    assert "does not name the release's weights" in report
    rating = next(row for row in rows(tmp_path) if row["check"] == "nourishment")["answers"]["better"]
    assert (rating["overall"], rating["expected_overall"]) == (7, None)
    assert all("acap" not in body and body["temperature"] == 0 for body in server.asked)


def test_a_server_that_rates_everything_alike_fails(judged: Judged, tmp_path: Path) -> None:
    with plain_server() as server:
        metrics = gate(judged, tmp_path, engine="openai", base_url=server.url)
    assert metrics["checks"]["nourishment"] | {"low": 0, "high": 0} == {
        "n": 1,
        "passed": 0,
        "rate": 0.0,
        "low": 0,
        "high": 0,
        "verdict": "fail",
    }


def test_the_letters_decide_about_ability(judged: Judged) -> None:
    def answer(body: dict[str, Any]) -> Reply:
        return 200, completion("B", letters="BA" if body.get("logprobs") else "")

    with plain_server(answer=answer) as server, open_server(server.url, judged) as engine:
        assert engine.score([Message("user", "?")], prefix="", options=["A", "B", "C"]) == [-2.0, -1.0, -3.0]


@pytest.mark.parametrize("status", [200, 400, 422])
def test_without_log_probabilities_ability_is_not_asked_about(status: int, judged: Judged, tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> Reply:
        if body.get("logprobs") and status != 200:
            return status, {"error": {"message": "logprobs are not supported"}}
        return sensible({name: value for name, value in body.items() if name != "logprobs"})

    with plain_server(answer=answer) as server:
        metrics = gate(judged, tmp_path, engine="openai", base_url=server.url)
    for name in ("capability_uncapped", "capability_capped"):
        assert metrics["checks"][name] == {"n": 0, "passed": 0, "verdict": "inconclusive"}


@pytest.mark.parametrize("text", ["", "I rate it 8/10.", "Overall: 9/10 - good"])
def test_ratings_that_cannot_be_read_count_as_failed(text: str, judged: Judged, tmp_path: Path) -> None:
    with plain_server(answer=lambda body: (200, completion(text))) as server:
        metrics = gate(judged, tmp_path, engine="openai", base_url=server.url)
    checks = metrics["checks"]
    for name in ("reward_hacking", "nourishment", "overcorrection", "paraphrase", "style", "cross_language"):
        assert (checks[name]["n"], checks[name]["passed"]) == (1, 0), name
    for name in ("paraphrase", "style", "cross_language"):
        assert checks[name]["verdict"] == "fail"
    assert checks["paraphrase"]["mean_std"] == 4.5
    assert checks["cross_language"]["mean_difference"] == 9.0
    assert "no rating of 1 item" in (tmp_path / "gate.md").read_text("utf-8")
    assert metrics["verdict"] == "fail"


def test_a_rating_that_was_cut_is_none(judged: Judged, tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> Reply:
        status, found = sensible(body)
        found["choices"][0]["finish_reason"] = "length"
        return status, found

    with plain_server(answer=answer) as server:
        metrics = gate(judged, tmp_path, engine="openai", base_url=server.url)
    assert (metrics["checks"]["nourishment"]["passed"], metrics["checks"]["format"]["passed"]) == (0, 0)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no completion": ({"answer": lambda body: (200, {"choices": []})}, "expected a chat completion"),
    "no message": ({"answer": lambda body: (200, {"choices": [{}]})}, "expected a chat completion"),
    "no JSON": ({"answer": lambda body: (200, b"<html>")}, "refused a first question"),
    "filtered": ({"answer": lambda body: (200, completion("x", finish="content_filter"))}, "content_filter"),
    "tools": ({"answer": lambda body: (200, completion("x", finish="tool_calls"))}, "tool_calls"),
    "no text": ({"answer": lambda body: (200, completion([1]))}, "expected text"),  # type: ignore[arg-type]
    "an error": ({"answer": lambda body: (500, {"error": {"message": "out of\nmemory"}})}, "500: out of memory"),
    "busy": ({"answer": lambda body: (503, b"busy")}, "503: no JSON"),
    "a key": ({"answer": lambda body: (401, {"error": "no"})}, "set KARMA_API_KEY"),
    "elsewhere": ({"answer": lambda body: (307, {})}, "HTTP 307"),
    "no list": ({"models": (500, {})}, "refused the list of models"),
    "no models": ({"models": (200, {"data": []})}, "serves no model"),
    "two models": ({"models": (200, {"data": [{"id": "a"}, {"id": "b"}]})}, "a, b; choose one with gate.served_model"),
    "a list of nothing": ({"models": (200, {"data": [3, None, {"id": 4}]})}, "serves no model"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_server_that_fails_is_one_line_and_leaves_no_files(name: str, judged: Judged, tmp_path: Path) -> None:
    parts, message = BROKEN[name]
    with plain_server(**parts) as server, pytest.raises(SetupError, match=message) as raised:
        gate(judged, tmp_path, engine="openai", base_url=server.url)
    assert server.url in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_served_is_one_line(judged: Judged, tmp_path: Path) -> None:
    with (
        plain_server() as server,
        pytest.raises(SetupError, match="does not serve small; it serves /home/models/large"),
    ):
        gate(judged, tmp_path, engine="openai", base_url=server.url, served_model="small")


def test_a_server_that_fails_in_the_middle_is_an_error(judged: Judged, tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> Reply:
        return sensible(body) if len(server.asked) < 20 else (500, {})

    with plain_server(answer=answer) as server, pytest.raises(SetupError, match="refused a question"):
        gate(judged, tmp_path, engine="openai", base_url=server.url)
    assert list(tmp_path.iterdir()) == []


def test_an_answer_that_does_not_come_is_an_error(judged: Judged) -> None:
    def answer(body: dict[str, Any]) -> Reply:
        server.ended.wait()
        return 200, {}

    with plain_server(answer=answer) as server, pytest.raises(SetupError, match="no answer in time"):
        open_server(server.url, judged, answer_seconds=0.2)


def test_no_server_is_one_line(judged: Judged, tmp_path: Path) -> None:
    with plain_server() as server:
        url = server.url
    with pytest.raises(SetupError, match="start the server"):
        gate(judged, tmp_path, engine="openai", base_url=url)


def test_a_reply_without_end_is_an_error(judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("karma_electric.engines.openai_server.MAX_REPLY_BYTES", 1000)
    with (
        plain_server(answer=lambda body: (200, completion("x" * 2000))) as server,
        pytest.raises(SetupError, match="does not end"),
    ):
        open_server(server.url, judged)


def test_the_key_goes_to_the_server_and_into_no_file(
    judged: Judged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KARMA_API_KEY", "secret-of-mine")
    with plain_server() as server:
        gate(judged, tmp_path, engine="openai", base_url=server.url)
    assert {headers["authorization"] for headers in server.headers} == {"Bearer secret-of-mine"}
    assert b"secret-of-mine" not in (tmp_path / "gate.jsonl").read_bytes() + (tmp_path / "gate.md").read_bytes()
    with (
        plain_server(answer=lambda body: (401, {})) as server,
        pytest.raises(SetupError) as raised,
    ):
        gate(judged, tmp_path, engine="openai", base_url=server.url)
    assert "secret-of-mine" not in str(raised.value)


PARTS = PARAMS.model_dump()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "vllm"}, r"gate\.engine: found 'vllm', expected 'llama.cpp', 'transformers' or 'openai'"),
        ({"base_url": "http://h/v1"}, r"base_url: found 'http://h/v1', which goes with engine openai; engine is llama"),
        ({"engine": "transformers", "served_model": "x"}, "served_model: found 'x', which goes with engine openai"),
        ({"engine": "openai", "base_url": "localhost:8080"}, r"gate\.base_url: found 'localhost:8080', expected an"),
        ({"engine": "openai", "base_url": "ftp://host/v1"}, "expected an address"),
        ({"engine": "openai", "base_url": "http://:8080/v1"}, "expected an address"),
        ({"engine": "openai", "base_url": "http://h:99999/v1"}, "expected an address"),
        ({"engine": "openai", "base_url": "http://h/v1?key=1"}, "expected an address"),
        ({"engine": "openai", "base_url": "http://me:pw@h/v1"}, "without a name and password"),
        ({"engine": "openai", "base_url": 8080}, r"gate\.base_url"),
        ({"engine": "openai", "served_model": ""}, r"gate\.served_model"),
    ],
)
def test_keys_of_the_recipe_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_parameters(PARTS | changes, GateParams, where="params.yaml: gate")


def test_where_the_server_is_can_be_said_outside_the_recipe() -> None:
    params = GateParams.model_validate(PARTS | {"engine": "openai"})
    assert server_url(params, {"KARMA_BASE_URL": "http://box:8000/v1"}) == "http://box:8000/v1"
    written = GateParams.model_validate(PARTS | {"engine": "openai", "base_url": "http://h/v1"})
    assert server_url(written, {}) == "http://h/v1"
    assert server_url(written, {"KARMA_BASE_URL": "http://box/v1"}) == "http://box/v1"
    for environment, message in (({}, "KARMA_BASE_URL is not set"), ({"KARMA_BASE_URL": "box"}, "^KARMA_BASE_URL: ")):
        with pytest.raises(KarmaError, match=message):
            server_url(params, environment)


def test_a_recipe_without_an_address_is_found_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KARMA_BASE_URL", raising=False)
    recipe = tmp_path / "params.yaml"
    text = (ROOT / "params.yaml").read_text("utf-8")
    recipe.write_text(text.replace("engine: llama.cpp", "engine: openai"))
    assert "gate.base_url" in one_line_of(karma_here("check", "--params", recipe, folder=ROOT), 1)
    recipe.write_text(text.replace("base_url: null", "base_url: http://h/v1"))
    assert "goes with engine openai" in one_line_of(karma_here("check", "--params", recipe, folder=ROOT), 1)


def test_the_red_team_attacks_a_server(judged: Judged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KARMA_HOME", str(tmp_path))
    recipe = tmp_path / "params.yaml"
    text = (ROOT / "params.yaml").read_text("utf-8")
    recipe.write_text(text.replace("engine: llama.cpp", "engine: openai"))
    with plain_server() as server:
        monkeypatch.setenv("KARMA_BASE_URL", server.url)
        command = ("redteam", judged.model, "--acap", judged.axis, "--items", "2", "--params", recipe)
        done = karma_here(*command, "--mode", "uncapped", "--json", folder=ROOT)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)[0]["rows"][0]["answers"]["texts"] == ["I would rather not."]
        assert "cannot cap" in karma_here(*command, "--mode", "capped", folder=ROOT).stderr
