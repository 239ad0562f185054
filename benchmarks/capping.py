"""What a cap costs in llama.cpp: prefill and decode with 0, 7 and all layers capped, batch 1 and 8.

    python benchmarks/capping.py [models/gguf/karma-electric-135m-v8-Q8_0.gguf]

Directions are random and every ceiling is 0, so that about half of the positions are changed. The three contexts decode
the same batches one after the other, in changing order, and of each batch the least time over the turns counts: other
work on the machine only adds. Speeds are real tokens for each second of CPU time of this process; with one thread that
is wall time on an idle machine. The load average stands in the result.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from karma_electric.capping.formula import Cap, unit
from karma_electric.capping.llama_cpp import CapCallback
from karma_electric.capping.llama_cpp_runner import LlamaCppRunner, Token
from karma_electric.cli.caps import find_model
from karma_electric.engines.llama_cpp_model import LlamaCppModel

BATCH_TOKENS = 64
PREFILL_TOKENS = 128  # of all sequences together
DECODE_STEPS = 24
LEAST_KEPT = 0.92  # of the uncapped speed, with 7 layers


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="a GGUF file; without it, the one that was built")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the result here, too")
    arguments = parser.parse_args()
    load_before = os.getloadavg()
    path = find_model(arguments.model)
    model = LlamaCppModel(path)
    rows = [
        row for batch in (1, 8) for row in measure(model, batch=batch, turns=arguments.turns, threads=arguments.threads)
    ]
    result = {
        "model": path.name,
        "threads": arguments.threads,
        "turns": arguments.turns,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_average": [round(value, 2) for value in (*load_before, *os.getloadavg())],
        "rows": rows,
    }
    print(table(rows))
    print(f"load average (1, 5, 15 minutes), before and after: {result['load_average']}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    slow = [row for row in rows if row["layers"] == 7 and row["kept"] < LEAST_KEPT]
    sys.exit(f"a cap of 7 layers keeps less than {LEAST_KEPT:.0%}: {slow}" if slow else 0)


def measure(model: LlamaCppModel, *, batch: int, turns: int, threads: int) -> list[dict[str, Any]]:
    """Rows for one batch size: phase, layers, tokens a CPU second, share kept."""
    layer_counts = [0, 7, model.blocks - 1]
    phases = batches_of(batch)
    least = {
        (phase, count): np.full(len(batches), np.inf) for phase, batches in phases.items() for count in layer_counts
    }
    with contextlib.ExitStack() as stack:
        runners = {count: stack.enter_context(make_runner(model, count, batch, threads)) for count in layer_counts}
        for turn in range(turns + 1):  # the first warms up
            for runner in runners.values():
                runner.forget()
            for phase, batches in phases.items():
                for place, tokens in enumerate(batches):
                    for count in np.roll(layer_counts, turn + place).tolist():
                        seconds = timed(runners[count], tokens)
                        if turn:
                            least[phase, count][place] = min(least[phase, count][place], seconds)
    return [
        {
            "batch": batch,
            "phase": phase,
            "layers": count,
            "tokens_per_cpu_second": round(sum(map(len, batches)) / float(least[phase, count].sum()), 1),
            "kept": round(float(least[phase, 0].sum() / least[phase, count].sum()), 4),
        }
        for phase, batches in phases.items()
        for count in layer_counts
    ]


def make_runner(model: LlamaCppModel, layers: int, batch: int, threads: int) -> LlamaCppRunner:
    """A context with that many capped layers, around the depth where recipes cap."""
    return LlamaCppRunner(
        model,
        make_callback(model, layers) if layers else None,
        context_tokens=PREFILL_TOKENS + batch * (DECODE_STEPS + 8),
        batch_tokens=BATCH_TOKENS,
        sequences=batch,
        threads=threads,
    )


def make_callback(model: LlamaCppModel, layers: int) -> CapCallback:
    """Random directions, ceilings 0."""
    last = model.blocks - 1 if layers == model.blocks - 1 else round(model.blocks * 28 / 32)
    dice = np.random.default_rng(0)
    directions = {layer: unit(dice.normal(size=model.hidden_size)) for layer in range(last - layers + 1, last + 1)}
    cap = Cap(directions, dict.fromkeys(directions, 0.0), 1.0)
    return CapCallback(model.library, cap, hidden_size=model.hidden_size, blocks=model.blocks, max_rows=BATCH_TOKENS)


def batches_of(batch: int) -> dict[str, list[list[Token]]]:
    """What is decoded: a prompt for each of `batch` sequences, then one token of each at a time."""
    length = PREFILL_TOKENS // batch
    prompt = [Token(17 + (7 * position) % 1000, position, row) for position in range(length) for row in range(batch)]
    return {
        "prefill": [prompt[at : at + BATCH_TOKENS] for at in range(0, len(prompt), BATCH_TOKENS)],
        "decode": [[Token(31 + row, length + step, row) for row in range(batch)] for step in range(DECODE_STEPS)],
    }


def timed(runner: LlamaCppRunner, tokens: Sequence[Token]) -> float:
    """CPU seconds of one decode."""
    start = time.process_time()
    runner.decode(tokens)
    return time.process_time() - start


def table(rows: Sequence[dict[str, Any]]) -> str:
    """In Markdown."""
    lines = ["| batch | phase | capped layers | tokens a CPU second | kept |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['batch']} | {row['phase']} | {row['layers']} | {row['tokens_per_cpu_second']} | {row['kept']:.1%} |"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
