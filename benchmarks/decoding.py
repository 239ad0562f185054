"""Tokens a second by the shape of llama.cpp's decode call: the gate's prompts, and its answers in parallel.

    python benchmarks/decoding.py models/gguf/karma-electric-135m-v8-Q8_0.gguf

A shape is so many sequences with so many tokens each, behind CONTEXT_TOKENS earlier ones. Of a shape's calls the median
counts, and the least stands beside it: other work on the machine only adds. Only logits that an engine reads are
computed: after the last token of each sequence.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from karma_electric.engines.llama_cpp_decoder import BATCH_TOKENS, LlamaCppDecoder, Row
from karma_electric.engines.llama_cpp_model import LlamaCppModel

CONTEXT_TOKENS = 200  # about what the gate's evaluator reads before it rates
PROMPT_SHAPES = tuple((1, tokens) for tokens in (2, 4, 8, 16, 32, BATCH_TOKENS))
ANSWER_SHAPES = tuple((sequences, 1) for sequences in (1, 2, 4, 8, 12, 16))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write the result here, too")
    arguments = parser.parse_args()
    load_before = os.getloadavg()
    model = LlamaCppModel(arguments.model)
    rows = []
    print(f"| {'call':<24} | {'ms':>7} | {'least ms':>8} | {'tokens/s':>8} |")
    print("|---|---:|---:|---:|")
    for kind, shapes in (("prompt", PROMPT_SHAPES), ("answer", ANSWER_SHAPES)):
        for sequences, tokens in shapes:
            rows.append(measure(model, sequences, tokens, turns=arguments.turns, threads=arguments.threads))
            row = rows[-1]
            name = f"{kind}, {sequences} x {tokens}"
            print(f"| {name:<24} | {row['ms']:7.1f} | {row['least_ms']:8.1f} | {row['tokens_per_second']:8.0f} |")
    load = [round(value, 2) for value in (*load_before, *os.getloadavg())]
    print(f"load average (1, 5, 15 minutes), before and after: {load}")
    if arguments.json:
        machine = f"{platform.machine()}, {os.cpu_count()} cores"
        result = {
            "model": arguments.model.name,
            "threads": arguments.threads,
            "machine": machine,
            "load_average": load,
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def measure(model: LlamaCppModel, sequences: int, tokens: int, *, turns: int, threads: int) -> dict[str, Any]:
    """The times of one shape."""
    random = np.random.default_rng(0)
    decoder = LlamaCppDecoder(
        model, context_tokens=512, threads=threads, cache_type="f16", cap=None, sequences=sequences
    )

    def rows(numbers: range, start: int, count: int) -> list[Row]:
        ids = random.integers(model.vocab_size, size=(len(numbers), count)).tolist()
        return [
            Row(ids[place][index], start + index, (number,), index == count - 1)
            for place, number in enumerate(numbers)
            for index in range(count)
        ]

    for number in range(sequences):
        for start in range(0, CONTEXT_TOKENS, 50):
            decoder.decode(rows(range(number, number + 1), start, 50))
    seconds = []
    for _ in range(turns + 1):  # the first warms up
        batch = rows(range(sequences), CONTEXT_TOKENS, tokens)
        begun = time.perf_counter()
        decoder.decode(batch)
        seconds.append(time.perf_counter() - begun)
        for number in range(sequences):
            decoder.remove(number, CONTEXT_TOKENS)
    decoder.free()
    median, least = statistics.median(seconds[1:]), min(seconds[1:])
    return {
        "sequences": sequences,
        "tokens": tokens,
        "ms": round(1000 * median, 2),
        "least_ms": round(1000 * least, 2),
        "tokens_per_second": round(sequences * tokens / median, 1),
    }


if __name__ == "__main__":
    main()
