"""Blend and merge, and every GGUF type, on a model of a given size: seconds, peak memory, bytes read and written.

    python benchmarks/merge_quantize.py --shape tiny
    python benchmarks/merge_quantize.py --shape 8b --tokenizer models/base --folder /tmp/large
    python benchmarks/merge_quantize.py --base models/base --adapters models/adapters/v6 models/adapters/v8

With `--shape` the base has random weights and two random adapters of rank 64 on all projections. Each step runs in a
process of its own. Bytes are those that the process asked the kernel for; llama.cpp maps its input instead of reading
it. `llama.cpp` is its own quantiser (in cyllama), which needs an F16 file; ours must give the same bytes. `disk` writes
the merged weights once more and waits until they are on the disk, which nothing that makes them can undercut.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from karma_electric.integrity import sha256_file

SHAPES = {
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256},
    "tiny": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 9, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 49152},
}  # fmt: skip
RANK = 64
SHARDS = 4
TYPES = ("Q8_0", "Q4_K_M")
CHUNK_BYTES = 64 * 2**20


def main() -> None:
    """Make the inputs, run every step, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape")
    parser.add_argument("--tokenizer", type=Path, default=Path("models/base"), help="a folder, for --shape")
    parser.add_argument("--base", type=Path, help="a folder of the stage base, in the place of --shape")
    parser.add_argument("--adapters", type=Path, nargs=2, help="two adapters on --base")
    parser.add_argument("--folder", type=Path, help="where files go; a temporary folder by default")
    parser.add_argument("--blocks", type=int, help="of --shape, where the disk has no room for all")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write the rows here, too")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        run_step(arguments.step, arguments.folder, arguments.threads)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        if arguments.shape:
            make_base(arguments.shape, arguments.blocks, arguments.tokenizer, folder / "base")
            for number in (1, 2):
                make_adapter(folder / "base", folder / f"adapter-{number}", seed=number)
        else:
            (folder / "base").symlink_to(arguments.base.resolve())
            for number, adapter in enumerate(arguments.adapters, start=1):
                (folder / f"adapter-{number}").symlink_to(adapter.resolve())
        rows = []
        for step in steps():
            rows.append(run(step, folder, arguments.threads))
            if step == ["merge"] and arguments.shape:
                shutil.rmtree(folder / "base")  # a disk may not have room for all
    same = {kind: len({row["sha256"] for row in rows if row["kind"] == kind}) == 1 for kind in TYPES}
    print_table(rows, same, arguments.threads)
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows, "same_bytes": same}, indent=2) + "\n")
    sys.exit(0 if all(same.values()) else "ours and llama.cpp's files differ")


def steps() -> list[list[str]]:
    """In an order in which each finds its input."""
    ours = [["quantise", kind] for kind in TYPES]
    theirs = [["llama.cpp", kind] for kind in TYPES]
    return [["blend"], ["merge"], ["disk"], *ours, ["F16"], *theirs]


def run(step: Sequence[str], folder: Path, threads: int) -> dict[str, Any]:
    """One step in its own process."""
    command = [sys.executable, __file__, "--folder", str(folder), "--threads", str(threads), "--step", *step]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def run_step(step: Sequence[str], folder: Path, threads: int) -> None:
    """Do it, and print what it cost as JSON. Imports are not timed."""
    work = _work(step, folder, threads)
    before, started, cpu = _io(), time.perf_counter(), time.process_time()
    work()
    seconds, cpu_seconds, after = time.perf_counter() - started, time.process_time() - cpu, _io()
    output = folder / f"{step[-1]}.gguf"
    row = {
        "step": " ".join(step),
        "kind": step[-1],
        "sha256": sha256_file(output) if step[-1] in TYPES else None,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_rss_bytes": peak_memory(),
        "read_bytes": after["rchar"] - before["rchar"],
        "written_bytes": after["wchar"] - before["wchar"],
    }
    if step[-1] in TYPES:
        output.unlink()
    print(json.dumps(row))


def _work(step: Sequence[str], folder: Path, threads: int) -> Callable[[], object]:
    import torch

    torch.set_num_threads(threads)
    merged = folder / "merged"
    kind = step[-1]
    if step[0] == "blend":
        from karma_electric.adapters.blend import blend_adapters
        from karma_electric.adapters.params import InterpolateParams

        params = InterpolateParams.model_validate(
            {"from": "1", "to": "2", "alpha": 0.3, "method": "exact", "rank": None}
        )
        return lambda: blend_adapters(folder / "adapter-1", folder / "adapter-2", folder / "blend", params=params)
    if step[0] == "merge":
        from karma_electric.adapters.merge import merge_adapter

        return lambda: merge_adapter(folder / "base", folder / "blend", merged)
    if step[0] == "disk":
        return lambda: copy_to_disk(merged, folder / "copy")
    if step[0] == "quantise":
        from karma_electric.gguf_files.native_quantizer import load_row_quantizer
        from karma_electric.gguf_files.quantized_writer import write_quantized_gguf
        from karma_electric.gguf_files.vocabulary import load_tokenizer

        load_row_quantizer()
        load_tokenizer(merged)  # transformers imports on first use
        output = folder / f"{kind}.gguf"
        return lambda: write_quantized_gguf(merged, output, gguf_type=kind, name="large", threads=threads)
    if step[0] == "F16":
        from karma_electric.gguf_files.vocabulary import load_tokenizer
        from karma_electric.gguf_files.writer import write_gguf

        load_tokenizer(merged)
        return lambda: write_gguf(merged, folder / "F16.gguf", gguf_type="F16", name="large")
    from karma_electric.gguf_files.llama_cpp_quantizer import quantize_gguf

    return lambda: quantize_gguf(folder / "F16.gguf", folder / f"{kind}.gguf", kind, threads)


