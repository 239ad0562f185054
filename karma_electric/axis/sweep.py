"""What other thresholds and alphas would do: how often they fire, what they change, and what they hold back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from karma_electric.axis.measurements import Projections, read_axis, read_projections
from karma_electric.axis.model import LoadedModel, load_model, render
from karma_electric.axis.params import AcapParams
from karma_electric.axis.prompts import (
    CalibrationPrompt,
    read_calibration_prompts,
    read_generic_prompts,
)
from karma_electric.axis.states import greedy_answers
from karma_electric.axis.sweep_plot import sweep_plot
from karma_electric.axis.thresholds import capping_layers, choose_taus, firing_rate, fit_tokens
from karma_electric.capping.formula import Cap, unit
from karma_electric.capping.pytorch import capped
from karma_electric.errors import InputError, IntegrityError
from karma_electric.integrity import write_text
from karma_electric.prompts import read_prompt

Report = Callable[[str], None]
Rule = tuple[str, float]  # ("percentile", 75) or ("mean_k_sigma", 1)


@dataclass(frozen=True)
class SweepRow:
    """One threshold with one alpha."""

    rule: str
    rule_value: float
    alpha: float
    firing_rate: float  # of the persona's held-out answers, as calibrated: without a cap below
    firing_rate_low: float
    firing_rate_high: float
    neutral_kl_nats: float  # mean over answer tokens of KL(uncapped || capped)
    generic_drift: float  # 1: a generic prompt moves the states as far as without a cap; 0: not at all


@dataclass(frozen=True)
class _Dialogue:
    """A prompt with the answer that the uncapped model gave."""

    prompt: list[int]
    answer: list[int]


def sweep(
    model_folder: Path,
    axis: Path,
    projections: Path,
    *,
    persona_prompt: Path,
    generic_prompts: Path,
    calibration_prompts: Path,
    rules: Sequence[Rule],
    alphas: Sequence[float],
    output_csv: Path,
    output_plot: Path,
    params: AcapParams,
    answer_tokens: int = 32,
    max_prompt_tokens: int = 512,
    report: Report | None = None,
) -> list[SweepRow]:
    """Try every rule with every alpha on a model, and write the rows as CSV and as a plot (SVG).

    `axis` and `projections` are what the stage extract-axis wrote for the model in `model_folder`; layers follow from
    `params`. KL is measured on the uncapped answers to the held-out neutral prompts under the persona's system prompt.
    Drift is measured on the held-out persona prompts: how far the mean state of the answer under a generic system
    prompt lies from that under the persona's, along the axis of the layers above the cap (of the capped ones where
    there is none above), as a share of the same distance without a cap. All tokens are given, so only the cap differs.

    Raises InputError for an empty grid, IntegrityError for an axis of another model.
    """
    if not rules or not alphas:
        raise InputError("the sweep has no rule or no alpha; name at least one of each")
    measured = read_axis(axis)
    found = read_projections(projections, axis, measured.n_layers)
    loaded = load_model(model_folder)
    if measured.identity.get("model_sha256") != loaded.sha256:
        raise IntegrityError(f"{axis}: was measured on another model than {model_folder}; extract it again")
    tell = report or (lambda _line: None)
    prompts = [each for each in read_calibration_prompts(calibration_prompts) if each.split == "held-out"]
    persona, generic = read_prompt(persona_prompt), read_generic_prompts(generic_prompts)

    def answered(kind: str, system: str) -> list[_Dialogue]:
        asked = [each for each in prompts if each.kind == kind]
        return _dialogues(loaded, asked, system, answer_tokens, max_prompt_tokens)

    tell("uncapped answers")
    layers = capping_layers(params, measured.n_layers, measured.effect_sizes)
    probe = _Probe(
        loaded,
        np.stack([unit(row) for row in measured.axis]),
        [layer for layer in range(measured.n_layers) if layer > layers[-1]] or list(layers),
        neutral=answered("neutral", persona),
        persona=answered("persona", persona),
        generic=[dialogue for prompt in generic for dialogue in answered("persona", prompt.text)],
    )
    rows = []
    for rule, value in rules:
        taus = _taus(params, rule, value, layers, found)
        rate = firing_rate(found["persona", "held-out"], taus, where=str(projections))
        for alpha in alphas:
            tell(f"{rule} {value:g}, alpha {alpha:g}")
            cap = Cap({layer: unit(measured.axis[layer]) for layer in layers}, taus, alpha)
            kl, drift = probe.measure(cap)
            rows.append(SweepRow(rule, value, alpha, rate.rate, rate.low, rate.high, kl, drift))
    write_text(output_csv, sweep_csv(rows))
    write_text(output_plot, sweep_plot(rows))
    return rows


def sweep_csv(rows: Sequence[SweepRow]) -> str:
    """One line a row, six significant digits."""
    names = list(SweepRow.__dataclass_fields__)
    lines = [",".join(names)]
    for row in rows:
        values = asdict(row).values()
        lines.append(",".join(f"{value:.6g}" if isinstance(value, float) else str(value) for value in values))
    return "\n".join(lines) + "\n"


def _taus(
    params: AcapParams, rule: str, value: float, layers: Sequence[int], found: Projections
) -> Mapping[int, float]:
    names = {"percentile": "percentile", "mean_k_sigma": "k_sigma"}
    if rule not in names:
        raise InputError(f"the rule is {rule!r}, expected one of {', '.join(names)}")
    chosen = AcapParams.model_validate(params.model_dump() | {"rule": rule, names[rule]: value, "threshold": None})
    return choose_taus(chosen, layers, fit_tokens(chosen, found))


def _dialogues(
    loaded: LoadedModel, prompts: Sequence[CalibrationPrompt], system: str, answer_tokens: int, most_tokens: int
) -> list[_Dialogue]:
    """The greedy answers of the uncapped model. A prompt that it ends at once has no token to measure."""
    rendered = [render(loaded, system, each.text, most_tokens=most_tokens, where=each.where) for each in prompts]
    answers = greedy_answers(loaded, rendered, most_tokens=answer_tokens, batch_size=8)
    pairs = [_Dialogue(prompt, answer) for prompt, answer in zip(rendered, answers, strict=True) if answer]
    if not pairs:
        raise InputError("the model ended every answer at once; there is nothing to measure")
    return pairs


@dataclass
class _Probe:
    """The model with fixed texts, measured under one cap after another."""

    loaded: LoadedModel
    directions: NDArray[np.float32]  # (n_layers, hidden_size), norm 1
    drift_layers: Sequence[int]
    neutral: Sequence[_Dialogue]
    persona: Sequence[_Dialogue]
    generic: Sequence[_Dialogue]

    def __post_init__(self) -> None:
        self._plain = [self._read(each)[0] for each in self.neutral]
        self._persona = self._mean_along(self.persona)
        self._generic = self._mean_along(self.generic)
        if not abs(self._generic - self._persona) > 0:
            raise InputError("a generic system prompt moves no state along the axis; there is no drift to hold back")

    def measure(self, cap: Cap) -> tuple[float, float]:
        """(KL on neutral text in nats, share of the generic drift that is left)."""
        with capped(self.loaded.model, cap):
            changed = [self._read(each)[0] for each in self.neutral]
            generic = self._mean_along(self.generic)
        divergence = torch.cat([_kl(plain, other) for plain, other in zip(self._plain, changed, strict=True)])
        return float(divergence.mean()), (generic - self._persona) / (self._generic - self._persona)

    def _mean_along(self, dialogues: Sequence[_Dialogue]) -> float:
        """Mean over dialogues of the mean projection of the answer's tokens in the layers of the drift."""
        return float(np.mean([self._read(each)[1] for each in dialogues]))

    def _read(self, dialogue: _Dialogue) -> tuple[torch.Tensor, float]:
        """(log-probabilities (answer tokens, vocabulary) of what follows each, mean projection of the answer)."""
        count, along = len(dialogue.answer), list[float]()

        def see(layer: int) -> Callable[..., None]:
            axis = torch.from_numpy(self.directions[layer]).to(self.loaded.device, torch.float64)

            def hook(_module: object, _inputs: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
                hidden = output[0] if isinstance(output, tuple) else output  # after the cap, whose hook came first
                along.append(float((hidden[0, -count:].double() @ axis).mean()))

            return hook

        handles = [self.loaded.blocks[layer].register_forward_hook(see(layer)) for layer in self.drift_layers]
        try:
            ids = torch.tensor([[*dialogue.prompt, *dialogue.answer]], device=self.loaded.device)
            with torch.inference_mode():
                logits = self.loaded.model(input_ids=ids, use_cache=False, logits_to_keep=count).logits[0]
        finally:
            for handle in handles:
                handle.remove()
        return torch.log_softmax(logits.double(), -1), float(np.mean(along))


def _kl(plain: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(plain || other) of log-probabilities (tokens, vocabulary), in nats: (tokens,)."""
    return (plain.exp() * (plain - other)).sum(-1)
