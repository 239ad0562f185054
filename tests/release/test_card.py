"""Every number of the card is bound to a key of a file, and a changed one is seen."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from karma_electric.canonical import read_json_object, readable_json
from karma_electric.errors import InputError, IntegrityError
from karma_electric.release.build import build_release
from karma_electric.release.card import TEMPLATE, Card, render_card, verify_card
from karma_electric.release.card_numbers import FILTERS, Fact, Marker
from karma_electric.release.manifest import (
    describe_artifact,
    manifest_with,
    read_release_manifest,
    write_release_manifest,
)
from tests.release.release_files import PARAMS, make_inputs


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    build_release(make_inputs(folder / "project"), folder / "release", params=PARAMS)
    return folder / "release"


@pytest.fixture
def release(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "release")


def test_the_card_is_made_again_from_the_folder_alone(release: Path) -> None:
    card = verify_card(release)
    assert card.text == (release / "README.md").read_text("utf-8")
    lines = card.text.split("\n")
    for binding in card.bindings:
        start = binding.column - 1
        assert lines[binding.line - 1][start : start + len(binding.text)] == binding.text


def test_every_digit_of_the_card_is_in_a_binding_or_a_name(release: Path) -> None:
    card = verify_card(release)
    lines = card.text.split("\n")
    for binding in card.bindings:
        start = binding.column - 1
        line = lines[binding.line - 1]
        lines[binding.line - 1] = line[:start] + " " * len(binding.text) + line[start + len(binding.text) :]
    assert set(re.findall(r"\S*\d\S*", "\n".join(lines))) == {"NF4", "SHA-256"}


def test_changed_numbers_are_seen(release: Path) -> None:
    change_numbers(release, at_most=30)


@pytest.mark.long
def test_every_changed_number_is_seen(release: Path) -> None:
    change_numbers(release, at_most=None)


def change_numbers(release: Path, *, at_most: int | None) -> None:
    """Make each run of digits of the card another number, or so many of them, and verify."""
    path = release / "README.md"
    text = path.read_text("utf-8")
    numbers = list(re.finditer(r"\d+", text))
    assert len(numbers) > 200
    if at_most is not None:
        numbers = random.Random(0).sample(numbers, at_most)
    for match in numbers:
        digit = str((int(match[0][-1]) + 1) % 10)
        path.write_text(text[: match.end() - 1] + digit + text[match.end() :], "utf-8")
        with pytest.raises(IntegrityError, match="not what its sources say") as caught:
            verify_card(release)
        assert f"README.md:{text.count(chr(10), 0, match.start()) + 1}:" in str(caught.value)
    path.write_text(text, "utf-8")
    verify_card(release)


def test_an_error_names_the_file_and_the_key(release: Path) -> None:
    path = release / "README.md"
    text = path.read_text("utf-8")
    path.write_text(text.replace("| persona | 27.5%", "| persona | 72.5%"), "utf-8")
    with pytest.raises(IntegrityError, match=r"axis_stats_v8\.json firing_rates\.persona\.rate says '27\.5%'"):
        verify_card(release)


@pytest.mark.parametrize("change", ["", "\n", "one line more\n"])
def test_a_card_of_another_length_is_refused(release: Path, change: str) -> None:
    path = release / "README.md"
    text = path.read_text("utf-8")
    path.write_text(text + change if change else text[:-1], "utf-8")
    with pytest.raises(IntegrityError, match="not what its sources say"):
        verify_card(release)
    path.unlink()
    with pytest.raises(IntegrityError, match="cannot be read"):
        verify_card(release)


def json_numbers(card: Card) -> list[tuple[str, str]]:
    """(file, key) of the numbers of JSON files, each once; of a manifest's name or hash the card prints the value."""
    bound = {(b.file, b.key) for b in card.numbers if b.file.endswith(".json")}
    return sorted(bound)


