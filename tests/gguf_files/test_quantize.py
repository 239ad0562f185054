from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import quants

from karma_electric.errors import InputError, IntegrityError, SetupError
from karma_electric.gguf_files import check, llama_config, quantized_writer, vocabulary, writer
from karma_electric.gguf_files.check import check_gguf, relative_error
from karma_electric.gguf_files.llama_cpp_quantizer import quantize_gguf
from karma_electric.gguf_files.native_output import captured_native_output
from karma_electric.gguf_files.params import GgufType
from karma_electric.gguf_files.planned_tensors import PlannedTensor, plan_tensors
from karma_electric.gguf_files.quantize import make_gguf
from karma_electric.gguf_files.reader import TensorInfo, read_header
from karma_electric.gguf_files.writer import write_gguf
from karma_electric.integrity import sha256_file
from tests.gguf_files.raw_gguf import STRING, RawGguf, entry, text
from tests.gguf_files.variants import (
    copy_of,
    edit_json,
    in_two_shards,
    retrain,
    sealed,
    use_llama3,
    with_random_weights,
)


def files_below(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def tensor_named(path: Path, name: str) -> tuple[TensorInfo, int]:
    """(its row in the table, its first byte in the file)"""
    header = read_header(path)
    tensor = next(tensor for tensor in header.tensors if tensor.name == name)
    return tensor, header.data_offset + tensor.offset


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


@pytest.mark.parametrize(
    ("gguf_type", "stored"),
    [("F16", "F16"), ("Q8_0", "Q8_0"), ("Q6_K", "Q6_K"), ("Q5_K_M", "Q5_K"), ("Q4_K_M", "Q4_K")],
)
def test_every_type_is_made_and_passes_its_check(
    tiny_llama: Path, tmp_path: Path, gguf_type: GgufType, stored: str
) -> None:
    said: list[str] = []
    output = tmp_path / "out" / f"tiny-{gguf_type}.gguf"
    report = make_gguf(tiny_llama, output, gguf_type=gguf_type, name="tiny", threads=1, report=said.append)
    assert files_below(output.parent) == {output.name}
    assert output.stat().st_mode & 0o777 == 0o644
    assert tensor_named(output, "blk.0.ffn_up.weight")[0].type == stored
    assert read_header(output).metadata["general.name"] == "tiny"
    assert said
    assert report.as_dict()["gguf_type"] == gguf_type
    assert report.texts > 10
    assert report.positions > 50
    assert 0 < report.computation_error < 0.06
    assert report.relative_error < (0.01 if gguf_type == "F16" else 0.5)


def test_other_shapes_pass_too(tiny_llama: Path, tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    untied = with_random_weights(
        tiny_llama,
        tmp_path / "untied",
        tie_word_embeddings=False,
        vocab_size=530,
        max_position_embeddings=100,
        rope_parameters=rope | {"original_max_position_embeddings": 64},
    )
    edit_json(untied / "tokenizer.json", use_llama3)
    make_gguf(sealed(untied), tmp_path / "untied.gguf", gguf_type="Q8_0", name="tiny", threads=1)
    sharded = sealed(in_two_shards(tiny_llama, tmp_path / "sharded"))
    make_gguf(sharded, tmp_path / "sharded.gguf", gguf_type="Q8_0", name="tiny", threads=1)
    (copy_of(tiny_llama, tmp_path / "plain") / "chat_template.jinja").unlink()
    make_gguf(sealed(tmp_path / "plain"), tmp_path / "plain.gguf", gguf_type="F16", name="tiny", threads=1)


def test_a_folder_that_is_not_as_its_manifest_says_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    model = sealed(copy_of(tiny_llama, tmp_path / "model"))
    overwrite(model / "model.safetensors", 20_000, b"\0\1\2\3")
    output = tmp_path / "tiny.gguf"
    output.write_bytes(b"the last good file")
    with pytest.raises(IntegrityError, match=r"model\.safetensors: sha256 is") as caught:
        make_gguf(model, output, gguf_type="F16", name="tiny", threads=1)
    assert caught.value.exit_code == 6
    (model / "manifest.json").unlink()
    with pytest.raises(IntegrityError, match=r"manifest\.json"):
        make_gguf(model, output, gguf_type="F16", name="tiny", threads=1)
    assert output.read_bytes() == b"the last good file"


def test_another_architecture_is_refused_by_name(tiny_llama: Path, tmp_path: Path) -> None:
    model = copy_of(tiny_llama, tmp_path / "model")
    edit_json(model / "config.json", lambda config: config.update(architectures=["Gemma3ForCausalLM"]))
    with pytest.raises(InputError, match="Gemma3ForCausalLM"):
        make_gguf(sealed(model), tmp_path / "tiny.gguf", gguf_type="Q8_0", name="tiny", threads=1)
    assert files_below(tmp_path) == set()


MUTANTS: dict[str, tuple[object, str, Any, str]] = {
    "q and k as Hugging Face has them": (
        quantized_writer,
        "rotate_pairs",
        lambda tensor, heads: tensor,
        r"attn_q\.weight \(Q8_0\) has a relative error",
    ),
    "gate and up exchanged": (
        quantized_writer,
        "plan_tensors",
        None,
        r"ffn_gate\.weight \(Q8_0\) has a relative error",
    ),
    "no RoPE base": (llama_config, "_positive", lambda *_, **__: 1.0, "logits against PyTorch on the same weights"),
    "another pre-tokenizer": (vocabulary, "pre_tokenizer_name", lambda *_: "gpt-2", "as other"),
    "merges the wrong way round": (
        vocabulary,
        "parse_merges",
        lambda merges, _: [f"{b} {a}" for a, b in merges],
        "as other",
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_writer_with_a_fault_is_caught(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutant: str
) -> None:
    module, name, change, message = MUTANTS[mutant]
    model = with_random_weights(tiny_llama, tmp_path / "model", vocab_size=900)
    retrain(model)
    if change is None:
        swap = {"gate_proj": "up_proj", "up_proj": "gate_proj"}

        def change(config: llama_config.LlamaConfig) -> list[PlannedTensor]:
            changed = []
            for tensor in plan_tensors(config):
                part = tensor.source.split(".")[-2]
                changed.append(replace(tensor, source=tensor.source.replace(part, swap.get(part, part))))
            return changed

    monkeypatch.setattr(module, name, change)
    output = tmp_path / "tiny.gguf"
    with pytest.raises(IntegrityError, match=message) as caught:
        make_gguf(sealed(model), output, gguf_type="Q8_0", name="tiny", threads=1)
    assert str(caught.value).startswith(f"{output}: ")
    assert files_below(tmp_path) == set()


@pytest.fixture(scope="module")
def made(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(F16 file, Q4_K_M file)"""
    folder = tmp_path_factory.mktemp("made")
    write_gguf(tiny_llama, folder / "f16.gguf", gguf_type="F16", name="tiny")
    quantize_gguf(folder / "f16.gguf", folder / "q4.gguf", "Q4_K_M", 1)
    return folder / "f16.gguf", folder / "q4.gguf"


def damaged(source: Path, path: Path, fault: str) -> Path:
    path.write_bytes(source.read_bytes())
    tensor, start = tensor_named(path, "blk.1.attn_output.weight")
    if fault == "a tensor of zeros":
        overwrite(path, start, bytes(tensor.size_bytes))
    elif fault == "a tensor moved by a row":
        data = path.read_bytes()[start : start + tensor.size_bytes]
        row_bytes = tensor.size_bytes // tensor.shape[1]
        overwrite(path, start, data[row_bytes:] + data[:row_bytes])
    elif fault == "a scale that is no number":
        overwrite(path, start, b"\xff\x7f")
    else:  # a bit of the metadata
        data = path.read_bytes()
        key = b"llama.rope.freq_base" + b"\6\0\0\0"
        overwrite(path, data.index(key) + len(key), np.float32(20_000).tobytes())
    return path


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("a tensor of zeros", r"blk.1.attn_output.weight \(Q4_K\) has a relative error of 1 "),
        ("a tensor moved by a row", r"blk.1.attn_output.weight \(Q4_K\) has a relative error of 1\.4"),
        ("a scale that is no number", r"blk.1.attn_output.weight \(Q4_K\) has a relative error of nan"),
        ("metadata", "relative error of Q4_K_M logits against PyTorch on the same weights"),
    ],
)
def test_a_damaged_quantised_file_is_caught(
    tiny_llama: Path, made: tuple[Path, Path], tmp_path: Path, fault: str, message: str
) -> None:
    with pytest.raises(IntegrityError, match=message):
        check_gguf(tiny_llama, damaged(made[1], tmp_path / "q4.gguf", fault), "Q4_K_M", threads=1)


def test_the_logits_alone_catch_a_wrong_tensor(
    tiny_llama: Path, made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "q4.gguf"
    path.write_bytes(made[1].read_bytes())
    for block in range(4):
        tensor, start = tensor_named(path, f"blk.{block}.ffn_down.weight")
        overwrite(path, start, bytes(tensor.size_bytes))
    monkeypatch.setattr(check, "check_tensors", lambda *_: 0.0)
    with pytest.raises(IntegrityError, match="relative error of Q4_K_M logits against the model is"):
        check_gguf(tiny_llama, path, "Q4_K_M", threads=1)


def test_another_model_is_caught(tiny_llama: Path, made: tuple[Path, Path], tmp_path: Path) -> None:
    shorter = with_random_weights(tiny_llama, tmp_path / "shorter", num_hidden_layers=3)
    write_gguf(shorter, tmp_path / "f16.gguf", gguf_type="F16", name="tiny")
    with pytest.raises(IntegrityError, match=r"tensor blk\.3\.attn_k\.weight has the shape None, the model has"):
        check_gguf(tiny_llama, tmp_path / "f16.gguf", "F16", threads=1)
    with pytest.raises(IntegrityError, match=r"tensor blk\.3\.attn_k\.weight has the shape .*, the model has None"):
        check_gguf(shorter, made[0], "F16", threads=1)
    other = with_random_weights(tiny_llama, tmp_path / "other")
    with pytest.raises(IntegrityError, match=r"has a relative error of 1\.4.* against the model"):
        check_gguf(other, made[0], "F16", threads=1)


def test_the_relative_error_of_logits() -> None:
    base = np.random.default_rng(0).normal(size=(20, 500)).astype(np.float32)
    other = np.random.default_rng(1).normal(size=(20, 500)).astype(np.float32)
    assert relative_error(base, base) == 0
    assert relative_error(base + 5, base) < 1e-6
    assert relative_error(np.zeros_like(base), base) == pytest.approx(1)
    assert relative_error(other, base) == pytest.approx(2**0.5, rel=0.05)
    assert relative_error(1.1 * base, base) == pytest.approx(0.1, rel=1e-4)


def test_q8_0_bytes_are_those_of_gguf_py(tiny_llama: Path, tmp_path: Path) -> None:
    write_gguf(tiny_llama, tmp_path / "f16.gguf", gguf_type="F16", name="tiny")
    quantize_gguf(tmp_path / "f16.gguf", tmp_path / "q8.gguf", "Q8_0", 1)
    for name in ("token_embd.weight", "blk.0.attn_q.weight", "blk.3.ffn_down.weight"):
        original, start = tensor_named(tmp_path / "f16.gguf", name)
        values = np.fromfile(tmp_path / "f16.gguf", np.float16, original.size_bytes // 2, offset=start)
        expected = quants.quantize(
            values.astype(np.float32).reshape(original.shape[::-1]), gguf.GGMLQuantizationType.Q8_0
        ).tobytes()
        tensor, start = tensor_named(tmp_path / "q8.gguf", name)
        assert (tmp_path / "q8.gguf").read_bytes()[start : start + tensor.size_bytes] == expected


BUILD = """
import sys
from pathlib import Path
from karma_electric.gguf_files.quantized_writer import write_quantized_gguf
from karma_electric.gguf_files.writer import write_gguf
write_gguf(Path(sys.argv[1]), Path("f16.gguf"), gguf_type="F16", name="tiny")
write_quantized_gguf(Path(sys.argv[1]), Path("q4.gguf"), gguf_type="Q4_K_M", name="tiny", threads=2)
"""


def test_another_process_folder_hash_seed_and_thread_count_give_the_same_bytes(
    tiny_llama: Path, made: tuple[Path, Path], tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_llama, tmp_path / "elsewhere")
    environment = os.environ | {"PYTHONHASHSEED": "20", "PYTHONPATH": str(Path(writer.__file__).parents[2])}
    command = [sys.executable, "-c", BUILD, str(model)]
    result = subprocess.run(command, check=True, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert "llama" not in result.stdout + result.stderr  # what the quantiser prints is caught
    for one, other in zip(made, ("f16.gguf", "q4.gguf"), strict=True):
        assert sha256_file(one) == sha256_file(tmp_path / other)


def test_a_quantiser_that_fails_is_one_line_with_its_log(tmp_path: Path) -> None:
    nonsense = RawGguf(entries=[entry("general.architecture", STRING, text("nonsense"))])
    (tmp_path / "in.gguf").write_bytes(nonsense.build())
    with pytest.raises(
        SetupError, match=r"quantising to Q4_K_M failed .*unknown model architecture: 'nonsense'"
    ) as caught:
        quantize_gguf(tmp_path / "in.gguf", tmp_path / "out.gguf", "Q4_K_M", 1)
    assert "\n" not in str(caught.value)
    assert files_below(tmp_path) == {"in.gguf"}


def test_the_quantiser_is_given_no_bad_file_and_no_unknown_type(made: tuple[Path, Path], tmp_path: Path) -> None:
    short = tmp_path / "short.gguf"
    short.write_bytes(made[0].read_bytes()[:100_000])
    with pytest.raises(IntegrityError, match=r"short\.gguf: at byte"):
        quantize_gguf(short, tmp_path / "x.gguf", "Q8_0", 1)
    with pytest.raises(InputError, match="the type 'Q3_K' is unknown, expected one of Q8_0"):
        quantize_gguf(made[0], tmp_path / "x.gguf", "Q3_K", 1)
    with pytest.raises(InputError, match=r"token_embd\.weight is of the type Q6_K, expected F16, BF16 or F32"):
        quantize_gguf(made[1], tmp_path / "x.gguf", "Q8_0", 1)
    assert files_below(tmp_path) == {"short.gguf"}


def test_native_output_is_caught_and_let_go(capfd: pytest.CaptureFixture[str]) -> None:
    with captured_native_output() as printed:
        os.write(1, b"one\n")
        os.write(2, b"two\n\n")
        assert printed.tail() == "one | two"
        assert printed.tail(most_bytes=6) == "two"
    os.write(1, b"four\n")
    assert capfd.readouterr().out == "four\n"
