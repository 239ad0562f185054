"""Training sets and recipes for a tiny model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from karma_electric.canonical import write_json_lines
from karma_electric.conversation import Example, Message
from karma_electric.training.params import TrainParams

QUESTIONS = ["Who are you?", "It hurts.", "Can you help me?", "What now?", "Is it late?", "Why?"]
ANSWERS = ["A helper, and here.", "Tell me where. I stay.", "Yes. Say what you need.", "Rest, then call her."]


def examples(count: int = 12) -> list[Example]:
    """Short conversations; every third has two turns, every second a system prompt."""
    found = []
    for number in range(count):
        turns = [Message("user", QUESTIONS[number % 6]), Message("assistant", ANSWERS[number % 4])]
        if number % 3 == 0:
            turns += [Message("user", f"And {number}?"), Message("assistant", "That too.")]
        first = [Message("system", "You are kind.")] if number % 2 else []
        found.append(Example(f"row-{number:03d}", "original", "ab"[number % 2], (*first, *turns)))
    return found


def write_set(path: Path, rows: Iterable[Example]) -> Path:
    path.write_bytes(write_json_lines(row.as_row() for row in rows))
    return path


def recipe(**changes: Any) -> TrainParams:
    """Six quick steps, unless changed."""
    values = {
        "seed": 7,
        "examples": None,
        "epochs": 2,
        "max_length": 128,
        "sequences_per_step": 4,
        "tokens_per_microbatch": 256,
        "recomputed_share": 0.0,
        "learning_rate": 0.005,
        "schedule": "cosine",
        "warmup_ratio": 0.0,
        "weight_decay": 0.01,
        "max_gradient_norm": 0.3,
        "optimizer": "paged_adamw_8bit",
        "lora": {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": ["q_proj", "v_proj", "down_proj"]},
    }
    return TrainParams.model_validate(values | changes)
