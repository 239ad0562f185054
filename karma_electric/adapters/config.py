"""What `adapter_config.json` of a peft LoRA may say, so that its update is exactly (alpha / rank) x B A."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from karma_electric.errors import InputError

Number = TypeVar("Number", int, float)

MAX_RANK = 65536
MAX_ALPHA = 1_000_000

# Keys that do not change the update of a finished adapter. Any other key must be absent, null, false or empty.
_WITHOUT_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
}
_READ_HERE = {
    "alpha_pattern",
    "bias",
    "init_lora_weights",
    "lora_alpha",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
}
_REASONS = {
    "use_rslora": "rank-stabilised LoRA scales by alpha / sqrt(rank), which changes when ranks are joined",
    "use_dora": "DoRA's update is not a product of two factors",
    "lora_bias": "a bias of a factor is not part of a weight",
    "modules_to_save": "whole trained modules cannot be blended as low-rank updates",
    "trainable_token_indices": "trained token rows are not low-rank updates",
    "fan_in_fan_out": "transposed weights (GPT-2's Conv1D) are not supported",
    "target_parameters": "adapted parameters that belong to no linear module are not supported",
    "layer_replication": "replicated layers are not those of the base",
}
# Initialisations that leave the base as it is. Others (pissa, olora, corda, loftq, ...) subtract from the base.
_INITIALISATIONS = (True, False, None, "gaussian", "orthogonal")

# A pattern key is a regular expression to peft. Names with an optional ^ are read as peft reads them; more is refused.
_PLAIN_PATTERN = re.compile(r"\^?[\w.]+", re.ASCII)


@dataclass(frozen=True)
class LoraConfiguration:
    """The part of a peft configuration that shapes the update."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target_modules: tuple[str, ...]
    task_type: str | None
    base_model_name: str | None

    def rank_of(self, module: str) -> int:
        """The rank of `module`, a dotted name in the base model."""
        return _first_match(self.rank_pattern, module, self.rank)

    def alpha_of(self, module: str) -> float:
        """The alpha of `module`; the update is scaled by alpha / rank."""
        return _first_match(self.alpha_pattern, module, self.alpha)

    def targets(self, module: str) -> bool:
        """Whether peft would put an adapter on `module`; it ignores the factors of other modules in silence."""
        return any(module == target or module.endswith(f".{target}") for target in self.target_modules)


def parse_lora_configuration(config: Mapping[str, Any], where: str) -> LoraConfiguration:
    """Check a peft configuration; `where` starts every InputError."""
    if config.get("peft_type") != "LORA":
        raise InputError(f"{where}: peft_type is {config.get('peft_type')!r}, expected 'LORA'")
    for key, value in config.items():
        if key not in _WITHOUT_EFFECT | _READ_HERE and value:
            reason = _REASONS.get(key, "its effect on the update is not known here")
            raise InputError(f"{where}: {key} is {_shown(value)}, expected none: {reason}; train a plain LoRA")
    if config.get("bias", "none") != "none":
        raise InputError(f"{where}: bias is {_shown(config['bias'])}, expected 'none': biases are not low-rank updates")
    initialisation = config.get("init_lora_weights", True)
    if not any(initialisation is known or initialisation == known for known in _INITIALISATIONS):
        raise InputError(
            f"{where}: init_lora_weights is {_shown(initialisation)}, which changes the base itself; expected true, "
            "gaussian or orthogonal"
        )
    return LoraConfiguration(
        rank=_rank(config.get("r"), f"{where}: r"),
        alpha=_alpha(config.get("lora_alpha"), f"{where}: lora_alpha"),
        rank_pattern={key: _rank(value, f"{where}: {key}") for key, value in _pattern(config, "rank_pattern", where)},
        alpha_pattern={
            key: _alpha(value, f"{where}: {key}") for key, value in _pattern(config, "alpha_pattern", where)
        },
        target_modules=_target_modules(config.get("target_modules"), where),
        task_type=_optional_text(config, "task_type", where),
        base_model_name=_optional_text(config, "base_model_name_or_path", where),
    )


def compose_configuration(
    modules: Mapping[str, tuple[int, float]], parents: Sequence[LoraConfiguration]
) -> dict[str, Any]:
    """The peft configuration of an adapter that has rank and alpha `modules[name]`, made of `parents`.

    The most frequent pair becomes `r` and `lora_alpha`; modules that differ stand in the patterns, by full name.
    """
    pairs = Counter(modules.values())
    rank, alpha = max(pairs, key=lambda pair: (pairs[pair], pair))
    task_types = {parent.task_type for parent in parents}
    base_names = {parent.base_model_name for parent in parents}
    return {
        "peft_type": "LORA",
        "task_type": task_types.pop() if len(task_types) == 1 else None,
        "base_model_name_or_path": base_names.pop() if len(base_names) == 1 else None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _plain(alpha),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "target_modules": sorted({target for parent in parents for target in parent.target_modules}),
        "rank_pattern": {name: pair[0] for name, pair in sorted(modules.items()) if pair[0] != rank},
        "alpha_pattern": {name: _plain(pair[1]) for name, pair in sorted(modules.items()) if pair[1] != alpha},
        "use_dora": False,
        "use_rslora": False,
    }


def _first_match(pattern: Mapping[str, Number], module: str, default: Number) -> Number:
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _pattern(config: Mapping[str, Any], name: str, where: str) -> list[tuple[str, Any]]:
    pattern = config.get(name) or {}
    if not isinstance(pattern, dict):
        raise InputError(f"{where}: {name} is {_shown(pattern)}, expected an object of module names")
    for key in pattern:
        if not _PLAIN_PATTERN.fullmatch(key):
            raise InputError(f"{where}: {name}: {_shown(key)} is not a plain module name; write the names out")
    return list(pattern.items())


def _rank(value: object, where: str) -> int:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise InputError(f"{where} is {_shown(value)}, expected a whole number from 1 to {MAX_RANK}")
    return value


def _alpha(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_ALPHA:
        raise InputError(f"{where} is {_shown(value)}, expected a number above 0, at most {MAX_ALPHA}")
    return float(value)


def _target_modules(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
        raise InputError(
            f"{where}: target_modules is {_shown(value)}, expected a list of module names; write a pattern out as names"
        )
    return tuple(value)


def _optional_text(config: Mapping[str, Any], key: str, where: str) -> str | None:
    value = config.get(key)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{where}: {key} is {_shown(value)}, expected text or null")
    return value


def _plain(number: float) -> int | float:
    return int(number) if number.is_integer() else number


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
