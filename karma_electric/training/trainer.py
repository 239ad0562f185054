"""trl's SFTTrainer with what this project adds: a loss that is cheap on a CPU, a record of it, and an early stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback
from trl import SFTTrainer

from karma_electric.canonical import rounded
from karma_electric.errors import InputError
from karma_electric.training.rendering import IGNORED_LABEL
from karma_electric.training.starter import Starter


class AssistantLossTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer whose loss on a CPU is computed at the learned positions alone.

    The value is trl's: the negative log-likelihood summed over learned tokens, divided by their number in the whole
    step. On a CPU trl's head scores prompt and padding too, and a second time in the backward pass, which takes half
    of the step; on a GPU its kernels do not, and are used.
    """

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of one micro-batch: input_ids, attention_mask and labels of shape (sequences, tokens)."""
        if return_outputs or inputs["input_ids"].device.type != "cpu":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        causal = model.get_base_model()
        with self.accelerator.autocast():
            hidden = causal.get_decoder()(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
            ).last_hidden_state  # (sequences, tokens, hidden_size)
            following = inputs["labels"][:, 1:]
            learned = following != IGNORED_LABEL
            logits = causal.get_output_embeddings()(hidden[:, :-1][learned])  # (learned tokens, vocabulary)
        count = learned.sum() if num_items_in_batch is None else num_items_in_batch
        return cross_entropy(logits.float(), following[learned], reduction="sum") / count


class LossCurve(TrainerCallback):  # type: ignore[misc]
    """Records step, loss and learning rate of every step, and stops a run whose loss is no number."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self.points: list[dict[str, float]] = []
        self._report = report

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs is None or "loss" not in logs:
            return
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise InputError(f"train: the loss is {loss} at step {state.global_step}; lower train.learning_rate")
        point = {"step": state.global_step, "loss": rounded(loss), "learning_rate": rounded(logs["learning_rate"])}
        self.points.append(point)
        if state.global_step % max(1, state.max_steps // 20) == 0 or state.global_step == state.max_steps:
            self._report(f"train: step {state.global_step} of {state.max_steps}, loss {loss:.3f}")


class StopWithStarter(TrainerCallback):  # type: ignore[misc]
    """Ends the run when the process that started it is gone."""

    def __init__(self) -> None:
        self._starter = Starter()

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        self._starter.require("train")

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._starter.require("train")


def check_batches(batches: Any, labels_of: dict[tuple[int, ...], list[int]]) -> int:
    """Compare every collated batch with what was rendered; the number of sequences seen.

    Raises RuntimeError, because only a fault of ours or of trl's leads there, when a label stands on a prompt, a
    header or padding, or is missing from an answer.
    """
    seen = 0
    for batch in batches:
        for ids, labels, attention in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            length = int(attention.sum())
            expected = labels_of.get(tuple(ids[:length].tolist()))
            padded = [*(expected or ()), *[IGNORED_LABEL] * (len(ids) - length)]
            if expected is None or labels.tolist() != padded or not bool(attention[:length].all()):
                raise RuntimeError("the collated labels are not the rendered ones; training would learn other tokens")
            seen += 1
    return seen
