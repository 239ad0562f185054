from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from karma_electric.errors import InputError
from karma_electric.parameters import MAX_RECIPE_BYTES, parse_parameters, read_yaml
from karma_electric.recipe import Recipe, read_recipe
from tests.cli.running import ROOT, karma, one_line_of

SHIPPED = (ROOT / "params.yaml").read_text("utf-8")
Edit = Callable[[str], str | bytes]


def swap(old: str, new: str) -> Edit:
    """An edit of the shipped recipe, which must hold `old`."""

    def edit(text: str) -> str:
        assert text.count(old) >= 1, f"params.yaml does not hold {old!r}"
        return text.replace(old, new, 1)

    return edit


def line_of(text: str) -> int:
    """The number of the first line of the shipped recipe that starts with `text`."""
    return next(number for number, line in enumerate(SHIPPED.splitlines(), start=1) if line.startswith(text))


# name -> (edit, how the line starts, what it says besides)
WRONG: dict[str, tuple[Edit, str, str]] = {
    "an unknown key": (swap("  epochs:", "  epoch:"), "train.epoch: unknown key", "did you mean 'epochs'?"),
    "a key too many": (swap("  epochs:", "  speed: 1\n  epochs:"), "train.speed: unknown key", "remove it"),
    "an unknown section": (swap("acap:", "cap:"), "cap: unknown key", "did you mean 'acap'?"),
    "a missing key": (swap("  rule: percentile", "  # rule"), "acap.rule: missing", "add it"),
    "a licence without its text": (
        swap("license: apache-2.0", "license: mit"), "base.license: found 'mit'", "texts are at hand for apache-2.0"
    ),
    "layers by an effect that is not measured": (
        swap("layer_choice: depth", "layer_choice: effect-size"), "acap.layer_choice: effect-size", "axis.effect_sizes"
    ),
    "alpha of letters": (swap("alpha: 0.3", "alpha: abc"), "interpolate.alpha: found 'abc'", "expected a valid number"),
    "alpha NaN": (swap("alpha: 0.3", "alpha: .nan"), "interpolate.alpha: found nan", "expected a finite number"),
    "alpha infinite": (swap("alpha: 0.3", "alpha: -.inf"), "interpolate.alpha: found -inf", "expected a finite number"),
    "alpha out of bounds": (swap("alpha: 0.3", "alpha: 30"), "interpolate.alpha: found 30", "less than or equal to 2"),
    "layers in disorder": (
        swap("layers: null", "layers: [28, 22]"), "acap.layers: found [28, 22]", "expected [first, last] with 1 <="
    ),
    "one layer": (swap("layers: null", "layers: [22]"), "acap.layers.1: missing", "add it"),
    "layer zero": (swap("layers: null", "layers: [0, 22]"), "acap.layers: found [0, 22]", "block 0 cannot be capped"),
    "a missing set": (swap("  to: v8", "  to: v9"), "interpolate.to: found 'v9'", "one of the sets v6, v7, v8"),
    "a missing parent set": (
        swap("data/sets/v7.jsonl", "data/sets/v5.jsonl"), "sets.v8: found 'data/sets/v5.jsonl'", "of another set"
    ),
    "a missing database": (
        swap("data/training.db", "data/none.db"), "sets.v6: found 'data/none.db'", "correct the path"
    ),
    "a parent set from elsewhere": (
        swap("data/sets/v7.jsonl", "old/v7.jsonl"), "sets.v8: found 'old/v7.jsonl'", "that no stage makes"
    ),
    "sets in a circle": (
        swap("data/training.db", "data/sets/v8.jsonl"), "sets.v6: the sets v6 -> v8 -> v7 -> v6", "go in a circle"
    ),
    "a set on itself": (
        swap("data/sets/v6.jsonl", "data/sets/v7.jsonl"), "sets.v7: the sets v7 -> v7", "go in a circle"
    ),
    "a set's name with a command": (
        swap("  v7: ", '  "v7; rm x": '), "sets: found the name 'v7; rm x'", "expected letters"
    ),
    "a set's path with a command": (
        swap("data/training.db", "data/$(rm x).db"), "sets.v6: found 'data/$(rm x).db'", "expected a path without"
    ),
    "one set twice in the blend": (swap("  to: v8", "  to: v6"), "interpolate: from and to are both 'v6'", "two sets"),
    "a rank that no method reads": (swap("  rank: null", "  rank: 8"), "interpolate: rank is 8", "set it to null"),
    "a GGUF file twice": (swap("[Q8_0, Q4_K_M]", "[Q8_0, Q8_0]"), "quantize.types: found ", "each type once"),
    "a judged file that is not made": (swap("judged: Q8_0", "judged: F16"), "quantize.judged: found 'F16'", "one of"),
    "a budget below a conversation": (
        swap("microbatch: 4096", "microbatch: 256"),
        "train: tokens_per_microbatch 256",
        "must be at least max_length 512",
    ),
    "a cut hash": (swap("sha256: b179", "sha256: "), "base.sha256: found 'c952", "pattern '^[0-9a-f]{64}$'"),
    "an unknown source": (swap("source: package", "source: disk"), "base: source is 'disk'", "expected one of"),
    "an unpinned hub model": (
        lambda text: text[: text.index("base:")]
        + "base: {source: hub, repo: meta-llama/Llama-3.1-8B, revision: main, license: llama3.1}\n\n"
        + text[text.index("export:") :],
        "base.revision: found 'main'", "pattern '^[0-9a-f]{40}$'"
    ),
    "a date without quotes": (swap('"2026-11-21"', "2026-11-21"), "release.date: found ", "expected text in quotes"),
    "a number for a date": (swap('"2026-11-21"', "20261121"), "release.date: found 20261121", "such as"),
    "a day that is none": (swap('"2026-11-21"', '"2026-02-30"'), "release.date: found '2026-02-30'", "valid date"),
    "a bare no": (swap("languages: [en, cs]", "languages: [en, no]"), "release.languages.1: found False", "string"),
}  # fmt: skip

