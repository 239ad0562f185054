from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from karma_electric.errors import InputError, SetupError
from karma_electric.fingerprint.packages import (
    LOADED_BY_OTHERS,
    check_installed,
    distributions_of,
    normalized,
    public_version,
    read_constraints,
)
from tests.fingerprint.trees import ROOT


def pins(folder: Path, text: str) -> Path:
    file = folder / "constraints.txt"
    file.write_text(text)
    return file


def test_a_name_is_given_its_distribution_and_version() -> None:
    assert distributions_of(["yaml"]) == {"pyyaml": metadata.version("PyYAML")}


def test_packages_that_others_load_count_all_the_way() -> None:
    found = distributions_of(["trl"])
    assert {"trl", "accelerate", "datasets", "pyarrow", "transformers", "tokenizers", "torch", "numpy"} <= found.keys()
    assert list(found) == sorted(found)
    assert found["torch"] == metadata.version("torch").split("+")[0]


def test_a_package_that_is_not_installed_is_a_fault_of_the_environment() -> None:
    with pytest.raises(SetupError, match="'no_such_package' is imported but not installed; run `make install`"):
        distributions_of(["yaml", "no_such_package"])


def test_a_package_that_another_should_load_and_is_gone_is_a_fault_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(LOADED_BY_OTHERS, "pyyaml", ("no-such-package",))
    with pytest.raises(SetupError, match="'no-such-package' is needed but not installed"):
        distributions_of(["yaml"])


def test_every_package_of_the_table_is_installed_and_pinned() -> None:
    pinned = read_constraints(ROOT / "constraints.txt")
    for name in {*LOADED_BY_OTHERS, *(loaded for names in LOADED_BY_OTHERS.values() for loaded in names)}:
        assert name == normalized(name)
        assert metadata.version(name)
        assert name in pinned


def test_the_installed_packages_are_the_pinned_ones() -> None:
    check_installed(ROOT / "constraints.txt")


def test_another_version_than_the_pinned_one_is_a_fault_of_the_environment(tmp_path: Path) -> None:
    installed = metadata.version("pydantic")
    with pytest.raises(
        SetupError, match=f"pydantic is pinned at 0.1, but {installed} is installed; run `make install`"
    ):
        check_installed(pins(tmp_path, f"PyYAML=={metadata.version('PyYAML')}\npydantic==0.1\n"))


def test_the_build_of_a_version_does_not_count(tmp_path: Path) -> None:
    assert public_version("2.13.0+cpu") == public_version("2.13.0+cu130") == "2.13.0"
    check_installed(pins(tmp_path, f"torch=={public_version(metadata.version('torch'))}\n"))


def test_a_package_for_another_platform_may_be_absent(tmp_path: Path) -> None:
    check_installed(pins(tmp_path, "no-such-package==1.0\n"))


def test_pins_are_read_in_any_spelling(tmp_path: Path) -> None:
    text = "# tools\n\nPyYAML==6.0  # a comment\nruamel.yaml==1.2\nantlr4_python3-runtime==4.9.3\n"
    assert read_constraints(pins(tmp_path, text)) == {
        "pyyaml": "6.0", "ruamel-yaml": "1.2", "antlr4-python3-runtime": "4.9.3"
    }  # fmt: skip


@pytest.mark.parametrize(
    "line", ["pyyaml>=6", "pyyaml", "pyyaml==6; python_version>'3'", "-e .", "a @ https://x/y.whl"]
)
def test_a_line_that_pins_nothing_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(InputError, match=r"constraints\.txt:2: found .* expected name==version and nothing else"):
        read_constraints(pins(tmp_path, f"torch==2.13.0\n{line}\n"))


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"constraints\.txt: cannot be read"):
        read_constraints(tmp_path / "constraints.txt")
    (tmp_path / "constraints.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"constraints\.txt: cannot be read"):
        read_constraints(tmp_path / "constraints.txt")
