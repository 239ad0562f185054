"""QLoRA: a 4-bit NF4 base, frozen, and a LoRA on it that learns the answers of a training set.

After QLoRA (arXiv 2305.14314) and LoRA (arXiv 2106.09685), by bitsandbytes, peft and trl. The same code runs on a CPU
and on CUDA devices. Every random choice follows from the seed.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma_electric.base_model.quiet import offline_hub, quiet_libraries
from karma_electric.canonical import readable_json, rounded
from karma_electric.conversation import read_examples
from karma_electric.errors import InputError
from karma_electric.integrity import (
    MANIFEST_NAME,
    atomic_directory,
    sha256_file,
    verify_manifest,
    write_manifest,
    write_text,
)
from karma_electric.training.checkpoints import CheckpointStore, run_key
from karma_electric.training.params import TrainParams
from karma_electric.training.rendering import RenderedExample, render_examples
from karma_electric.training.starter import Starter
from karma_electric.training.subset import stratified_subset


def train_adapter(
    base: Path,
    train_set: Path,
    output: Path,
    *,
    params: TrainParams,
    loss_curve: Path,
    report: Callable[[str], None] | None = None,
    store: Path | None = None,
    code: object = None,
    checkpoint_every_step: bool = False,
) -> dict[str, Any]:
    """Train a LoRA on `train_set` and write it, with its manifest, into the folder `output`; return the metrics.

    `loss_curve` becomes a JSON list of step, loss (nats a token) and learning rate. Metrics: rows, tokens,
    learned_tokens (of one epoch), cut_rows, steps, final_loss, mean_loss_last_quarter.

    With a working `store`, a run that was interrupted goes on from its last checkpoint there, and ends in the same
    bytes on a CPU. A checkpoint belongs to the content of everything that goes into the run; `code` is what stands for
    the code. Where several processes train, each calls this, and the first writes.

    Raises IntegrityError for a base that is not what its manifest says; InputError for a set that cannot be read, is
    empty or holds a row without an answer in reach, and for a run that diverges; SetupError when memory is too small,
    another process trains the same, or the process that started this one is gone. Then nothing is written.
    """
    say = report or (lambda _: None)
    starter = Starter()
    origin = _Origin.of(base, train_set)
    examples = list(read_examples(train_set))
    if not examples:
        raise InputError(f"{train_set}: holds no rows; export a set with at least one accepted example")
    chosen = stratified_subset(examples, params.examples, seed=params.seed)
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet_libraries())
        stack.enter_context(offline_hub())
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        from transformers import AutoTokenizer

        from karma_electric.training.processes import this_process

        process = stack.enter_context(this_process())
        say = say if process.is_first else lambda _: None
        tokenizer = AutoTokenizer.from_pretrained(base)
        rendered = render_examples(chosen, tokenizer, max_length=params.max_length, where=str(train_set))
        facts = _count(rendered)
        say(f"train: {len(rendered)} of {len(examples)} rows, {facts['tokens']:,} tokens, {facts['cut_rows']} cut")
        checkpoints = None
        if store is not None:
            key = run_key(_identity(origin, params, facts) | {"code": code, "machine": process.machine})
            checkpoints = stack.enter_context(
                process.checkpoints(store, key, output, say, every_step=checkpoint_every_step)
            )
        model, adapter, curve = _train(
            base, tokenizer, rendered, params, scratch, say, checkpoints, sharded=process.sharded
        )
        metrics = facts | _summarize(curve)
        starter.require("train")
        if process.is_first:
            _write(model, adapter, output, origin, params, metrics)
            write_text(loss_curve, readable_json(curve))
    return metrics


def _write(
    model: Any, adapter: Any, output: Path, origin: _Origin, params: TrainParams, metrics: dict[str, Any]
) -> None:
    from karma_electric.training.adapter_output import save_adapter

    with atomic_directory(output) as folder:
        n_modules = model.config.num_hidden_layers * len(set(params.lora.targets))
        save_adapter(model, folder, base_repo=origin.base_repo, n_modules=n_modules, adapter=adapter)
        write_manifest(folder, _identity(origin, params, metrics))


@dataclass(frozen=True, slots=True)
class _Origin:
    """What the adapter is made from, as hashes taken before the work."""

    base_repo: str
    base_manifest_sha256: str
    train_set_sha256: str

    @classmethod
    def of(cls, base: Path, train_set: Path) -> _Origin:
        repo = verify_manifest(base)["identity"].get("repo")
        if not isinstance(repo, str):
            raise InputError(
                f"{base / MANIFEST_NAME}: identity.repo is {repo!r}, expected ORG/NAME; run the stage base again"
            )
        if not train_set.is_file():
            raise InputError(f"{train_set}: no such file; expected a training set of JSON lines")
        return cls(repo, sha256_file(base / MANIFEST_NAME), sha256_file(train_set))


def _train(
    base: Path,
    tokenizer: Any,
    rendered: Sequence[RenderedExample],
    params: TrainParams,
    scratch: Path,
    say: Callable[[str], None],
    checkpoints: CheckpointStore | None,
    *,
    sharded: bool,
) -> tuple[Any, dict[str, Any] | None, list[dict[str, float]]]:
    """The trained peft model; its adapter, where the model holds only a share of it; and the loss curve."""
    # Imported here, where bitsandbytes is silenced and cannot fetch kernels, and after the checks that take no time.
    from karma_electric.training.build import all_cores, build_trainer, check_labels, memory_errors
    from karma_electric.training.progress import LossCurve

    curve = LossCurve(say)
    with all_cores(), memory_errors():
        trainer = build_trainer(base, tokenizer, rendered, params, scratch, curve, checkpoints, sharded=sharded)
        check_labels(trainer, rendered)
        trainer.resume()
        adapter = trainer.adapter() if sharded else None
    return trainer.model, adapter, curve.points


def _count(rendered: Sequence[RenderedExample]) -> dict[str, int]:
    return {
        "rows": len(rendered),
        "tokens": sum(len(row.input_ids) for row in rendered),
        "learned_tokens": sum(sum(row.assistant_mask) for row in rendered),
        "cut_rows": sum(row.is_cut for row in rendered),
    }


def _summarize(points: Sequence[dict[str, float]]) -> dict[str, float]:
    losses = [point["loss"] for point in points]
    last = losses[-max(1, len(losses) // 4) :]
    return {"steps": len(points), "final_loss": losses[-1], "mean_loss_last_quarter": rounded(sum(last) / len(last))}


def _identity(origin: _Origin, params: TrainParams, metrics: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": "adapter",
        "base": origin.base_manifest_sha256,
        "base_repo": origin.base_repo,
        "train_set": origin.train_set_sha256,
        "seed": params.seed,
        **metrics,
        "train": params.model_dump(mode="json"),
    }
