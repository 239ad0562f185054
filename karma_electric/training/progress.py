"""The loss of every step, and what a person wants to see while it is made."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from karma_electric.canonical import rounded
from karma_electric.errors import InputError

# Dense bf16 matrix products, FLOP/s, by the vendor's data sheets; the part that the device's name holds.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L40": 181e12, "4090": 165e12}


def peak_flops(device_name: str) -> float | None:
    """The device's bf16 peak in FLOP/s, or None where it is not known."""
    return next((value for name, value in PEAK_FLOPS.items() if name in device_name), None)


class LossCurve(TrainerCallback):  # type: ignore[misc]
    """Records step, loss and learning rate of every step, reports, and stops a run whose loss is no number.

    `flops_per_token`: what a token costs, forward and backward; `peak`: the machine's FLOP/s. With both, progress
    names the share of the peak.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self.points: list[dict[str, float]] = []
        self.flops_per_token = 0.0
        self.peak: float | None = None
        self._report = report
        self._tokens = 0
        self._started: float | None = None
        self._first_step = 0

    def count(self, tokens: int) -> None:
        """Tokens of a step that was made. The first one warms up, and does not count in the speed."""
        if self._started is not None:
            self._tokens += tokens

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs is None or "loss" not in logs:
            return
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise InputError(f"train: the loss is {loss} at step {state.global_step}; lower train.learning_rate")
        point = {"step": state.global_step, "loss": rounded(loss), "learning_rate": rounded(logs["learning_rate"])}
        self.points.append(point)
        every = max(1, state.max_steps // 20)
        if state.is_world_process_zero and (state.global_step % every == 0 or state.global_step == state.max_steps):
            speed = self._speed(state.global_step, state.max_steps)
            self._report(f"train: step {state.global_step} of {state.max_steps}, loss {loss:.3f}{speed}")
        if self._started is None:
            self._started, self._first_step = time.monotonic(), state.global_step

    def _speed(self, step: int, n_steps: int) -> str:
        if self._started is None or step == self._first_step:
            return ""
        seconds = time.monotonic() - self._started
        tokens_per_second = self._tokens / seconds
        text = f", {tokens_per_second:,.0f} tokens/s"
        if self.peak:
            text += f", {tokens_per_second * self.flops_per_token / self.peak:.0%} of peak"
        left = seconds / (step - self._first_step) * (n_steps - step)
        return text + (f", {duration(left)} left" if step < n_steps else "")


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