def make_base(shape: str, blocks: int | None, tokenizer: Path, folder: Path) -> None:
    """A Llama of random weights in bf16 shards, with the tokenizer of another model and a manifest."""
    from transformers import LlamaConfig

    from karma_electric.gguf_files.llama_config import read_llama_config
    from karma_electric.gguf_files.planned_tensors import plan_tensors
    from karma_electric.integrity import write_manifest
    from karma_electric.safetensors_files import INDEX_NAME, SafetensorsWriter

    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tokenizer / name, folder / name)
    sizes = SHAPES[shape] | ({"num_hidden_layers": blocks} if blocks else {})
    LlamaConfig(
        **sizes, architectures=["LlamaForCausalLM"], tie_word_embeddings=False, max_position_embeddings=8192,
        rope_theta=500000.0, dtype="bfloat16", rms_norm_eps=1e-5,
    ).save_pretrained(folder)  # fmt: skip
    plan = list(plan_tensors(read_llama_config(folder)))
    weight_map: dict[str, str] = {}
    for number in range(SHARDS):
        part = plan[number * len(plan) // SHARDS : (number + 1) * len(plan) // SHARDS]
        name = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        weight_map |= {tensor.source: name for tensor in part}
        shapes = {tensor.source: ("BF16", tensor.shape) for tensor in part}
        with SafetensorsWriter(folder / name, shapes, {"format": "pt"}) as writer:
            for tensor in part:
                writer.write(tensor.source, random_tensor(tensor.shape, seed=hash_of(tensor.source)))
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    write_manifest(folder, {"kind": "base", "repo": "none/random", "license": "mit"})


def random_tensor(shape: Sequence[int], seed: int) -> Any:
    """bf16, from one pool of 16 million normal values, begun at another place for each seed."""
    import torch

    if len(shape) == 1:
        return torch.ones(tuple(shape), dtype=torch.bfloat16)
    pool = _pool()
    count = int(torch.Size(shape).numel())
    start = seed % len(pool)
    repeats = -(-(start + count) // len(pool))
    return pool.repeat(repeats)[start : start + count].reshape(tuple(shape))


def _pool(made: list[Any] = []) -> Any:  # noqa: B006  one pool a process
    import torch

    if not made:
        made.append((torch.randn(2**24, generator=torch.Generator().manual_seed(0)) * 0.02).to(torch.bfloat16))
    return made[0]


def hash_of(name: str) -> int:
    """The same number in every process."""
    import hashlib

    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


def make_adapter(base: Path, folder: Path, *, seed: int) -> None:
    """A random adapter of rank 64 on all projections of `base`."""
    from karma_electric.adapters.files import CONFIG_NAME, WEIGHTS_NAME, tensor_name
    from karma_electric.gguf_files.llama_config import read_llama_config
    from karma_electric.gguf_files.planned_tensors import plan_tensors
    from karma_electric.integrity import MANIFEST_NAME, write_manifest
    from karma_electric.safetensors_files import SafetensorsWriter

    folder.mkdir()
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    targets = set()
    for tensor in plan_tensors(read_llama_config(base)):
        if tensor.is_matrix and tensor.name.startswith("blk."):
            module = tensor.source.removesuffix(".weight")
            targets.add(module.split(".")[-1])
            shapes[tensor_name(module, "A")] = ("BF16", (RANK, tensor.shape[1]))
            shapes[tensor_name(module, "B")] = ("BF16", (tensor.shape[0], RANK))
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": sorted(targets), "bias": "none"}
    (folder / CONFIG_NAME).write_text(json.dumps(config))
    with SafetensorsWriter(folder / WEIGHTS_NAME, shapes, {"format": "pt"}) as writer:
        for name, (_, shape) in shapes.items():
            writer.write(name, random_tensor(shape, seed=hash_of(f"{seed}{name}")))
    write_manifest(folder, {"base": sha256_file(base / MANIFEST_NAME)})


def copy_to_disk(source: Path, target: Path) -> None:
    """Write the weights of a folder again, and wait for the disk; then remove them."""
    with target.open("wb", buffering=0) as out:
        for path in sorted(source.glob("*.safetensors")):
            with path.open("rb", buffering=0) as stream:
                while piece := stream.read(CHUNK_BYTES):
                    out.write(piece)
        os.fsync(out.fileno())
    target.unlink()


def peak_memory() -> int:
    """Of this process since it began; ru_maxrss would begin with its parent's."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024


def _io() -> dict[str, int]:
    lines = Path("/proc/self/io").read_text("ascii").splitlines()
    return {name: int(value) for name, value in (line.split(": ") for line in lines)}


def print_table(rows: Sequence[dict[str, Any]], same: dict[str, bool], threads: int) -> None:
    """One line a step."""
    print(f"machine: {platform.machine()}, {threads} threads, {platform.python_version()}; {os.getloadavg()} load")
    print("| step | seconds | CPU seconds | peak memory, GB | read, GB | written, GB |\n|---|---|---|---|---|---|")
    for row in rows:
        sizes = " | ".join(f"{row[key] / 1e9:.2f}" for key in ("peak_rss_bytes", "read_bytes", "written_bytes"))
        print(f"| {row['step']} | {row['seconds']:.1f} | {row['cpu_seconds']:.1f} | {sizes} |")
    print("; ".join(f"{kind}: {'the same bytes' if equal else 'OTHER BYTES'}" for kind, equal in same.items()))


if __name__ == "__main__":
    main()
