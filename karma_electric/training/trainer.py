"""trl's SFTTrainer on packed rows: each step a fixed number of sequences, in as few passes as memory allows.

The loss is trl's: the negative log-likelihood summed over learned tokens, divided by their number in the whole step.
Data, loss and gradient are this project's; model, adapter, optimizer, schedule, clipping and loop are the libraries'.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from transformers import TrainerCallback
from trl import SFTTrainer

from karma_electric.errors import IntegrityError
from karma_electric.integrity import write_bytes
from karma_electric.training.checkpoints import CheckpointStore
from karma_electric.training.flat_parameters import FlatParameters
from karma_electric.training.packed_llama import PackedLlama
from karma_electric.training.packing import PackedRow, PackedStep, StepCollator, step_loader
from karma_electric.training.progress import LossCurve
from karma_electric.training.rendering import RenderedExample
from karma_electric.training.sharding import gathered, set_values, shard, whole
from karma_electric.training.starter import Starter

_STATE_NAME = "state.pt"
_TRAINER_STATE_NAME = "trainer_state.json"  # where transformers looks for it


class PackedTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer whose batches are PackedSteps, whose dropout needs no generator, and whose checkpoints are verified.

    `tokens_per_microbatch` is the budget of one pass; `recomputed_share` of the blocks keep only their input.
    With `sharded`, each process keeps a share of the model.
    """

    def __init__(
        self,
        *,
        examples: Sequence[RenderedExample],
        sequences_per_step: int,
        tokens_per_microbatch: int,
        recomputed_share: float,
        sharded: bool,
        curve: LossCurve,
        checkpoints: CheckpointStore | None,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.optimizer: Any
        self.curve, self.checkpoints = curve, checkpoints
        self._starter = Starter()
        self._flat: FlatParameters | None = None
        self.collator = StepCollator(
            examples,
            tokens_per_microbatch,
            self.args.seed,
            rank=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )
        self.sequences_per_step = sequences_per_step
        self._loader, self._order = step_loader(self.collator, sequences_per_step)
        causal = self.model.get_base_model()
        self.sharded = sharded
        if sharded:
            shard(self.model, causal.model.layers)
            self.is_distributed_loading_by_transformers = True  # so that accelerate does not wrap it
        self.llama = PackedLlama(causal, _computing_type(self.model), recomputed_share=recomputed_share)
        causal.forward = _forward_of(self.llama)
        self.add_callback(_AroundOptimizer(self))
        self.add_callback(curve)

    def get_train_dataloader(self) -> Any:
        """One item {"step": PackedStep} for each step of an epoch, the same in every process but for its rows."""
        self._order.steps_done = lambda: int(self.state.global_step)
        return self._loader

    def training_step(self, model: Any, inputs: dict[str, PackedStep], num_items_in_batch: Any = None) -> Tensor:
        """All passes of a step, forward and backward; the step's loss, in nats a learned token."""
        step = inputs["step"]
        rows = [row.to(self.args.device) for row in step.rows]
        model.train()
        # Gradients, and reported losses, are averaged over the processes.
        share = self.accelerator.num_processes / step.learned_tokens
        total = torch.zeros((), device=self.args.device)
        for number, row in enumerate(rows, start=1):
            self._starter.require("train")
            is_last = number == len(rows)
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(model):
                loss = model(row=row) * share
                self.accelerator.backward(loss)
            total += loss.detach()
        self.curve.count(step.tokens)
        return total

    def create_optimizer(self, model: Any = None) -> Any:
        """The recipe's optimizer, on one buffer that holds every trained parameter."""
        if self.optimizer is None:
            self._flat = FlatParameters([value for value in self.model.parameters() if value.requires_grad])
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = kind([{"params": [self._flat.flat], "weight_decay": self.args.weight_decay}], **settings)
        return self.optimizer

    def gather_gradients(self) -> None:
        """Hand the gradients, clipped by now, to the optimizer's buffer."""
        if self._flat is not None:
            self._flat.gather_gradients()

    def spread_values(self) -> None:
        """Hand what the optimizer made of its buffer to a sharded model."""
        if self._flat is not None:
            self._flat.spread_values()

    def adapter(self) -> dict[str, Tensor]:
        """The trained parameters, whole; a collective call where the model is sharded."""
        return {name: whole(value.detach()) for name, value in self._trained()}

    def first_decides(self, choice: bool) -> bool:
        """The first process's choice in every one, where they must agree because each has a part of what is saved."""
        return bool(broadcast_object_list([choice])[0]) if self.sharded else choice

    def resume(self) -> None:
        """Train, from the newest checkpoint that is whole, if there is one."""
        newest = None
        if self.checkpoints is not None:
            with self.accelerator.main_process_first():  # it removes what is damaged, before the others look
                newest = self.checkpoints.newest()
        self.train(resume_from_checkpoint=str(newest) if newest else None)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        is_first = self.accelerator.is_main_process
        if self.checkpoints is None or not (is_first or self.sharded):
            return
        adapter, optimizer = _on_cpu(self.adapter()), _on_cpu(self.optimizer.state_dict())
        if self.sharded:
            optimizer = gathered(optimizer, is_first=is_first, processes=self.accelerator.num_processes)
        if not is_first:
            return
        state = {
            "adapter": adapter,
            "optimizer": optimizer,
            "scheduler": self.lr_scheduler.state_dict(),
            "curve": self.curve.points,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with self.checkpoints.saving(self.state.global_step) as folder:
            write_bytes(folder / _STATE_NAME, buffer.getvalue())
            self.state.save_to_json(str(folder / _TRAINER_STATE_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved = _load(resume_from_checkpoint)["adapter"]
        trained = dict(self._trained())
        if saved.keys() != trained.keys():
            raise IntegrityError(f"{resume_from_checkpoint}: holds another adapter's tensors; remove it")
        for name, value in trained.items():
            set_values(value, saved[name])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        saved = _load(checkpoint)
        optimizer = saved["optimizer"]
        self.optimizer.load_state_dict(optimizer[self.accelerator.process_index] if self.sharded else optimizer)
        self.lr_scheduler.load_state_dict(saved["scheduler"])
        self.curve.points[:] = saved["curve"]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing in a step is drawn from a generator."""

    def _trained(self) -> list[tuple[str, Tensor]]:
        return [(name, value) for name, value in self.model.named_parameters() if value.requires_grad]


def _computing_type(model: Any) -> torch.dtype:
    """What the 4-bit layers compute in; of a model without any, the type of its weights."""
    for module in model.modules():
        if hasattr(module, "compute_dtype"):
            found: torch.dtype = module.compute_dtype
            return found
    kind: torch.dtype = model.get_base_model().dtype
    return kind


def _forward_of(llama: PackedLlama) -> Any:
    def forward(*, row: PackedRow, **_: Any) -> Tensor:
        return llama.loss(row)

    return forward


def _on_cpu(value: Any) -> Any:
    """Tensors in dictionaries and lists as plain copies in main memory."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _on_cpu(part) for key, part in value.items()}
    return [_on_cpu(part) for part in value] if isinstance(value, list) else value


def _load(checkpoint: str) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(Path(checkpoint) / _STATE_NAME, map_location="cpu", weights_only=True)
    return loaded


class _AroundOptimizer(TrainerCallback):  # type: ignore[misc]
    """Runs before and after the optimizer's step, and says when to save."""

    def __init__(self, trainer: PackedTrainer) -> None:
        self._trainer = trainer

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._trainer.gather_gradients()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._trainer.spread_values()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        store = self._trainer.checkpoints
        if store is None:
            return
        if state.global_step == state.max_steps or self._trainer.first_decides(store.is_due()):
            control.should_save = True


def check_rows(steps: Iterable[PackedStep], labels_of: dict[tuple[int, ...], list[int]]) -> int:
    """Compare every row with what was rendered, token by token; the number of sequences seen.

    Raises RuntimeError, because only a fault of ours leads there, when a token is learned that stands on a prompt, a
    header or in another conversation, or when a token of an answer is not.
    """
    seen = 0
    for step in steps:
        for row in step.rows:
            learned = dict(zip(row.learned.tolist(), row.targets.tolist(), strict=True))
            start = 0
            for length in row.lengths:
                ids = tuple(row.input_ids[start : start + length].tolist())
                labels = labels_of.get(ids)
                expected = {start + place: label for place, label in enumerate((labels or [])[1:]) if label >= 0}
                found = {place: token for place, token in learned.items() if start <= place < start + length}
                positions = row.position_ids[start : start + length].tolist()
                if labels is None or found != expected or positions != list(range(length)):
                    raise RuntimeError("a packed row is not what was rendered; training would learn other tokens")
                start += length
                seen += 1
    return seen
