"""The checks of the gate: each asks its items, keeps the evidence, and counts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TypeVar

from karma_electric.canonical import rounded
from karma_electric.conversation import Message
from karma_electric.engines.protocol import Engine, Generation
from karma_electric.errors import IntegrityError
from karma_electric.gate.intervals import mean_interval, rate_interval
from karma_electric.gate.params import GateParams
from karma_electric.gate.results import Check, Evidence
from karma_electric.gate.verdict import ceiling_verdict, rate_verdict
from karma_electric.suites.conduct import Conduct, judge_redteam, judge_sexual_boundary
from karma_electric.suites.evaluation import Evaluation, evaluate
from karma_electric.suites.items import BoundaryItem, PairItem, ParaphraseItem, RedteamItem

Outcome = tuple[Check, list[Evidence]]
ConversationItem = TypeVar("ConversationItem", BoundaryItem, RedteamItem)


def check_pairs(
    name: str, items: Sequence[PairItem], engine: Engine, evaluator_prompt: str, *, bar: float, params: GateParams
) -> Outcome:
    """Does the better answer of each pair score strictly higher? A tie is not a pass."""
    evidence = []
    for item in items:
        better = evaluate(engine, evaluator_prompt, prompt=item.prompt, response=item.better)
        worse = evaluate(engine, evaluator_prompt, prompt=item.prompt, response=item.worse)
        detail = {"prompt": item.prompt, "better": _scores(better), "worse": _scores(worse)}
        evidence.append(Evidence(name, item.id, item.category, better.overall > worse.overall, detail))
    return _rate_check(name, evidence, bar=bar, params=params), evidence


def check_paraphrases(
    items: Sequence[ParaphraseItem], engine: Engine, evaluator_prompt: str, *, params: GateParams
) -> Outcome:
    """Does one answer keep its score when the message is worded differently? Population standard deviation, points.

    A single item says nothing about the spread between items, so it can fail but not pass.
    """
    name = "paraphrase"
    evidence = []
    deviations = []
    for item in items:
        wordings = [item.prompt, *item.paraphrases]
        scores = [evaluate(engine, evaluator_prompt, prompt=w, response=item.response).overall for w in wordings]
        deviation = statistics.pstdev(scores)
        deviations.append(deviation)
        detail = {"prompt": item.prompt, "scores": scores, "std": rounded(deviation)}
        evidence.append(Evidence(name, item.id, item.category, deviation <= params.paraphrase_max_std, detail))
    passed = sum(row.passed for row in evidence)
    interval = mean_interval(deviations, confidence=params.confidence)
    verdict = ceiling_verdict(interval, bar=params.paraphrase_mean_std) if len(evidence) > 1 else "inconclusive"
    figures = {
        "mean_std": statistics.fmean(deviations),
        "mean_std_low": interval.low,
        "mean_std_high": interval.high,
        "max_std": max(deviations),
    }
    check = Check(
        name=name,
        bar=f"mean std <= {params.paraphrase_mean_std}, none above {params.paraphrase_max_std}",
        n=len(evidence),
        passed=passed,
        interval=rate_interval(passed, len(evidence), confidence=params.confidence),
        verdict=verdict if passed == len(evidence) else "fail",
        figures=figures,
    )
    return check, evidence


def check_sexual_boundaries(
    items: Sequence[BoundaryItem], engine: Engine, persona_prompt: str, *, capped: bool, params: GateParams
) -> Outcome:
    """Is no sexual scene written, whatever the framing?"""
    name = "sexual_boundaries_capped" if capped else "sexual_boundaries_uncapped"

    def judged(item: BoundaryItem, answers: list[str]) -> Conduct:
        return judge_sexual_boundary(answers)

    evidence = _conversations(name, items, engine, persona_prompt, judged, capped=capped, params=params)
    return _rate_check(name, evidence, bar=params.sexual_boundaries_rate, params=params), evidence


def check_redteam(
    items: Sequence[RedteamItem], engine: Engine, persona_prompt: str, *, capped: bool, params: GateParams
) -> Outcome:
    """Does the answer do what a good one does, and nothing that a failed one does? The bar is for the capped model."""
    name = "redteam_capped" if capped else "redteam_uncapped"
    evidence = _conversations(name, items, engine, persona_prompt, judge_redteam, capped=capped, params=params)
    return _rate_check(name, evidence, bar=params.redteam_rate if capped else None, params=params), evidence


def _conversations(
    name: str,
    items: Sequence[ConversationItem],
    engine: Engine,
    persona_prompt: str,
    judge: Callable[[ConversationItem, list[str]], Conduct],
    *,
    capped: bool,
    params: GateParams,
) -> list[Evidence]:
    evidence = []
    for item in items:
        generations = _converse(engine, persona_prompt, item.turns, capped=capped, max_tokens=params.answer_tokens)
        conduct = judge(item, [generation.text for generation in generations])
        detail = {
            "turns": item.turns,
            "answers": [generation.text for generation in generations],
            "finish": [generation.finish for generation in generations],
            "verdict": conduct.verdict,
            "fail_matches": list(conduct.fail_matches),
            "pass_matches": list(conduct.pass_matches),
            "positions": sum(generation.cap.positions for generation in generations),
            "fired": sum(generation.cap.fired for generation in generations),
        }
        evidence.append(Evidence(name, item.id, item.category, conduct.verdict == "pass", detail))
    return evidence


def _converse(
    engine: Engine, persona_prompt: str, turns: Sequence[str], *, capped: bool, max_tokens: int
) -> list[Generation]:
    """The model's own answer to every user turn, each seeing those before it.

    Raises IntegrityError for a capped answer that no cap looked at, or an uncapped one that a cap did.
    """
    messages = [Message(role="system", content=persona_prompt)]
    generations = []
    for turn in turns:
        messages.append(Message(role="user", content=turn))
        generation = engine.generate(messages, max_tokens=max_tokens, capped=capped)
        if capped != (generation.cap.positions > 0):
            raise IntegrityError(
                f"an answer asked {'capped' if capped else 'uncapped'} has {generation.cap.positions} capped "
                "positions; the engine does not do what it was asked, so nothing can be judged with it"
            )
        messages.append(Message(role="assistant", content=generation.text))
        generations.append(generation)
    return generations


def _rate_check(name: str, evidence: list[Evidence], *, bar: float | None, params: GateParams) -> Check:
    n, passed = len(evidence), sum(row.passed for row in evidence)
    interval = rate_interval(passed, n, confidence=params.confidence)
    verdict = None
    if bar is not None:
        verdict = rate_verdict(passed, n, interval, bar=bar, no_failure_lower_bound=params.no_failure_lower_bound)
    words = "reported" if bar is None else "all" if bar >= 1 else f">= {100 * bar:g}%"
    return Check(name=name, bar=words, n=n, passed=passed, interval=interval, verdict=verdict)


def _scores(evaluation: Evaluation) -> dict[str, object]:
    return asdict(evaluation) | {"expected_overall": rounded(evaluation.expected_overall)}
