from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from karma_electric.errors import InputError
from karma_electric.parameters import MAX_RECIPE_BYTES, Parameters, parse_parameters, read_section, read_yaml

RECIPE = (Path(__file__).parent.parent / "params.yaml").read_bytes()

BAD_YAML: dict[str, tuple[bytes, str]] = {
    "two equal keys": (b"a:\n  b: 1\n  c: 2\n  b: 3\n", "f.yaml:4: not YAML (the key 'b' stands twice)"),
    "two equal sections": (b"a: 1\nb: 2\na: 3\n", "f.yaml:3: not YAML (the key 'a' stands twice)"),
    "a cut-off list": (b"a: [1, 2\n", "f.yaml:2: not YAML"),
    "a tab": (b"a: 1\n\tb: 2\n", "f.yaml:2: not YAML"),
    "a conflict of git": (b"a: 1\n<<<<<<< HEAD\nb: 2\n", "f.yaml:3: not YAML"),
    "an impossible date": (
        b"a: 1\ndate: 2026-02-30\n",
        "f.yaml:2: not YAML ('2026-02-30' cannot be read as timestamp)",
    ),
    "a tag that does not fit": (b"a: !!int abc\n", "f.yaml:1: not YAML ('abc' cannot be read as int)"),
    "a truth value that is none": (b"a: !!bool abc\n", "f.yaml:1: not YAML ('abc' cannot be read as bool)"),
    "a date tag that does not fit": (b"a: !!timestamp abc\n", "f.yaml:1: not YAML ('abc' cannot be read as timestamp)"),
    "an integer without end": (b"a: " + b"1" * 5000, "f.yaml:1: not YAML ('1111"),
    "double braces": (b"a: {{ name }}\n", "f.yaml:1: not YAML (a list or mapping cannot be a key"),
    "a recursive list as mapping": (b"a: &x {b: *x}\n", "f.yaml:1: not YAML"),
    "a Python object": (b"a: !!python/object/apply:os.getcwd []\n", "f.yaml:1: not YAML (could not determine"),
    "two documents": (b"a: 1\n---\nb: 2\n", "f.yaml:2: not YAML"),
    "control characters": (b"a: \x01\x00", "f.yaml: not YAML (special characters are not allowed)"),
    "binary": (b"\x7fELF\x02\xff\xfe", "f.yaml: cannot be read ('utf-8' codec can't decode"),
    "deep nesting": (b"- " * 20_000, "f.yaml: not YAML (nested too deeply)"),
    "nothing": (b"# only a comment\n", "f.yaml: found nothing, expected a mapping"),
    "a list": (b"- a\n", "f.yaml: found a list, expected a mapping"),
    "a huge file": (b"a: 1 #" + b"x" * MAX_RECIPE_BYTES, f"f.yaml: larger than {MAX_RECIPE_BYTES} bytes"),
}


@pytest.mark.parametrize(("data", "message"), BAD_YAML.values(), ids=BAD_YAML.keys())
def test_bad_yaml_is_named_with_file_and_line(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "f.yaml").write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_yaml(tmp_path / "f.yaml")
    assert str(caught.value).removeprefix(f"{tmp_path}/").startswith(message)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"f\.yaml: cannot be read .*No such file"):
        read_yaml(tmp_path / "f.yaml")


def test_a_merged_key_may_be_overridden_and_a_repeated_one_may_not(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("base: &base {a: 1, b: 2}\nused:\n  <<: *base\n  b: 3\n")
    assert read_yaml(file)["used"] == {"a": 1, "b": 3}
    file.write_text("base: &base {a: 1, b: 2}\nused:\n  <<: *base\n  b: 3\n  b: 3\n")
    with pytest.raises(InputError, match=r"f\.yaml:5: .*'b' stands twice"):
        read_yaml(file)


@given(st.data())
def test_a_damaged_recipe_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(RECIPE)))
    end = data.draw(st.integers(start, min(start + 6, len(RECIPE))))
    damaged = RECIPE[:start] + data.draw(st.binary(max_size=4)) + RECIPE[end:]
    file = tmp_path_factory.mktemp("damaged") / "f.yaml"
    file.write_bytes(damaged)
    try:
        assert isinstance(read_yaml(file), dict)
    except InputError as error:
        said = str(error)
    else:
        said = str(file)
    assert said.startswith(str(file))
    assert len(said.splitlines()) == 1


