"""QLoRA: a 4-bit NF4 base, frozen, and a LoRA on it that learns the answers of a training set.

After QLoRA (arXiv 2305.14314) and LoRA (arXiv 2106.09685), by bitsandbytes, peft and trl. The same code runs on a CPU
and on one CUDA device. Every random choice follows from the seed.
"""

from __future__ import annotations

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
from karma_electric.training.params import TrainParams
from karma_electric.training.rendering import RenderedExample, render_examples
from karma_electric.training.subset import stratified_subset


def train_adapter(
    base: Path,
    train_set: Path,
    output: Path,
    *,
    params: TrainParams,
    loss_curve: Path,
    report: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Train a LoRA on `train_set` and write it, with its manifest, into the folder `output`; return the metrics.

    `loss_curve` becomes a JSON list of step, loss (nats a token) and learning rate. Metrics: rows, tokens,
    learned_tokens (of one epoch), cut_rows, steps, final_loss, mean_loss_last_quarter.

    Raises IntegrityError for a base that is not what its manifest says; InputError for a set that cannot be read, is
    empty or holds a row without an answer in reach, and for a run that diverges; SetupError when memory is too small
    or the process that started this one is gone. Then nothing is written.
    """
    say = report or (lambda _: None)
    origin = _Origin.of(base, train_set)
    examples = list(read_examples(train_set))
    if not examples:
        raise InputError(f"{train_set}: holds no rows; export a set with at least one accepted example")
    chosen = stratified_subset(examples, params.examples, seed=params.seed)
    with quiet_libraries(), offline_hub(), tempfile.TemporaryDirectory() as scratch:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(base)
        rendered = render_examples(chosen, tokenizer, max_length=params.max_length, where=str(train_set))
        facts = _count(rendered)
        say(f"train: {len(rendered)} of {len(examples)} rows, {facts['tokens']:,} tokens, {facts['cut_rows']} cut")
        model, curve = _train(base, tokenizer, rendered, params, Path(scratch), say)
        metrics = facts | _summarize(curve)
        with atomic_directory(output) as folder:
            from karma_electric.training.adapter_output import save_adapter

            n_modules = model.config.num_hidden_layers * len(set(params.lora.targets))
            save_adapter(model, folder, base_repo=origin.base_repo, n_modules=n_modules)
            write_manifest(folder, _identity(origin, params, metrics))
    write_text(loss_curve, readable_json(curve))
    return metrics


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
) -> tuple[Any, list[dict[str, float]]]:
    """The trained peft model, and its loss curve."""
    # Imported here, where bitsandbytes is silenced and cannot fetch kernels, and after the checks that take no time.
    import transformers

    from karma_electric.training.build import all_cores, build_trainer, check_labels, memory_errors
    from karma_electric.training.trainer import LossCurve

    curve = LossCurve(say)
    with all_cores(), memory_errors():
        trainer = build_trainer(base, tokenizer, rendered, params, scratch, curve)
        check_labels(trainer, rendered)
        transformers.set_seed(params.seed)
        trainer.train()
    return trainer.model, curve.points


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
