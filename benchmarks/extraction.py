"""Extracting an axis in batches against the naive loop: one prompt at a time through the whole model, a hook on every
block.

    python benchmarks/extraction.py [models/merged] [--prompts data/prompts]
    python benchmarks/extraction.py models/base --shape 8b --prompts data/prompts --samples 200 --batch 64 \
        --dtype bfloat16

With `--shape` the model has random weights, which are made in memory, and of the folder only the tokenizer is read.
Both measure the same contrast prompts under the same system prompts, each in a process of its own with two threads, so
that the peak memory is that of one way. `--dtype` is that of the naive loop's model and states; the other way gets a
bf16 model, as the stage does, and on a CPU measures its states in float32. Seconds are wall time; the load average
stands in the result, because on a shared machine they measure the others as well, and CPU seconds beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from karma_electric.axis.extraction import axis_with_error, measure_contrast
from karma_electric.axis.model import LoadedModel, load_model, on_every_gpu, render
from karma_electric.axis.params import AxisParams
from karma_electric.axis.prompts import Prompt, read_contrast_prompts, read_generic_prompts, sample
from karma_electric.axis.states import last_token_states
from karma_electric.capping.pytorch import decoder_blocks
from karma_electric.prompts import read_prompt

LEAST_SPEEDUP = 4.0
LEAST_COSINE = {"float32": 0.9999, "bfloat16": 0.998}  # a naive state in bf16 is noisy
WAYS = ("naive", "batched")
SHAPES = {
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256},
    "tiny": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 49152},
}  # fmt: skip


def main() -> None:
    """Measure both ways and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=Path("models/merged"))
    parser.add_argument("--prompts", type=Path, default=Path("data/prompts"), help="the folder with the prompt files")
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="float32")
    parser.add_argument("--json", type=Path, help="write the result here, too")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape, with the model's tokenizer")
    parser.add_argument("--every-gpu", action="store_true", help="the batches on all GPUs, the naive loop on the first")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        run_one(arguments)
    else:
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Run each way in its own process; exit code 1 where the figures are not reached."""
    found: dict[str, dict[str, Any]] = {}
    axes: dict[str, NDArray[np.float64]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            output = Path(folder) / way
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way, "--output", str(output)]
            environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
            subprocess.run(command, check=True, env=environment)
            found[way] = json.loads(output.with_suffix(".json").read_text())
            axes[way] = np.load(output.with_suffix(".npy")).astype(np.float64)
    cosine = float(cosines(axes["naive"], axes["batched"]).min())
    speedup = found["naive"]["seconds"] / found["batched"]["seconds"]
    result = {"ways": found, "least_cosine": cosine, "speedup": speedup, "load_average": os.getloadavg()}
    print("| way | seconds | CPU seconds | peak memory, MB |\n|---|---|---|---|")
    for way, row in found.items():
        print(f"| {way} | {row['seconds']:.1f} | {row['cpu_seconds']:.1f} | {row['peak_rss_bytes'] / 1e6:.0f} |")
    print(f"{speedup:.1f} times as fast; least cosine of a layer {cosine:.6f}; load average {os.getloadavg()}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    least = LEAST_COSINE[arguments.dtype]
    if speedup < LEAST_SPEEDUP or cosine < least:
        sys.exit(f"expected {LEAST_SPEEDUP} times, and a cosine above {least}")


def run_one(arguments: argparse.Namespace) -> None:
    """One way: the axis into a file, and what it cost."""
    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype) if arguments.way == "naive" else torch.bfloat16
    loaded = random_model(arguments, dtype) if arguments.shape else load_model(arguments.model, dtype=dtype)
    contrast = sample(read_contrast_prompts(arguments.prompts / "axis-contrast.jsonl"), arguments.samples, 42)
    for number in range(arguments.samples - len(contrast)):  # two of them together
        first, second = contrast[number % len(contrast)], contrast[number // 2]
        contrast.append(replace(first, text=f"{first.text} {second.text}"))
    if arguments.every_gpu and arguments.way == "batched":
        loaded = on_every_gpu(loaded)
    warm_up(loaded)
    systems = [read_prompt(arguments.prompts / "persona.txt")]
    systems += [prompt.text for prompt in read_generic_prompts(arguments.prompts / "generic.jsonl")]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start, cpu_start = time.perf_counter(), time.process_time()
    if arguments.way == "naive":
        axis = naive_axis(loaded, contrast, systems)
    else:
        params = AxisParams(
            source="prompts", samples=arguments.samples, seed=42, max_prompt_tokens=512, answer_tokens=1,
            batch_size=arguments.batch, position="last-prompt-token", second_language_share=0, effect_sizes=False,
        )  # fmt: skip
        axis, _ = measure_contrast(loaded, contrast, systems, params, lambda _line: None)
    record = {
        "device_peak_bytes": torch.cuda.max_memory_allocated() if loaded.device.type == "cuda" else None,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu_start,
        "model_rss_bytes": before,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    arguments.output.with_suffix(".json").write_text(json.dumps(record))
    np.save(arguments.output.with_suffix(".npy"), axis)


def random_model(arguments: argparse.Namespace, dtype: torch.dtype) -> LoadedModel:
    """A Llama of the shape, on CUDA where there is one, with the tokenizer of the model's folder."""
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, local_files_only=True)
    config = LlamaConfig(**SHAPES[arguments.shape], max_position_embeddings=8192, rope_theta=500000.0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model: Any = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(before)
    model.to(dtype)
    found = decoder_blocks(model)
    return LoadedModel(
        model=model, tokenizer=tokenizer, decoder=found.decoder, blocks=found.blocks, hidden_size=found.hidden_size,
        name="random", sha256="0" * 64, model_type="llama", context_tokens=8192, pad_id=0, end_ids=frozenset(),
    )  # fmt: skip


def warm_up(loaded: LoadedModel) -> None:
    """One pass of either way, not timed: the first ones load kernels and parts of the libraries."""
    ids = list(range(100, 160))
    with torch.no_grad():
        loaded.model(input_ids=torch.tensor([ids], device=loaded.device))
    list(last_token_states(loaded, [ids, ids[:-7], ids[:30]] * (1 + len(loaded.others)), 3))


def naive_axis(loaded: LoadedModel, contrast: list[Prompt], systems: list[str]) -> NDArray[np.float32]:
    """One prompt at a time through the model and its head, with a hook on every block."""
    weights = [-1.0, *[1.0 / (len(systems) - 1)] * (len(systems) - 1)]
    differences = np.zeros((len(contrast), loaded.n_layers, loaded.hidden_size))
    states: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            states[layer] = hidden.detach().float().cpu()

        return hook

    handles = [block.register_forward_hook(keep(layer)) for layer, block in enumerate(loaded.blocks)]
    for row, prompt in enumerate(contrast):
        for system, weight in zip(systems, weights, strict=True):
            ids = render(loaded, system, prompt.text, most_tokens=512, where=prompt.where)
            with torch.no_grad():
                loaded.model(input_ids=torch.tensor([ids], device=loaded.device))
            last = torch.stack([states[layer][0, -1] for layer in range(loaded.n_layers)])
            differences[row] += weight * last.double().numpy()
    for handle in handles:
        handle.remove()
    return axis_with_error(torch.from_numpy(differences))[0]


def cosines(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each layer's directions: (n_layers, hidden_size) twice -> (n_layers,)."""
    product = (first * second).sum(1)
    result: NDArray[np.float64] = product / (np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1))
    return result


if __name__ == "__main__":
    main()
