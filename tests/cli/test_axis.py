"""`karma axis`, in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

from karma_electric.capping.conformance_report import BEGIN, END
from tests.axis.test_loading import TAUS, write_axis_file, write_old_axis_file
from tests.cli.running import karma, one_line_of
from tests.engines.pytorch_reference import PytorchReference


def test_show_prints_layers_norms_ceilings_and_rates(tmp_path: Path) -> None:
    path = write_axis_file(tmp_path / "axis.gguf")
    done = karma("axis", "show", path, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["firing_rate", "0.25"] in lines
    assert [line[0] for line in lines if line[-1] in ("-1.5", "0.25") and line[0] in ("5", "6")] == ["5", "6"]
    found = json.loads(karma("axis", "show", path, "--json", folder=tmp_path).stdout)
    assert {row["layer"]: row["tau"] for row in found["layers"]} == TAUS
    assert all(row["norm"] > 1 for row in found["layers"])


def test_show_takes_an_old_file_without_thresholds(tmp_path: Path) -> None:
    path = write_old_axis_file(tmp_path / "axis.gguf")
    done = karma("axis", "show", path, folder=tmp_path)
    assert done.returncode == 0
    assert [line.split()[2] for line in done.stdout.splitlines()[-2:]] == ["-", "-"]


def test_lint_passes_what_is_sound_and_names_a_fault(tmp_path: Path, tiny_llama: Path) -> None:
    path = write_axis_file(tmp_path / "axis.gguf")
    done = karma("axis", "lint", path, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, f"{path}: sound, 2 layers of 16 values\n")
    assert "hidden size 16" in one_line_of(karma("axis", "lint", path, "--model", tiny_llama, folder=tmp_path), 1)
    old = write_old_axis_file(tmp_path / "old.gguf")
    assert "has no key acap.threshold" in one_line_of(karma("axis", "lint", old, folder=tmp_path), 6)
    assert karma("axis", "lint", old, "--acap-threshold", "2.1", folder=tmp_path).returncode == 0
    for threshold in ("0", "-3", "nan", "inf"):
        words = ("axis", "lint", path, "--acap-threshold", threshold)
        assert "expected a finite T > 0: it stands for the ceiling tau = -T" in one_line_of(
            karma(*words, folder=tmp_path), 1
        )
    path.write_bytes(path.read_bytes()[:-1])
    assert "was cut short" in one_line_of(karma("axis", "lint", path, folder=tmp_path), 6)


def test_what_would_fail_at_the_end_is_refused_at_the_start(tmp_path: Path) -> None:
    """No model is loaded before: there is none."""
    for option, value in (("--percentile", "175"), ("--percentile", "0"), ("--k-sigma", "-1"), ("--alpha", "7")):
        error = one_line_of(karma("axis", "sweep", "model", option, value, folder=tmp_path), 1)
        assert error.startswith(f"{option} {value}: expected")
    (tmp_path / "document.md").write_text("# No markers\n")
    words = ("axis", "conform", "model", "--document", "document.md")
    assert "document.md: has no line" in one_line_of(karma(*words, folder=tmp_path), 1)


def test_conform_proves_a_model_and_writes_the_tables(tmp_path: Path, tiny_llama: Path) -> None:
    import torch

    reference = PytorchReference(tiny_llama)  # with weights that react: a tiny random model hardly does
    torch.manual_seed(1)
    reference.model.config.tie_word_embeddings = False
    reference.model.lm_head.weight = torch.nn.Parameter(torch.randn_like(reference.model.lm_head.weight))
    reference.save(tmp_path / "model")
    document = tmp_path / "capping.md"
    document.write_text(f"# Before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    words = ("axis", "conform", tmp_path / "model", "--document", document)
    done = karma(*words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for path in ("numpy float64", "PyTorch float64", "PyTorch float32", "llama.cpp F32", "llama.cpp F16"):
        assert f"| {path} | hard |" in done.stdout
        assert f"| {path} | soft |" in done.stdout
    assert "| Q8_0 | uncapped |" in done.stdout
    text = document.read_text()
    assert text.startswith("# Before\n\n" + BEGIN)
    assert text.endswith(END + "\n\nafter\n")
    assert "| llama.cpp F16 | soft |" in text
    assert "old" not in text
    (tmp_path / "model" / "config.json").unlink()
    done = karma("axis", "conform", tmp_path / "model", folder=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path / 'model' / 'config.json'}: cannot be read")
