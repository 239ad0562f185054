"""Training speed: the old recipe (batch 2 x 8, every block checkpointed, no packing) and ours, in one run.

python benchmarks/train_throughput.py [--shape 8b] [--steps 10] [--json train_throughput.json]

On a CUDA device the model has the shape of Llama 3.1 8B and random weights, made in NF4 layer by layer; without one, a
few small blocks, to see that the script runs. Every variant starts from the same adapter and sees the same 16
sequences in every step. Tokens are real ones, never padding. The first two steps warm up and are not timed.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitsandbytes
import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import SequentialSampler
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from karma_electric.base_model.quiet import quiet_libraries
from karma_electric.training.build import trainer_of, training_arguments
from karma_electric.training.packing import StepCollator, step_loader
from karma_electric.training.params import TrainParams
from karma_electric.training.progress import LossCurve
from karma_electric.training.rendering import RenderedExample
from karma_electric.training.sharding import STORAGE

WARM_UP_STEPS = 2
SHAPES = {
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256},
    "tiny": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 512},
}  # fmt: skip
MEAN_TOKENS = {"8b": 566, "tiny": 64}
RANK = {"8b": 64, "tiny": 8}
KERNELS = {
    "matrix products": ("nvjet", "gemm", "splitKreduce", "cutlass_80", "cublas"),
    "attention": ("flash", "attention"),
    "dequantisation": ("dequantize", "Dequantize"),
    "optimizer": ("kOptimizer",),
    "elementwise, fused": ("triton_",),
}


@dataclass(frozen=True)
class Variant:
    """`budget` tokens a pass and `recomputed` share of the blocks, for ours; neither for the old recipe."""

    name: str
    budget: int = 0
    recomputed: float = 0.0
    memory_gib: float | None = None


def variants(shape: str) -> list[Variant]:
    """What is compared."""
    scale = 1 if shape == "8b" else 8
    return [
        Variant("old recipe: batch 2 x 8, every block checkpointed, padded"),
        Variant("packed, 16,384 tokens, nothing recomputed", 16384 // scale),
        Variant("packed, 8,192 tokens, nothing recomputed", 8192 // scale),
        Variant("packed, 16,384 tokens, every block recomputed, 16 GiB", 16384 // scale, 1.0, 16.0),
    ]


class Times(TrainerCallback):  # type: ignore[misc]
    """When each step ended. The loss was read before, so the device is done with it."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.ends.append(time.perf_counter())
            self.losses.append(float(logs["loss"]))


class OldTrainer(SFTTrainer):  # type: ignore[misc]
    """The old recipe, in the order of sequences that is given."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def nf4_llama(shape: str, device: str, *, sharded: bool = False) -> Any:
    """A Llama of random weights, in NF4 with double quantisation where it is linear; `sharded`: as FSDP takes it."""
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=8192, rope_theta=500000.0, dtype="bfloat16")
    torch.manual_seed(0)
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and "layers" in name:
            weight = torch.randn(module.out_features, module.in_features, device=device, dtype=torch.bfloat16) * 0.02
            small = bitsandbytes.nn.Linear4bit(
                module.in_features, module.out_features, False, torch.bfloat16, True, "nf4", device="meta"
            )
            small.weight = bitsandbytes.nn.Params4bit(
                weight.cpu() if device == "cpu" else weight,
                False,
                quant_type="nf4",
                compress_statistics=True,
                quant_storage=STORAGE if sharded else torch.uint8,
                module=small,
            ).to(device)
            model.set_submodule(name, small)
    for name, module in list(model.named_modules()):
        for key, value in list(module.named_parameters(recurse=False)):
            if value.device.type == "meta":
                filled = torch.ones if "norm" in name else lambda *a, **k: torch.randn(*a, **k) * 0.02
                weight = filled(value.shape, device=device, dtype=torch.bfloat16)
                setattr(module, key, nn.Parameter(weight, requires_grad=False))
    with torch.device(device):
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
    model.is_loaded_in_4bit = True
    return model


def sequences(n_steps: int, shape: str) -> list[RenderedExample]:
    """16 sequences a step: log-normal lengths, tokens by Zipf's law, the last seven tenths learned."""
    random = np.random.default_rng(0)
    count = 16 * n_steps
    lengths = np.clip(random.lognormal(0, 0.5, count), 0.1, 7)
    lengths = np.maximum(8, lengths / lengths.mean() * MEAN_TOKENS[shape]).astype(int)
    weights = np.cumsum(1 / np.arange(1, SHAPES[shape]["vocab_size"] + 1))
    found = []
    for number, length in enumerate(lengths.tolist()):
        ids = np.searchsorted(weights / weights[-1], random.random(length)).tolist()
        asked = int(length * 0.3)
        found.append(RenderedExample(str(number), tuple(ids), (False,) * asked + (True,) * (length - asked), False))
    return found


