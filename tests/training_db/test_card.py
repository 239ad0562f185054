"""The dataset card says what the database and the patches hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from karma_electric.errors import InputError
from karma_electric.training_db.card.counts import Layer, count_for_card
from karma_electric.training_db.card.render import render_dataset_card, size_category
from karma_electric.training_db.selection import Selection
from tests.cli.running import ROOT
from tests.training_db.rows import accepted, import_rows, row, write_rows

SETS = {"v6": "data/t.db", "v7": "data/sets/v6.jsonl", "v8": "data/sets/v7.jsonl"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    flagged = accepted("flagged", "One. Two. Three.", template_flag="opening")
    import_rows(tmp_path / "t.db", [accepted("a", "Two words."), accepted("b", source="letters"), flagged, row("c")])
    (tmp_path / "patches" / "v6").mkdir(parents=True)
    write_rows(tmp_path / "patches" / "v7" / "theme.jsonl", [row("d"), row("e")])
    write_rows(tmp_path / "patches" / "v8" / "theme.jsonl", [row("f"), {"op": "replace", **row("d")}])
    write_rows(tmp_path / "patches" / "v8" / "gone.jsonl", [{"op": "retire", "id": "a"}, {"op": "retire", "id": "e"}])
    return tmp_path


def test_everything_is_counted(project: Path) -> None:
    selection = Selection(exclude_templates=True)
    found = count_for_card(project / "t.db", project / "patches", sets=SETS, selection=selection)
    assert found.by_source == {"letters": 1, "test": 2}
    assert (found.lengths.shortest_words, found.lengths.median_words, found.lengths.longest_words) == (2, 2, 3)
    assert found.lengths.multi_turn == 0
    assert found.layers == [
        Layer("v6", 0, 0, 0, {}), Layer("v7", 2, 0, 0, {"theme": 2}), Layer("v8", 1, 1, 2, {"gone": 2, "theme": 2})
    ]  # fmt: skip
    assert found.sets == {"v6": 2, "v7": 4, "v8": 3}


def test_the_card_states_them(project: Path) -> None:
    card = render_dataset_card(
        count_for_card(project / "t.db", project / "patches", sets=SETS, selection=Selection(exclude_templates=True))
    )
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    metadata = yaml.safe_load(front)
    assert (metadata["license"], metadata["language"], metadata["size_categories"]) == ("mit", ["en"], ["n<1K"])
    assert [config["config_name"] for config in metadata["configs"]] == ["v6", "v7", "v8"]
    assert "holds 4 examples, 3 of them accepted" in body
    assert "| greeting | 3 | 1 |" in body
    assert "| v8 | 3 | 1 | 1 | 2 | gone 2, theme 2 |" in body
    assert "| source letters | 1 |" in body


def test_a_set_on_nothing_is_named(project: Path) -> None:
    with pytest.raises(InputError, match=r"the set 'v7' is layered on 'data/sets/v9\.jsonl'"):
        count_for_card(
            project / "t.db",
            project / "patches",
            sets={"v6": "data/t.db", "v7": "data/sets/v9.jsonl"},
            selection=Selection(),
        )


@pytest.mark.parametrize(("rows", "name"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (2_000_000, "n>1M")])
def test_sizes_have_the_hubs_names(rows: int, name: str) -> None:
    assert size_category(rows) == name


def test_the_sets_of_the_card_are_those_that_are_exported(tmp_path: Path) -> None:
    from karma_electric.training_db.export import export_set
    from karma_electric.training_db.params import ExportParams

    recipe = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
    params = ExportParams.model_validate(recipe["export"])
    data = ROOT / "data"
    counted = count_for_card(
        data / "training.db", data / "patches", sets=recipe["sets"], selection=params.selection()
    ).sets
    exported = {}
    for name, source in recipe["sets"].items():
        export_set(
            data / "training.db" if source.endswith(".db") else tmp_path / Path(source).name,
            patches=data / "patches" / name,
            suites=data / "suites",
            persona_prompt=data / "prompts" / "persona.txt",
            evaluator_prompt=data / "prompts" / "evaluator.txt",
            output=tmp_path / f"{name}.jsonl",
            manifest=tmp_path / f"{name}.manifest.json",
            params=params,
        )
        exported[name] = json.loads((tmp_path / f"{name}.manifest.json").read_text("utf-8"))["rows"]
    assert counted == exported
