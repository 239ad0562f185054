"""Another package's struct layouts: a package in the form of llama-cpp-python, around the real library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from karma_electric.engines import llama_cpp_binding as binding

PACKAGE = """
import ctypes
from karma_electric.engines.llama_cpp_binding import Batch, ContextParams, ModelParams
llama_model_params = type("llama_model_params", (ctypes.Structure,), {"_fields_": ModelParams._fields_})
llama_context_params = type("llama_context_params", (ctypes.Structure,), {"_fields_": ContextParams._fields_[SKIP:]})
llama_batch = type("llama_batch", (ctypes.Structure,), {"_fields_": Batch._fields_[BATCH:]})
"""
# The distribution that is installed is hidden from the metadata.
HIDE = """
import importlib.metadata as metadata, sys
real = metadata.version
def version(name):
    if name == "xllamacpp":
        raise metadata.PackageNotFoundError(name)
    return real(name)
metadata.version = version
from karma_electric.engines import llama_cpp_binding as binding
"""


def package(folder: Path, *, skip: int = 0, batch: int = 0, libraries: bool = True) -> Path:
    home = folder / "llama_cpp"
    (home / "lib").mkdir(parents=True)
    (home / "__init__.py").write_text(PACKAGE.replace("SKIP", str(skip)).replace("BATCH", str(batch)))
    information = folder / "llama_cpp_python-0.3.99.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 0.3.99\n")
    if libraries:
        for name in ("libllama.so", "libggml-base.so"):
            (home / "lib" / name).symlink_to(binding.find_shared_object())
    return folder


def run(folder: Path, script: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{HIDE}{script}"]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, check=False)


ANSWER = """
from pathlib import Path
import numpy as np
from karma_electric.capping.formula import Cap, unit
from karma_electric.engines.llama_cpp import LlamaCppEngine
cap = Cap({1: unit(np.ones(256))}, {1: -5.0}, 1.0)
with LlamaCppEngine(Path(sys.argv[1]), cap=cap, axis_sha256="a" * 64, threads=1) as engine:
    capped, plain = engine.all_logits([5, 6, 7], capped=True), engine.all_logits([5, 6, 7])
    print(engine.identity.build, type(engine._model.library).__name__, bool(np.abs(capped - plain).max() > 1e-4))
"""


def test_a_model_is_capped_through_the_layouts_of_the_other_package(tiny_llama: Path, tmp_path: Path) -> None:
    from karma_electric.gguf_files.writer import write_gguf

    write_gguf(tiny_llama, tmp_path / "tiny.gguf", gguf_type="F32", name="tiny")
    done = run(package(tmp_path / "site"), ANSWER, tmp_path / "tiny.gguf")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "llama-cpp-python 0.3.99 SimpleNamespace True\n"


@pytest.mark.parametrize(
    ("skip", "batch", "libraries", "message"),
    [
        (1, 0, True, "llama_context_params has no n_ctx"),
        (0, 1, True, "its llama_batch is another one"),
        (0, 0, False, "no library of it has"),
    ],
)
def test_a_package_that_does_not_fit_is_refused(
    tmp_path: Path, skip: int, batch: int, libraries: bool, message: str
) -> None:
    script = "try:\n    binding.load_library()\nexcept binding.SetupError as error:\n    print(error)\n"
    done = run(package(tmp_path, skip=skip, batch=batch, libraries=libraries), script)
    assert message in done.stdout, done.stderr


def test_the_pinned_package_comes_first() -> None:
    assert not binding.uses_llama_cpp_python()
    assert binding.build_name() == binding.BUILD