class Cat(Parameters):
    source: Literal["cat"]
    cat: str = Field(min_length=2)


class Dog(Parameters):
    source: Literal["dog"]
    age: int = Field(ge=0)


class Zoo(Parameters):
    pet: Annotated[Cat | Dog, Field(discriminator="source")]
    names: list[str]
    share: float
    limit: int | None


GOOD = {"pet": {"source": "cat", "cat": "Tom"}, "names": ["a"], "share": 0.5, "limit": None}


def fault(**changes: object) -> str:
    value = {key: item for key, item in {**GOOD, **changes}.items() if item != "(gone)"}
    with pytest.raises(InputError) as caught:
        parse_parameters(value, Zoo, where="f.yaml")
    return str(caught.value)


def test_good_parameters_pass_and_cannot_be_changed() -> None:
    zoo = parse_parameters(GOOD, Zoo, where="f.yaml")
    with pytest.raises(ValueError, match="frozen"):
        zoo.share = 0.6


def test_a_fault_names_key_what_was_found_and_what_to_do() -> None:
    assert fault(share="abc") == (
        "f.yaml: share: found 'abc', expected a valid number, unable to parse string as a number"
    )
    assert fault(limit="(gone)") == "f.yaml: limit: missing; add it (profiles/ holds whole recipes)"
    assert fault(names=["a", 2]) == "f.yaml: names.1: found 2, expected a valid string"
    assert fault(share=float("nan")) == "f.yaml: share: found nan, expected a finite number"


def test_an_unknown_key_comes_first_and_names_the_nearest_missing_one() -> None:
    assert fault(shore=0.5, share="(gone)", limit="(gone)") == "f.yaml: shore: unknown key; did you mean 'share'?"
    assert fault(limmit=1, share="(gone)", limit="(gone)") == "f.yaml: limmit: unknown key; did you mean 'limit'?"
    assert fault(other=1, share="abc") == "f.yaml: other: unknown key; remove it or correct it"


def test_a_key_in_a_union_is_named_as_it_stands_in_the_file() -> None:
    assert fault(pet={"source": "dog", "age": -1}).startswith("f.yaml: pet.age: found -1, ")
    assert fault(pet={"source": "cat", "cat": "T"}).startswith("f.yaml: pet.cat: found 'T', ")
    assert fault(pet={"source": "cat"}).startswith("f.yaml: pet.cat: missing")
    assert fault(pet={"source": "cat", "cat": "Tom", "dog": 1}).startswith("f.yaml: pet.dog: unknown key")
    assert fault(pet={"source": "cow"}) == "f.yaml: pet: source is 'cow', expected one of 'cat', 'dog'"
    assert fault(pet={"cat": "Tom"}) == "f.yaml: pet: source is missing; add it (profiles/ holds whole recipes)"


def test_a_fault_is_one_line_of_bounded_length() -> None:
    shared: list[object] = ["x"] * 9
    for _ in range(9):
        shared = [shared] * 9  # 9^10 items, if written out
    for changes in ({"share": "x\n" * 100_000}, {"share": shared}, {"a\nb": 1}, {"names": [{"a" * 5000: 1}]}):
        line = fault(**changes)
        assert len(line.splitlines()) == 1
        assert len(line) < 500


def test_a_section_is_read_and_its_absence_named(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("dog: {source: dog, age: 3}\ncat: {source: cat, cat: 4}\n")
    assert read_section(file, "dog", Dog).age == 3
    with pytest.raises(InputError, match=r"f\.yaml: cat\.cat: found 4, expected a valid string"):
        read_section(file, "cat", Cat)
    with pytest.raises(InputError, match=r"f\.yaml: the section 'cow' is missing"):
        read_section(file, "cow", Cat)
