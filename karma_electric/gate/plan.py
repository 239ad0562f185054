"""Every check of the gate, in the order of the report."""

from __future__ import annotations

from typing import Any

from karma_electric.gate.capability_check import CapabilityCappedCheck, CapabilityCheck
from karma_electric.gate.checks import Check
from karma_electric.gate.conversation_checks import (
    RedteamCappedCheck,
    RedteamCheck,
    SexualBoundariesCappedCheck,
    SexualBoundariesCheck,
)
from karma_electric.gate.params import GateParams
from karma_electric.gate.rating_checks import (
    CrossLanguageCheck,
    FormatCheck,
    NourishmentCheck,
    OvercorrectionCheck,
    ParaphraseCheck,
    RewardHackingCheck,
    StyleCheck,
)

_CHECKS: tuple[type[Check[Any]], ...] = (
    RewardHackingCheck,
    NourishmentCheck,
    ParaphraseCheck,
    StyleCheck,
    CrossLanguageCheck,
    OvercorrectionCheck,
    FormatCheck,
    SexualBoundariesCheck,
    SexualBoundariesCappedCheck,
    RedteamCheck,
    RedteamCappedCheck,
    CapabilityCheck,
    CapabilityCappedCheck,
)


def all_checks(params: GateParams) -> list[Check[Any]]:
    """The checks, with the bars of the recipe."""
    return [check(params) for check in _CHECKS]
