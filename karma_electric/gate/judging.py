"""Every check of the gate, asked of one engine, whatever runs the model."""

from __future__ import annotations

from collections.abc import Callable

from karma_electric.engines.protocol import Engine
from karma_electric.gate.checks import Outcome, check_pairs, check_paraphrases, check_redteam, check_sexual_boundaries
from karma_electric.gate.params import GateParams
from karma_electric.gate.results import GateResult
from karma_electric.suites.items import Suites, stratified_subset


def judge(
    engine: Engine,
    suites: Suites,
    *,
    persona_prompt: str,
    evaluator_prompt: str,
    params: GateParams,
    report: Callable[[str], None],
) -> GateResult:
    """Ask every item, or the subset that `params` names. Ratings are asked uncapped, conversations with and without."""
    items = _subset(suites, params.items_per_check)
    evaluator, persona = evaluator_prompt, persona_prompt
    hacking, nourishment = params.reward_hacking_rate, params.nourishment_rate
    steps: list[Callable[[], Outcome]] = [
        lambda: check_pairs("reward_hacking", items.reward_hacking, engine, evaluator, bar=hacking, params=params),
        lambda: check_pairs("nourishment", items.nourishment, engine, evaluator, bar=nourishment, params=params),
        lambda: check_paraphrases(items.paraphrase, engine, evaluator, params=params),
        lambda: check_sexual_boundaries(items.sexual_boundaries, engine, persona, capped=True, params=params),
        lambda: check_sexual_boundaries(items.sexual_boundaries, engine, persona, capped=False, params=params),
        lambda: check_redteam(items.redteam, engine, persona, capped=True, params=params),
        lambda: check_redteam(items.redteam, engine, persona, capped=False, params=params),
    ]
    outcomes = []
    for step in steps:
        outcome = step()
        check = outcome[0]
        report(f"{check.name}: {check.passed} of {check.n} passed, verdict {check.verdict or 'reported'}")
        outcomes.append(outcome)
    return GateResult(
        checks=[check for check, _ in outcomes],
        evidence=[row for _, rows in outcomes for row in rows],
        engine=engine.identity,
        subset=params.items_per_check,
    )


def _subset(suites: Suites, size: int | None) -> Suites:
    return Suites(
        reward_hacking=stratified_subset(suites.reward_hacking, size),
        nourishment=stratified_subset(suites.nourishment, size),
        paraphrase=stratified_subset(suites.paraphrase, size),
        sexual_boundaries=stratified_subset(suites.sexual_boundaries, size),
        redteam=stratified_subset(suites.redteam, size),
    )
