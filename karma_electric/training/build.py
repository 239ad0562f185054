"""The trainer, put together: an NF4 base, a LoRA on it, and rows that were checked before training gets them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PrinterCallback
from trl import SFTConfig

from karma_electric.errors import SetupError
from karma_electric.torch_threads import torch_threads
from karma_electric.training.checkpoints import CheckpointStore
from karma_electric.training.packing import StepCollator, step_loader
from karma_electric.training.params import TrainParams
from karma_electric.training.progress import LossCurve, peak_flops
from karma_electric.training.rendering import RenderedExample
from karma_electric.training.sharding import STORAGE
from karma_electric.training.trainer import PackedTrainer, check_rows

# "constant" would ignore the warm-up in silence.
_SCHEDULERS = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def build_trainer(
    base: Path,
    tokenizer: Any,
    rendered: Sequence[RenderedExample],
    params: TrainParams,
    scratch: Path,
    curve: LossCurve,
    checkpoints: CheckpointStore | None = None,
    *,
    sharded: bool = False,
) -> PackedTrainer:
    """Load the base in NF4, and hand it to a trainer that puts the LoRA on it, and shards both if it is told to."""
    arguments = training_arguments(params, scratch)
    transformers.set_seed(params.seed)
    model = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=torch.bfloat16,
        device_map={"": PartialState().local_process_index if torch.cuda.is_available() else "cpu"},
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            bnb_4bit_quant_storage=STORAGE if sharded else torch.uint8,
        ),
    )
    return trainer_of(model, tokenizer, rendered, params, arguments, curve, checkpoints, sharded=sharded)


def trainer_of(
    model: Any,
    tokenizer: Any,
    rendered: Sequence[RenderedExample],
    params: TrainParams,
    arguments: SFTConfig,
    curve: LossCurve,
    checkpoints: CheckpointStore | None = None,
    *,
    sharded: bool = False,
) -> PackedTrainer:
    """A trainer of `model`, a Llama without an adapter, whose 4-bit layers are bitsandbytes'."""
    trainer = PackedTrainer(
        examples=rendered,
        sequences_per_step=params.sequences_per_step,
        tokens_per_microbatch=params.tokens_per_microbatch,
        recomputed_share=params.recomputed_share,
        sharded=sharded,
        curve=curve,
        checkpoints=checkpoints,
        model=model,
        args=arguments,
        train_dataset=_as_dataset(rendered),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=params.lora.rank,
            lora_alpha=params.lora.alpha,
            lora_dropout=params.lora.dropout,
            target_modules=sorted(set(params.lora.targets)),
            bias="none",
        ),
    )
    trainer.remove_callback(PrinterCallback)
    learned = sum(sum(row.assistant_mask) for row in rendered) / sum(len(row.input_ids) for row in rendered)
    curve.flops_per_token = trainer.llama.flops_per_token(learned)
    if torch.cuda.is_available():
        one = peak_flops(torch.cuda.get_device_name())
        curve.peak = one and one * trainer.accelerator.num_processes
    return trainer


def training_arguments(params: TrainParams, scratch: Path) -> SFTConfig:
    """What the libraries' trainer is told. A step is one batch of theirs, however many passes it takes."""
    on_cuda = torch.cuda.is_available()
    arguments = SFTConfig(
        output_dir=str(scratch),
        num_train_epochs=params.epochs,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        learning_rate=params.learning_rate,
        lr_scheduler_type=_SCHEDULERS[params.schedule],
        warmup_steps=params.warmup_ratio,  # below 1 it is a share of all steps
        weight_decay=params.weight_decay,
        max_grad_norm=params.max_gradient_norm,
        optim=params.optimizer,
        gradient_checkpointing=False,  # PackedLlama has its own
        bf16=True,
        use_cpu=not on_cuda,
        seed=params.seed,
        data_seed=params.seed,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        max_length=None,  # rows are cut already
        dataset_kwargs={"skip_prepare_dataset": True},
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would log the mean of earlier losses in the place of a NaN
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",  # the trainer says itself when
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # the model is on one device; trl refuses to spread it
    return arguments


def _as_dataset(rendered: Sequence[RenderedExample]) -> Dataset:
    return Dataset.from_list([{"input_ids": list(row.input_ids), "labels": row.labels} for row in rendered])


def check_labels(trainer: PackedTrainer, rendered: Sequence[RenderedExample]) -> None:
    """Pack one epoch as training will, and compare every row with what was rendered."""
    ours = trainer.collator
    whole = StepCollator(ours.examples, ours.tokens_per_row, ours.seed)
    loader, _ = step_loader(whole, trainer.sequences_per_step)
    seen = check_rows((item["step"] for item in loader), {row.input_ids: row.labels for row in rendered})
    if seen != len(rendered):
        raise RuntimeError(f"an epoch holds {seen} sequences, expected {len(rendered)}")


def all_cores() -> contextlib.AbstractContextManager[None]:
    """Compute with every core that this process may use, unless OMP_NUM_THREADS says how many."""
    if "OMP_NUM_THREADS" in os.environ or not hasattr(os, "sched_getaffinity"):
        return contextlib.nullcontext()
    return torch_threads(len(os.sched_getaffinity(0)))


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Turn an allocator's error into one line."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise SetupError(
            "train: the device's memory is too small; lower train.tokens_per_microbatch or train.max_length, or raise "
            "train.recomputed_share"
        ) from error
