from __future__ import annotations

from pathlib import Path

import pytest

from karma_electric.errors import InputError
from karma_electric.fingerprint.closure import VALIDATION_ONLY, import_closure, package_data
from stages.fingerprint import STAGES
from tests.fingerprint.trees import ROOT, make_tree


def closure_of(root: Path, stage: str, others: dict[str, str] | None = None) -> tuple[set[str], set[str]]:
    """Modules (without the two packages and the stage) and third-party names of a stage with this source."""
    make_tree(root, {"stages/s.py": stage, **(others or {})})
    closure = import_closure(root, "stages.s")
    assert {"stages", "stages.s"} <= closure.modules.keys()
    return set(closure.modules) - {"stages", "stages.s", "karma_electric"}, set(closure.third_party)


A = {"karma_electric/a/__init__.py": "", "karma_electric/a/one.py": "", "karma_electric/a/two.py": "import yaml\n"}


@pytest.mark.parametrize(
    "line",
    [
        "import karma_electric.a.two",
        "import os, karma_electric.a.two as two",
        "from karma_electric.a import two",
        "from karma_electric.a.two import anything",
        "from karma_electric.a.two import *",
        "def work():\n    from karma_electric.a.two import anything",
        "class C:\n    def work(self):\n        if 1:\n            import karma_electric.a.two",
        "try:\n    import karma_electric.a.two\nexcept ImportError:\n    pass",
        "import importlib\nimportlib.import_module('karma_electric.a.two')",
        "from importlib import import_module\nimport_module('karma_electric.a.two')",
        "__import__('karma_electric.a.two')",
    ],
)
def test_every_way_to_import_counts(tmp_path: Path, line: str) -> None:
    assert closure_of(tmp_path, line, A) == ({"karma_electric.a", "karma_electric.a.two"}, {"yaml"})


def test_a_closure_is_followed_to_its_end_and_through_circles(tmp_path: Path) -> None:
    others = {
        "karma_electric/a.py": "from karma_electric import b",
        "karma_electric/b.py": "import karma_electric.c, numpy.linalg",
        "karma_electric/c.py": "def f():\n    import karma_electric.a\n    from torch import nn",
        "karma_electric/unused.py": "import trl",
    }
    modules, third_party = closure_of(tmp_path, "import karma_electric.a", others)
    assert modules == {"karma_electric.a", "karma_electric.b", "karma_electric.c"}
    assert third_party == {"numpy", "torch"}


def test_the_packages_above_a_module_run_too(tmp_path: Path) -> None:
    others = {**A, "karma_electric/__init__.py": "import jinja2", "karma_electric/a/__init__.py": "import scipy"}
    modules, third_party = closure_of(tmp_path, "import karma_electric.a.one", others)
    assert modules == {"karma_electric.a", "karma_electric.a.one"}
    assert third_party == {"jinja2", "scipy"}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("from . import two", "karma_electric.a.two"),
        ("from .two import x", "karma_electric.a.two"),
        ("from .. import b", "karma_electric.b"),
        ("from ..b import x", "karma_electric.b"),
    ],
)
@pytest.mark.parametrize("place", ["one", "__init__"])
def test_relative_imports(tmp_path: Path, line: str, found: str, place: str) -> None:
    others = {**A, "karma_electric/a/two.py": "", "karma_electric/b.py": "", f"karma_electric/a/{place}.py": line}
    modules, _ = closure_of(tmp_path, "import karma_electric.a.one", others)
    assert modules == {"karma_electric.a", "karma_electric.a.one", found}


def test_imports_for_the_type_checker_do_not_count_and_others_near_them_do(tmp_path: Path) -> None:
    source = """
import typing
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import trl
    from karma_electric import nothing_at_all
if typing.TYPE_CHECKING:
    import peft
else:
    import yaml
if not TYPE_CHECKING:
    import torch
if TYPE_CHECKING or True:
    import scipy
"""
    assert closure_of(tmp_path, source) == (set(), {"yaml", "torch", "scipy"})


def test_the_standard_library_does_not_count(tmp_path: Path) -> None:
    source = "from __future__ import annotations\nimport os.path, sqlite3\nfrom importlib import metadata"
    assert closure_of(tmp_path, source) == (set(), set())