def recipe(variant: Variant, shape: str) -> TrainParams:
    """The recipe of the 8B profile."""
    return TrainParams.model_validate(
        {
            "seed": 42, "examples": None, "epochs": 1, "max_length": 16, "sequences_per_step": 16,
            "tokens_per_microbatch": max(16, variant.budget), "recomputed_share": variant.recomputed,
            "learning_rate": 0.0002, "schedule": "constant", "warmup_ratio": 0.0, "weight_decay": 0.01,
            "max_gradient_norm": 0.3, "optimizer": "paged_adamw_8bit",
            "lora": {"rank": RANK[shape], "alpha": 2 * RANK[shape], "dropout": 0.05,
                     "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]},
        }
    )  # fmt: skip


def make_trainer(
    variant: Variant, rows: Sequence[RenderedExample], shape: str, device: str, scratch: Path, *, sharded: bool
) -> Any:
    """The trainer of a variant, on a fresh model."""
    params = recipe(variant, shape)
    vocabulary = {"<pad>": 0, "a": 1}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, "a")), pad_token="<pad>", eos_token="<pad>"
    )
    set_seed(0)
    model = nf4_llama(shape, device, sharded=sharded)
    set_seed(1)
    arguments = training_arguments(params, scratch)
    if variant.budget:
        return trainer_of(model, tokenizer, rows, params, arguments, LossCurve(lambda _: None), sharded=sharded)
    from peft import LoraConfig

    changes = {
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 8, "gradient_checkpointing": True,
        "dataloader_pin_memory": device == "cuda",
    }  # fmt: skip
    old: Any = SFTConfig(**{**_given(arguments), **changes})
    order = [number for step in step_loader(StepCollator(rows, 1, params.seed), 16)[1] for number in step]
    lora = params.lora
    return OldTrainer(
        model=model,
        args=old,
        train_dataset=Dataset.from_list(
            [{"input_ids": list(rows[number].input_ids), "labels": rows[number].labels} for number in order]
        ),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=sorted(lora.targets),
            bias="none",
        ),
    )


def _given(arguments: SFTConfig) -> dict[str, Any]:
    names = (
        "output_dir", "num_train_epochs", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay",
        "max_grad_norm", "optim", "bf16", "use_cpu", "seed", "data_seed", "max_length", "dataset_kwargs",
        "logging_steps", "logging_nan_inf_filter", "disable_tqdm", "report_to", "save_strategy",
    )  # fmt: skip
    return {name: getattr(arguments, name) for name in names}


def measure(
    variant: Variant, rows: Sequence[RenderedExample], shape: str, device: str, *, sharded: bool = False
) -> dict[str, Any]:
    """Train one epoch; tokens/s of the timed steps, peak memory, losses, and for ours a profile of one step."""
    on_cuda = device == "cuda"
    if on_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        whole = torch.cuda.get_device_properties(0).total_memory / 2**30
        torch.cuda.set_per_process_memory_fraction(min(1.0, (variant.memory_gib or whole) / whole))
    with tempfile.TemporaryDirectory() as scratch, quiet_libraries():
        trainer = make_trainer(variant, rows, shape, device, Path(scratch), sharded=sharded)
        trainer.remove_callback(PrinterCallback)
        times = Times()
        trainer.add_callback(times)
        trainer.train()
        order = step_loader(StepCollator(rows, 1, 42), 16)[1]
        tokens = [sum(len(rows[number].input_ids) for number in step) for step in order]
        seconds = times.ends[-1] - times.ends[WARM_UP_STEPS - 1]
        result = {
            "variant": variant.name,
            "tokens_per_second": sum(tokens[WARM_UP_STEPS:]) / seconds,
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if on_cuda else None,
            "reserved_gib": torch.cuda.max_memory_reserved() / 2**30 if on_cuda else None,
            "losses": times.losses,
        }
        if variant.budget:
            result["flops_per_token"] = trainer.curve.flops_per_token
            if on_cuda:
                result["profile"] = profiled(trainer, next(iter(trainer.get_train_dataloader())))
    return result