# faults of the file as YAML: name -> (edit, what follows "params.yaml", what it says besides)
WRONG_FILES: dict[str, tuple[Edit, str, str]] = {
    "two equal keys": (
        swap("  epochs:", "  seed: 43\n  epochs:"),
        f":{line_of('  epochs:')}: not YAML",
        "the key 'seed' stands twice",
    ),
    "a cut-off file": (
        lambda text: text[: text.index("q_proj, k_proj") + 10],
        f":{line_of('    targets:')}: not YAML",
        "mend the line",
    ),
    "cut off between sections": (lambda text: text[: text.index("acap:")], ": acap: missing", "add it"),
    "a huge file": (lambda text: text + "#" * MAX_RECIPE_BYTES, ": larger than 1048576 bytes", "this is no recipe"),
    "a binary file": (lambda text: b"\x7fELF\x02\x01\x01\x00\xff", ": cannot be read", "expected a YAML file"),
    "an empty file": (lambda text: "", ": found nothing", "expected a mapping"),
    "braces too many": (swap("alpha: 0.3", "alpha: {{ a }}"), f":{line_of('  alpha: 0.3')}: not YAML", "too many?"),
    "an impossible date": (swap('"2026-11-21"', "2026-02-30"), f":{line_of('  date:')}: not YAML", "timestamp"),
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The repository as far as `karma check` reads it."""
    for name in ("params.yaml", "dvc.yaml", "constraints.txt"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    for name in ("karma_electric", "stages", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def state_of(folder: Path) -> dict[str, str]:
    """Every file below `folder` with its hash; links are not followed."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def said_of(project: Path, edit: Edit) -> str:
    """What `karma check` says of an edited recipe; it must be one line, exit code 1, and nothing written."""
    edited = edit(SHIPPED)
    (project / "params.yaml").write_bytes(edited.encode("utf-8") if isinstance(edited, str) else edited)
    before = state_of(project)
    line = one_line_of(karma("check", folder=project), exit_code=1)
    assert state_of(project) == before
    assert len(line) < 400
    return line


def test_the_shipped_recipe_is_sound(project: Path) -> None:
    done = karma("check", folder=project)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("params.yaml: sound, ")


@pytest.mark.parametrize(("edit", "start", "advice"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_recipe_is_one_line_with_file_and_key(project: Path, edit: Edit, start: str, advice: str) -> None:
    line = said_of(project, edit)
    assert line.startswith(f"params.yaml: {start}")
    assert advice in line


@pytest.mark.parametrize(("edit", "start", "advice"), WRONG_FILES.values(), ids=WRONG_FILES.keys())
def test_a_spoilt_file_is_one_line(project: Path, edit: Edit, start: str, advice: str) -> None:
    line = said_of(project, edit)
    assert line.startswith(f"params.yaml{start}")
    assert advice in line


def test_a_missing_recipe_graph_or_list_of_pins_is_named(project: Path) -> None:
    for name, fault in (("constraints.txt", "missing"), ("dvc.yaml", "cannot be read"), ("params.yaml", "cannot be")):
        (project / name).unlink()
        assert one_line_of(karma("check", folder=project), exit_code=1).startswith(f"{name}: {fault}")


def test_a_missing_input_is_named_with_the_stage_that_needs_it(project: Path) -> None:
    (project / "data").unlink()
    shutil.copytree(ROOT / "data", project / "data")
    (project / "data" / "prompts" / "persona.txt").unlink()
    line = one_line_of(karma("check", folder=project), exit_code=1)
    assert line.startswith("data/prompts/persona.txt: missing, but the stage export@v6 needs it; restore it with `git")


def test_a_package_of_another_version_is_a_fault_of_the_environment(project: Path) -> None:
    pins = (project / "constraints.txt").read_text().replace("pydantic==", "pydantic==0.")
    (project / "constraints.txt").write_text(pins)
    line = one_line_of(karma("check", folder=project), exit_code=2)
    assert line.startswith("constraints.txt: pydantic is pinned at 0.")


def test_the_shipped_recipe_is_the_profile_that_it_says_it_is() -> None:
    assert (ROOT / "profiles" / "smollm2-135m.yaml").read_text("utf-8") == SHIPPED


def test_every_profile_is_sound() -> None:
    profiles = sorted((ROOT / "profiles").glob("*.yaml"))
    assert {"smollm2-135m.yaml", "llama31-8b.yaml"} <= {profile.name for profile in profiles}
    for profile in profiles:
        read_recipe(profile)


def keys_of(section: BaseModel) -> list[str]:
    return [field.alias or name for name, field in type(section).model_fields.items()]


def check_order(section: BaseModel, written: dict[str, Any], where: str) -> int:
    """Compare the keys of a section and of those below it; the number of sections."""
    assert list(written) == keys_of(section), where
    values = [getattr(section, name) for name in type(section).model_fields]
    below = [(key, value) for key, value in zip(keys_of(section), values, strict=True) if isinstance(value, BaseModel)]
    return 1 + sum(check_order(value, written[key], f"{where}.{key}") for key, value in below)


@pytest.mark.parametrize("name", ["params.yaml", "profiles/llama31-8b.yaml"])
def test_the_recipe_holds_every_key_of_the_models_in_their_order(name: str) -> None:
    sections = check_order(read_recipe(ROOT / name), read_yaml(ROOT / name), name)
    assert sections == 11  # the recipe, nine sections, and train.lora


def test_the_models_give_no_defaults() -> None:
    """The recipe is the documentation: a key that may be left out would not be in it."""
    recipe = read_recipe(ROOT / "params.yaml")
    sections = [recipe, *(getattr(recipe, name) for name in type(recipe).model_fields if name != "sets")]
    for section in [*sections, recipe.train.lora]:
        for name, field in type(section).model_fields.items():
            assert field.is_required(), f"{type(section).__name__}.{name}"


def paths_in(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in items for found in paths_in(item, (*path, key)))]


PATHS = paths_in(read_yaml(ROOT / "params.yaml"))[1:]
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@given(path=st.sampled_from(PATHS), junk=JUNK)
def test_any_value_in_any_place_is_taken_or_refused_in_one_line(path: tuple[str | int, ...], junk: Any) -> None:
    value = read_yaml(ROOT / "params.yaml")
    place: Any = value
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = junk
    said = "params.yaml: sound"
    try:
        recipe = parse_parameters(value, Recipe, where="params.yaml")
        json.dumps(recipe.model_dump(mode="json"), allow_nan=False)
    except InputError as error:
        said = str(error)
    assert said.startswith("params.yaml: ")
    assert len(said.splitlines()) == 1
