"""Training on one GPU and on several: tokens a second, memory, and that both learn the same.

    python benchmarks/several_gpus.py [--shape 8b] [--steps 10] [--processes 1 2] [--sharded]

The variant of benchmarks/train_throughput.py without recomputation, under `accelerate launch` with one process for each
GPU: with a copy of the model (DDP) or, with `--sharded`, a share of it (FSDP, profiles/accelerate/fsdp.yaml). A step
holds the same 16 sequences however many processes share it, so each has fewer tokens in its rows. Without CUDA the
processes talk through gloo, with the tiny shape.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import train_throughput
from karma_electric.training.launch import RunSettings, launch_options, take_over_fsdp

WORKER = "KARMA_BENCHMARK_WORKER"  # set for the processes that are launched
BUDGET = {"8b": 16384, "tiny": 2048}


def main() -> None:
    """Launch each number of processes in turn, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shape", choices=train_throughput.SHAPES, default="8b" if torch.cuda.is_available() else "tiny"
    )
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sharded", action="store_true", help="where there are several, each holds a share (FSDP)")
    parser.add_argument("--json", type=Path, help="write the results here, too")
    arguments = parser.parse_args()
    if WORKER in os.environ:
        work(arguments)
        return
    results = [launched(arguments, processes) for processes in arguments.processes]
    print_table(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


def launched(arguments: argparse.Namespace, processes: int) -> dict[str, Any]:
    """The result of the first of `processes` processes."""
    file = "profiles/accelerate/fsdp.yaml" if arguments.sharded and processes > 1 else None
    settings = RunSettings(launcher="accelerate", processes=processes, accelerate_config=file)
    command = [
        sys.executable, "-m", "accelerate.commands.launch", *launch_options(settings),
        "-m", "benchmarks.several_gpus", "--shape", arguments.shape, "--steps", str(arguments.steps),
    ]  # fmt: skip
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | {WORKER: "1"})
    result: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return {"processes": processes, **result}


def work(arguments: argparse.Namespace) -> None:
    """Train, as one of the processes; the first prints the result."""
    from accelerate import PartialState

    sharded = take_over_fsdp(os.environ)
    on_cuda = torch.cuda.is_available()
    state = PartialState(cpu=not on_cuda)
    variant = train_throughput.Variant("packed, nothing recomputed", BUDGET[arguments.shape])
    rows = train_throughput.sequences(arguments.steps, arguments.shape)
    result = train_throughput.measure(variant, rows, arguments.shape, "cuda" if on_cuda else "cpu", sharded=sharded)
    if state.is_main_process:
        print(json.dumps({key: result[key] for key in ("tokens_per_second", "peak_gib", "losses")}), flush=True)
    if state.num_processes > 1:
        state.destroy_process_group()


def print_table(results: list[dict[str, Any]]) -> None:
    """One line for each number of processes, compared with the first."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"machine: {name}")
    print("| processes | tokens/s | times | peak GiB of a process | mean loss | largest step difference |")
    print("|---|---|---|---|---|---|")
    first = results[0]
    for result in results:
        speed, losses = result["tokens_per_second"], result["losses"]
        apart = max(abs(math.log(a / b)) for a, b in zip(losses, first["losses"], strict=True))
        memory = "-" if result["peak_gib"] is None else f"{result['peak_gib']:.1f}"
        print(
            f"| {result['processes']} | {speed:,.0f} | {speed / first['tokens_per_second']:.2f} | {memory} | "
            f"{sum(losses) / len(losses):.4f} | {apart:.2%} |"
        )


if __name__ == "__main__":
    main()