def profiled(trainer: Any, item: Any) -> dict[str, Any]:
    """Milliseconds on the device in one step, by kind of kernel, and of the step on the clock."""
    model = trainer.model_wrapped

    def step() -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        trainer.training_step(model, item)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        trainer.gather_gradients()
        trainer.optimizer.step()
        model.zero_grad()
        torch.cuda.synchronize()
        return (time.perf_counter() - started) * 1e3

    on_the_clock = min(step() for _ in range(3))
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        step()
    kinds: dict[str, float] = defaultdict(float)
    kernels: dict[str, float] = defaultdict(float)
    for event in recorded.key_averages():
        if event.device_type.name == "CUDA" and not event.key.startswith("Optimizer.step"):
            milliseconds = event.self_device_time_total / 1e3
            kind = next((kind for kind, names in KERNELS.items() if any(n in event.key for n in names)), "other")
            kinds[kind] += milliseconds
            kernels[event.key[:90]] += milliseconds
    longest = dict(sorted(kernels.items(), key=lambda entry: -entry[1])[:25])
    return {"tokens": item["step"].tokens, "step_ms": on_the_clock, "kinds_ms": dict(kinds), "kernels_ms": longest}


def matrix_flops(device: str) -> float:
    """What a large bf16 matrix product reaches here, FLOP/s."""
    size = 8192 if device == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(10):
        a @ b
    if device == "cuda":
        torch.cuda.synchronize()
    return 10 * 2 * size**3 / (time.perf_counter() - started)


def print_table(results: Sequence[dict[str, Any]], ceiling: float) -> None:
    """Speed, share of the measured matrix rate, memory and loss; then where the time of a step goes."""
    flops = next(result["flops_per_token"] for result in results if "flops_per_token" in result)
    old = results[0]
    print(f"{flops / 1e9:.1f} GFLOP a token; a large bf16 matrix product reaches {ceiling / 1e12:.0f} TFLOP/s here")
    print("| variant | tokens/s | times | of the matrix rate | peak GiB | mean loss | largest step difference |")
    print("|---|---|---|---|---|---|---|")
    for result in results:
        speed = result["tokens_per_second"]
        memory = f"{result['peak_gib']:.1f}" if result["peak_gib"] is not None else "-"
        apart = max(abs(math.log(a / b)) for a, b in zip(result["losses"], old["losses"], strict=True))
        mean = sum(result["losses"]) / len(result["losses"])
        print(
            f"| {result['variant']} | {speed:,.0f} | {speed / old['tokens_per_second']:.1f} | "
            f"{speed * flops / ceiling:.0%} | {memory} | {mean:.4f} | {apart:.2%} |"
        )
    for result in results:
        if "profile" in result:
            found = result["profile"]
            parts = [f"{kind} {ms:.0f}" for kind, ms in sorted(found["kinds_ms"].items(), key=lambda e: -e[1])]
            idle = found["step_ms"] - sum(found["kinds_ms"].values())
            print(
                f"{result['variant']}: a step of {found['tokens']:,} tokens takes {found['step_ms']:.0f} ms: "
                f"{', '.join(parts)}, idle {idle:.0f}"
            )


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), help="default: 8b on a CUDA device, else tiny")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", type=Path, help="also write the results here")
    parsed = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = parsed.shape or ("8b" if device == "cuda" else "tiny")
    rows = sequences(parsed.steps, shape)
    ceiling = matrix_flops(device)
    results = []
    for variant in variants(shape):
        results.append(measure(variant, rows, shape, device))
        print(f"done: {variant.name}: {results[-1]['tokens_per_second']:,.0f} tokens/s", flush=True)
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"machine: {machine}, torch {torch.__version__}")
    print_table(results, ceiling)
    if parsed.json:
        parsed.json.write_text(json.dumps({"machine": machine, "ceiling": ceiling, "results": results}, indent=2))


if __name__ == "__main__":
    main()
