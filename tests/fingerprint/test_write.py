from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from karma_electric.errors import InputError, SetupError
from karma_electric.fingerprint.write import fingerprint, write_fingerprints
from tests.fingerprint.trees import ROOT, make_tree


def tree(root: Path) -> Path:
    return make_tree(
        root,
        {
            "stages/s.py": "from karma_electric.a import one\n",
            "stages/t.py": "import yaml\n",
            "karma_electric/a/__init__.py": "",
            "karma_electric/a/one.py": '"""One."""\nN = 1\n',
            "karma_electric/a/card.jinja": "Hello {{ name }}\n",
            "constraints.txt": f"PyYAML=={metadata.version('PyYAML')}\n",
        },
    )


def test_a_fingerprint_names_python_modules_data_and_packages(tmp_path: Path) -> None:
    found = fingerprint(tree(tmp_path), "stages.s")
    assert found["python"] == ".".join(platform.python_version_tuple()[:2])
    assert list(found["modules"]) == [
        "karma_electric",
        "karma_electric.a",
        "karma_electric.a.one",
        "stages",
        "stages.s",
    ]
    assert list(found["data"]) == ["karma_electric/a/card.jinja"]
    assert found["packages"] == {}
    assert fingerprint(tmp_path, "stages.t")["packages"] == {"pyyaml": metadata.version("PyYAML")}


def test_a_comment_changes_no_fingerprint_and_a_constant_only_those_that_reach_it(tmp_path: Path) -> None:
    root, one = tree(tmp_path), tmp_path / "karma_electric/a/one.py"
    before = fingerprint(root, "stages.s"), fingerprint(root, "stages.t")
    one.write_text('"""The one."""\n# A reason.\nN = 1\n')
    assert (fingerprint(root, "stages.s"), fingerprint(root, "stages.t")) == before
    one.write_text('"""One."""\nN = 2\n')
    assert fingerprint(root, "stages.s") != before[0]
    assert fingerprint(root, "stages.t") == before[1]


def test_package_data_count_by_bytes(tmp_path: Path) -> None:
    root, card = tree(tmp_path), tmp_path / "karma_electric/a/card.jinja"
    before = fingerprint(root, "stages.s"), fingerprint(root, "stages.t")
    card.write_text("hello {{ name }}\n")  # as long as before
    assert fingerprint(root, "stages.s") != before[0]
    assert fingerprint(root, "stages.t") == before[1]
    card.rename(card.with_name("other.jinja"))
    assert "karma_electric/a/other.jinja" in fingerprint(root, "stages.s")["data"]


def test_one_file_a_stage_is_written(tmp_path: Path) -> None:
    root = tree(tmp_path)
    entries = {"s": "stages.s", "t": "stages.t"}
    write_fingerprints(root, entries, constraints=root / "constraints.txt", output=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["s.json", "t.json"]
    assert json.loads((tmp_path / "out/s.json").read_text()) == fingerprint(root, "stages.s")


def test_nothing_is_written_when_a_package_is_not_the_pinned_one(tmp_path: Path) -> None:
    root = tree(tmp_path)
    (root / "constraints.txt").write_text("PyYAML==0.1\n")
    with pytest.raises(SetupError, match=r"is pinned at 0\.1"):
        write_fingerprints(root, {"s": "stages.s"}, constraints=root / "constraints.txt", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_import_of_a_package_that_is_not_installed_is_refused(tmp_path: Path) -> None:
    (tree(tmp_path) / "stages/t.py").write_text("def work():\n    import no_such_package\n")
    with pytest.raises(SetupError, match="no_such_package"):
        fingerprint(tmp_path, "stages.t")


def test_a_computed_import_is_refused(tmp_path: Path) -> None:
    (tree(tmp_path) / "stages/t.py").write_text("import importlib\nimportlib.import_module(input())\n")
    with pytest.raises(InputError, match=r"stages/t\.py:2: "):
        fingerprint(tmp_path, "stages.t")


def test_the_bytes_do_not_depend_on_folder_order_or_hash_seed(tmp_path: Path) -> None:
    """The real export stage, in a copy of our code whose files were made in another order, in two processes."""
    copy = tmp_path / "copy"
    for name in ("stages", "karma_electric"):
        for path in sorted((ROOT / name).rglob("*"), reverse=True):
            if path.is_file() and "__pycache__" not in path.parts:
                target = copy / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    shutil.copyfile(ROOT / "constraints.txt", copy / "constraints.txt")
    code = (
        "from pathlib import Path\nfrom karma_electric.fingerprint.write import write_fingerprints\n"
        "write_fingerprints(Path(), {'export': 'stages.export'}, constraints=Path('constraints.txt'), "
        "output=Path('out'))"
    )
    written = []
    for folder, seed in ((copy, "1"), (copy, "2")):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True)
        written.append((folder / "out" / "export.json").read_bytes())
    assert written[0] == written[1]
    assert json.loads(written[0]) == fingerprint(ROOT, "stages.export")