@pytest.mark.parametrize(
    "call",
    [
        "importlib.import_module(name)",
        "importlib.import_module(f'karma_electric.{name}')",
        "importlib.import_module('karma_' + 'electric')",
        "importlib.import_module(name='yaml')",
        "__import__(name)",
        "importlib.util.find_spec(name)",
    ],
)
def test_a_computed_name_is_refused_with_file_and_line(tmp_path: Path, call: str) -> None:
    with pytest.raises(InputError, match=r"stages/s\.py:3: \w+\(\) of a computed name") as caught:
        closure_of(tmp_path, f"import importlib\nname = 'yaml'\nx = {call}\n")
    assert str(caught.value).endswith("write the name out")


def test_a_name_in_find_spec_counts_as_used(tmp_path: Path) -> None:
    assert closure_of(tmp_path, "importlib.util.find_spec('xllamacpp')") == (set(), {"xllamacpp"})


@pytest.mark.parametrize(
    "line", ["import karma_electric.gone", "from karma_electric.gone import x", "from karma_electric.a.gone.x import y"]
)
def test_an_import_that_leads_nowhere_is_refused_with_file_and_line(tmp_path: Path, line: str) -> None:
    with pytest.raises(InputError, match=r"stages/s\.py:2: karma_electric\.[a-z.]*gone[.x]* is no module"):
        closure_of(tmp_path, f"\n{line}\n", A)


def test_an_unknown_entry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"stages\.gone: no such module"):
        import_closure(make_tree(tmp_path, {}), "stages.gone")


def test_package_data_are_the_files_that_are_no_python(tmp_path: Path) -> None:
    root = make_tree(
        tmp_path,
        {
            "karma_electric/a/__init__.py": "",
            "karma_electric/a/one.py": "",
            "karma_electric/a/card.md.jinja": "x",
            "karma_electric/a/templates/deep/x.txt": "x",
            "karma_electric/a/templates/.hidden": "x",
            "karma_electric/a/__pycache__/one.cpython-311.pyc": "x",
            "karma_electric/a/inner/__init__.py": "",
            "karma_electric/a/inner/of_inner.txt": "x",
            "karma_electric/b/__init__.py": "",
            "karma_electric/b/of_b.txt": "x",
        },
    )
    found = package_data(root, ["karma_electric.a", "karma_electric.a.one"])
    names = [path.relative_to(root / "karma_electric/a").as_posix() for path in found]
    assert names == ["card.md.jinja", "templates/deep/x.txt"]
    assert [path.name for path in package_data(root, ["karma_electric.a.inner"])] == ["of_inner.txt"]


@pytest.mark.parametrize("stage", STAGES)
def test_every_real_stage_has_a_closure(stage: str) -> None:
    closure = import_closure(ROOT, f"stages.{stage}")
    assert {"stages.entry", "karma_electric.errors", "karma_electric.parameters"} <= closure.modules.keys()
    assert not VALIDATION_ONLY & closure.modules.keys()
    assert "pydantic" in closure.third_party


def test_an_export_depends_on_no_machine_learning_library() -> None:
    closure = import_closure(ROOT, "stages.export")
    assert closure.third_party == {"pydantic", "pydantic_core", "yaml"}
    assert {"karma_electric.training_db.patches", "karma_electric.training_db.store"} <= closure.modules.keys()


def test_thresholds_do_not_depend_on_the_trainer() -> None:
    closure = import_closure(ROOT, "stages.calibrate_thresholds")
    assert not {"trl", "peft", "bitsandbytes", "datasets", "accelerate"} & closure.third_party


def test_what_only_validates_is_not_imported_for_another_use() -> None:
    """`recipe` is left out of every closure, so no stage may take a value from it."""
    users = [
        path.relative_to(ROOT).as_posix()
        for folder in ("karma_electric", "stages")
        for path in (ROOT / folder).rglob("*.py")
        if "karma_electric.recipe" in path.read_text("utf-8")
    ]
    users = [user for user in users if not user.startswith(("karma_electric/fit/", "karma_electric/cli/fit.py"))]
    assert sorted(users) == ["karma_electric/cli/build.py", "karma_electric/fingerprint/closure.py", "stages/entry.py"]
    stages = [path.read_text("utf-8") for path in (ROOT / "stages").glob("*.py")]
    assert not any("karma_electric.fit" in text for text in stages)  # it judges a machine, and no stage calls it