def changed(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        raise TypeError(value)
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value[:-1] + ("0" if value[-1] != "0" else "1")
    return [*value, "v99"] if isinstance(value, list) else {**value, "added": 1}


def test_a_changed_source_is_seen_by_its_hash_and_in_the_card(release: Path) -> None:
    """Numbers of each metrics file, the axis, the recipe and the gate: with the old hash, then with a new one."""
    draw = random.Random(0)
    by_file: dict[str, list[str]] = {}
    for file, key in json_numbers(verify_card(release)):
        by_file.setdefault(file, []).append(key)
    assert {"gate.json", "reproduce.json", "axis_stats_v8.json", "metrics/acap.json"} <= by_file.keys()
    assert {"metrics/train/v6.json", "metrics/quantize/Q4_K_M.json", "metrics/interpolate.json"} <= by_file.keys()
    del by_file["manifest.json"]  # verified by its own test: it has no hash
    for file, keys in by_file.items():
        path = release / file
        kept, manifest = path.read_bytes(), (release / "manifest.json").read_bytes()
        for key in draw.sample(keys, min(2, len(keys))):
            value = json.loads(kept)
            if not put(value, key.split(".")):
                continue  # the name of a check, not a value
            path.write_text(readable_json(value), "utf-8")
            with pytest.raises(IntegrityError, match=r"not as manifest\.json names it"):
                verify_card(release)
            entry = describe_artifact(path, path=file, stage="made")
            write_release_manifest(release, manifest_with(read_release_manifest(release), [entry]))
            with pytest.raises(IntegrityError, match="not what its sources say"):
                verify_card(release)
            path.write_bytes(kept)
            (release / "manifest.json").write_bytes(manifest)
    verify_card(release)


def put(value: Any, parts: list[str]) -> bool:
    """Change what the key names; False for one that names a mapping."""
    for part in parts[:-1]:
        value = value[int(part)] if isinstance(value, list) else value[part]
    last: Any = int(parts[-1]) if isinstance(value, list) else parts[-1]
    if isinstance(value[last], dict | list):
        return False
    value[last] = changed(value[last])
    return True


def test_sizes_and_hashes_of_the_manifest_are_bound(release: Path) -> None:
    for index, entry in enumerate(read_release_manifest(release)["files"]):
        if not entry["path"].endswith(".gguf"):
            continue
        for key, value in (("size", entry["size"] + 1000), ("sha256", "0" * 64)):
            manifest = read_release_manifest(release)
            kept = (release / "manifest.json").read_bytes()
            manifest["files"][index][key] = value
            (release / "manifest.json").write_text(readable_json(manifest), "utf-8")
            with pytest.raises(IntegrityError, match=r"not what its sources say \(manifest\.json "):
                verify_card(release)
            (release / "manifest.json").write_bytes(kept)


def templates() -> Iterator[tuple[str, str]]:
    yield "It scores 95 of hundred.", "'95' is a number of no file"
    yield "Version v8 is best.", "'v8' is a number of no file"
    yield "Two\nlines\n| 7 |", "line 3 of the card: '7'"
    yield "{{ 12 }}", "'12' is a number of no file"
    yield "{{ gate.n }} and {{ gate.n + 1 }}", "unsupported operand"


@pytest.mark.parametrize(("template", "problem"), list(templates()))
def test_a_number_that_is_not_bound_fails_the_build(template: str, problem: str) -> None:
    import jinja2

    marker = Marker()
    environment = jinja2.Environment(finalize=marker.finalize)
    environment.filters.update(FILTERS)
    compiled = environment.from_string(template)
    with pytest.raises((InputError, TypeError), match=problem):
        marker.read(compiled.render(gate=Fact({"n": 12}, "gate.json")), "test")


def test_a_prose_number_in_the_real_template_fails_the_build(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import resources

    source = resources.files("karma_electric.release").joinpath("templates", TEMPLATE).read_text("utf-8")
    (release / "templates").mkdir()
    (release / "templates" / TEMPLATE).write_text(source.replace("from one to ten", "from 1 to 10"), "utf-8")
    monkeypatch.setattr(resources, "files", lambda package: release)
    with pytest.raises(InputError, match=r"line \d+ of the card: '1' is a number of no file"):
        render_card(release)


def test_a_value_with_a_bar_or_lines_stays_in_its_cell(release: Path) -> None:
    provenance = {"override": {"verdict": "fail", "reason": "a | b\n# A heading 7"}}
    (release / "provenance.json").write_text(json.dumps(provenance), "utf-8")
    text = render_card(release).text
    assert "Published because:\na \\| b # A heading 7\n" in text


def test_the_head_is_the_hubs(release: Path) -> None:
    head = yaml.safe_load((release / "README.md").read_text("utf-8").split("---\n")[1])
    gate = read_json_object(release / "gate.json")
    assert head["license"] == "apache-2.0"
    assert (head["base_model"], head["base_model_relation"]) == ("org/small", "finetune")
    assert (head["pipeline_tag"], head["library_name"]) == ("text-generation", "gguf")
    assert head["datasets"] == ["tiny-v6", "tiny-v8"]
    results = head["model-index"][0]["results"]
    assert head["model-index"][0]["name"] == "tiny-v8"
    assert [result["metrics"][0]["value"] for result in results] == [c["rate"] for c in gate["checks"].values()]
    assert all(result["dataset"]["type"] == "karma-electric-gate" for result in results)


def test_the_hubs_own_client_reads_the_card(release: Path) -> None:
    from huggingface_hub import ModelCard

    data = ModelCard.load(release / "README.md").data
    assert data.model_name == "tiny-v8"
    assert len(data.eval_results) == 13
