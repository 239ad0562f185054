"""How long the sequences are that a recipe trains on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from karma_electric.training.params import TrainParams


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """One set as it will be trained.

    `steps` holds the lengths, in tokens, of the sequences of each step of an epoch. Where they are not measured there
    is one step, of the longest sequences that the recipe allows.
    """

    name: str
    steps: tuple[tuple[int, ...], ...]
    learned_share: float
    is_measured: bool

    @property
    def tokens(self) -> int:
        """Of an epoch."""
        return sum(map(sum, self.steps))


def measured_set(name: str, path: Path, base: Path, params: TrainParams) -> TrainingSet:
    """Of the exported set at `path`, rendered with the tokenizer in `base`. Raises InputError as training would."""
    from karma_electric.base_model.quiet import offline_hub, quiet_libraries
    from karma_electric.conversation import read_examples
    from karma_electric.training.packing import StepOrder
    from karma_electric.training.rendering import render_examples
    from karma_electric.training.subset import stratified_subset

    chosen = stratified_subset(list(read_examples(path)), params.examples, seed=params.seed)
    with quiet_libraries(), offline_hub():
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(base)
        rendered = render_examples(chosen, tokenizer, max_length=params.max_length, where=str(path))
    order = StepOrder(len(rendered), params.sequences_per_step, params.seed)
    learned = sum(sum(row.assistant_mask) for row in rendered) / sum(len(row.input_ids) for row in rendered)
    steps = tuple(tuple(len(rendered[number].input_ids) for number in step) for step in order)
    return TrainingSet(name, steps, learned, is_measured=True)


def longest_possible_set(name: str, params: TrainParams) -> TrainingSet:
    """What can be said before the set is exported and the tokenizer is there."""
    return TrainingSet(name, ((params.max_length,) * params.sequences_per_step,), 0.5, is_measured=False)
