"""The checks that stand between an unknown llama.cpp and the model."""

from __future__ import annotations

import ctypes
import importlib.metadata
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from karma_electric.engines import llama_cpp_binding as binding
from karma_electric.errors import SetupError


def test_the_pinned_version_is_the_one_of_the_project() -> None:
    requirements = importlib.metadata.requires("karma-electric") or []
    pins = [each for each in requirements if each.startswith("xllamacpp")]
    assert pins == [f"xllamacpp=={binding.PINNED_VERSION}"]
    assert "b" + binding.PINNED_VERSION.rsplit(".", 1)[1] == binding.BUILD


def test_another_version_is_refused_by_both_names() -> None:
    with pytest.raises(SetupError, match=r"xllamacpp 2026\.1\.1 is installed, expected exactly 2026\.10\.11549"):
        binding.check_version("2026.1.1")


def test_a_missing_distribution_or_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "DISTRIBUTION", "xllamacpp_is_not_here")
    with pytest.raises(SetupError, match="pip install"):
        binding.installed_version()
    with pytest.raises(SetupError, match="found 0 shared objects"):
        binding.find_shared_object()


def test_a_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.so").write_bytes(b"\x7fELF nothing")
    with pytest.raises(SetupError, match="cannot be loaded"):
        binding.open_library(tmp_path / "x.so")


def test_a_library_without_a_function_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(binding._PROTOTYPES, "llama_no_such_function", (None, ()))
    with pytest.raises(SetupError, match="has no function llama_no_such_function"):
        binding.open_library(binding.find_shared_object())


def _defaults(kind: str) -> Any:
    return getattr(binding.load_library(), f"llama_{kind}_default_params")()


@pytest.mark.parametrize(
    ("kind", "known", "unset"),
    [
        ("model", binding._MODEL_DEFAULTS, binding._UNSET_MODEL_POINTERS),
        ("context", binding._CONTEXT_DEFAULTS, binding._UNSET_CONTEXT_POINTERS),
    ],
)
def test_every_default_is_compared(kind: str, known: dict[str, Any], unset: tuple[str, ...]) -> None:
    binding.check_defaults(_defaults(kind), known, unset)
    for name, value in known.items():
        changed = _defaults(kind)
        setattr(changed, name, not value if isinstance(value, bool) else value + 1)
        with pytest.raises(SetupError, match=name):
            binding.check_defaults(changed, known, unset)


def test_a_field_that_was_put_in_is_noticed() -> None:
    class Shifted(ctypes.Structure):
        _fields_ = (("new_field", ctypes.c_uint32), *binding.ContextParams._fields_)

    found = Shifted.from_buffer_copy(bytes(_defaults("context")) + bytes(16))
    with pytest.raises(SetupError, match="by default, expected"):
        binding.check_defaults(found, binding._CONTEXT_DEFAULTS, binding._UNSET_CONTEXT_POINTERS)


def test_struct_sizes_are_those_of_the_build() -> None:
    assert ctypes.sizeof(binding.ModelParams) == 80
    assert ctypes.sizeof(binding.ContextParams) == 168
    assert ctypes.sizeof(binding.Batch) == 56


class _Library:
    """The real library with one function replaced."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._name, self._function = name, function

    def __getattr__(self, name: str) -> Any:
        return self._function if name == self._name else getattr(binding.load_library(), name)


@pytest.mark.parametrize(
    ("name", "value"),
    [("ggml_nelements", 31), ("ggml_nrows", 6), ("ggml_nbytes", 60), ("ggml_get_name", b"l_out")],
)
def test_a_tensor_of_another_layout_is_refused(name: str, value: object) -> None:
    with pytest.raises(SetupError, match="its layout is not that of b11549"):
        binding.check_tensor_layout(_Library(name, lambda _tensor: value))  # type: ignore[arg-type]


def test_the_package_itself_is_not_imported() -> None:
    script = (
        "import sys; from karma_electric.engines.llama_cpp_binding import load_library; load_library(); "
        "found = [name for name in sys.modules if name.split('.')[0] in ('xllamacpp', 'torch', 'transformers')]; "
        "sys.exit(str(found) if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
