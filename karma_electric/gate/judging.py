"""Every check of the gate, asked of one engine, whatever runs the model; or judged again from what it said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from karma_electric.engines.control_tokens import is_plain_text
from karma_electric.engines.interviews import hold_all, parallel_answers
from karma_electric.engines.protocol import Engine, EngineIdentity
from karma_electric.engines.questions import Answer, Interview, Question
from karma_electric.errors import IntegrityError
from karma_electric.gate.answer_store import AnswerStore, question_key
from karma_electric.gate.checks import Answers, Check, Prompts
from karma_electric.gate.conversation_checks import ConversationCheck
from karma_electric.gate.intervals import Interval
from karma_electric.gate.params import GateParams
from karma_electric.gate.plan import all_checks
from karma_electric.gate.results import CheckResult, Evidence, GateResult
from karma_electric.suites.items import Item, Suites
from karma_electric.wording import counted

Report = Callable[[str], None]


@dataclass
class KeptAnswers:
    """The answers of one engine in a store, and how many were found there; without a store, none is kept."""

    identity: EngineIdentity
    arithmetic: str
    store: AnswerStore | None
    asked: int = 0
    known: int = 0

    def get(self, question: Question) -> Answer | None:
        if self.store is None:
            return None
        answer = self.store.get(question_key(self.identity, self.arithmetic, question), question)
        self.known += answer is not None
        return answer

    def put(self, question: Question, answer: Answer) -> None:
        self.asked += 1
        if self.store is not None:
            self.store.put(question_key(self.identity, self.arithmetic, question), answer)


@dataclass(frozen=True)
class Asked:
    """An item and the check that asks about it."""

    check: Check[Any]
    item: Item


class Questioner:
    """Asks an engine what the store has no answer to, about many items at once; and then a judge model about its
    conversations, where there is one."""

    def __init__(
        self,
        engine: Engine,
        prompts: Prompts,
        store: AnswerStore | None = None,
        arithmetic: str = "",
        judge_model: Engine | None = None,
    ) -> None:
        self.asked = self.known = self.asked_judge = 0
        self._engine = engine
        self._prompts = replace(prompts, is_plain=partial(is_plain_text, engine))
        self._store = store
        self._arithmetic = arithmetic
        self._judge_model = judge_model

    def ask_all(self, items: Sequence[Asked], done: Callable[[int, Evidence], None]) -> None:
        """`done` gets each item's place in `items` and its evidence, in the order in which they are judged.

        The uncapped ones come first: a decode call is capped or not. The judge model comes last.
        """
        to_judge: dict[int, Interview[Answers]] = {}

        def judged(place: int, answers: Answers) -> None:
            done(place, items[place].check.evidence(items[place].item, answers))

        def answered(place: int, answers: Answers) -> None:
            check, item = items[place].check, items[place].item
            if self._judge_model is not None and isinstance(check, ConversationCheck):
                to_judge[place] = check.ask_judge(item, answers, self._prompts)
            else:
                judged(place, answers)

        for capped in (False, True):
            places = [place for place, asked in enumerate(items) if asked.check.capped == capped]
            interviews = {place: items[place].check.ask(items[place].item, self._prompts) for place in places}
            kept = self._hold(self._engine, interviews, answered, capped=capped, store=self._store)
            self.asked += kept.asked
            self.known += kept.known
        if self._judge_model is not None:
            in_order = {place: to_judge[place] for place in sorted(to_judge)}
            kept = self._hold(self._judge_model, in_order, judged, capped=False, store=None)  # whose, nobody can say
            self.asked_judge += kept.asked

    def _hold(
        self,
        engine: Engine,
        interviews: Mapping[int, Interview[Answers]],
        finished: Callable[[int, Answers], None],
        *,
        capped: bool,
        store: AnswerStore | None,
    ) -> KeptAnswers:
        """Hold the interviews; `finished` gets each one's place and what was answered."""
        places = list(interviews)
        if not places:
            return KeptAnswers(engine.identity, self._arithmetic, store)
        with parallel_answers(engine, capped=capped) as answers:
            arithmetic = "; ".join(part for part in (self._arithmetic, answers.arithmetic) if part)
            kept = KeptAnswers(engine.identity, arithmetic, store)
            hold_all(
                answers,
                list(interviews.values()),
                memory=kept,
                finished=lambda number, said: finished(places[number], said),
            )
        return kept


def judge(
    engine: Engine,
    suites: Suites,
    *,
    prompts: Prompts,
    params: GateParams,
    report: Report,
    store: AnswerStore | None = None,
    arithmetic: str = "",
    not_asked: Mapping[str, str] | None = None,
    judge_model: Engine | None = None,
) -> GateResult:
    """Ask every item, or the subset that `params` names. Ratings are asked uncapped, conversations with and without.

    What each check can show with its number of items is reported before the first question. `not_asked` are checks
    that the engine cannot be asked, and why: they are inconclusive. `judge_model` judges the conversations, too.
    """
    checks, left_out = all_checks(params), dict(not_asked or {})
    chosen = suites.subset(params.items_per_check)
    items = {check.name: () if check.name in left_out else check.items(chosen) for check in checks}
    for check in checks:
        reason = left_out.get(check.name)
        report(f"{check.name}: {check.power(len(items[check.name])) if reason is None else f'not asked: {reason}'}")
    asked = [Asked(check, item) for check in checks for item in items[check.name]]
    rows: dict[int, Evidence] = {}
    left = {check.name: len(items[check.name]) for check in checks}

    def done(place: int, row: Evidence) -> None:
        rows[place] = row
        left[row.check] -= 1
        if not left[row.check]:
            found = [each for each in rows.values() if each.check == row.check]
            report(f"{row.check}: {sum(each.passed for each in found)} of {len(found)} passed")

    questioner = Questioner(engine, prompts, store, arithmetic, judge_model)
    questioner.ask_all(asked, done)
    evidence: dict[str, list[Evidence]] = {check.name: [] for check in checks}
    for place in sorted(rows):
        evidence[rows[place].check].append(rows[place])
    read = "" if judge_model is None else f", {counted(questioner.asked_judge, 'question')} to the judge model"
    report(f"{counted(questioner.asked, 'question')} asked, {questioner.known} answered before{read}")
    judge_identity = None if judge_model is None else judge_model.identity
    return _result(checks, evidence, engine.identity, params.items_per_check, left_out, judge_identity)


def judge_again(
    rows: Sequence[dict[str, Any]],
    identity: EngineIdentity,
    *,
    params: GateParams,
    not_asked: Mapping[str, str] | None = None,
    judge_model: EngineIdentity | None = None,
) -> GateResult:
    """Apply the rules to kept answers, without the model. `not_asked` and `judge_model` are the evidence's own.

    Raises IntegrityError for a check that has no rows, a row of no check, answers that no rule can read, or a
    conversation without the answer of the judge model that the evidence names, or with one of a judge that it does not.
    """
    checks, left_out = all_checks(params), dict(not_asked or {})
    by_name = {check.name: check for check in checks}
    evidence: dict[str, list[Evidence]] = {check.name: [] for check in checks}
    for row in rows:
        check = by_name.get(row.get("check", ""))
        if check is None:
            raise IntegrityError(f"the evidence holds a row of the check {row.get('check')!r}, which there is not")
        again = _judged_again(check, row)
        if ("judge" in again.answers) != (judge_model is not None and isinstance(check, ConversationCheck)):
            what = (
                "holds an answer of a judge model, and none judged"
                if judge_model is None
                else ("does not hold what the judge model said of each conversation, and of nothing else")
            )
            raise IntegrityError(f"the evidence of {check.name}, item {again.id!r}, {what}; run the gate again")
        evidence[check.name].append(again)
    for name, found in evidence.items():
        if bool(found) == (name in left_out):
            what = "rows" if found else "no row"
            raise IntegrityError(f"the evidence holds {what} of the check {name}; run the gate again")
        ids = [row.id for row in found]
        if len(set(ids)) < len(ids):
            raise IntegrityError(f"the evidence holds an item of the check {name} twice; run the gate again")
    return _result(checks, evidence, identity, params.items_per_check, left_out, judge_model)


def _judged_again(check: Check[Any], row: dict[str, Any]) -> Evidence:
    try:
        item: Item = check.item_type.model_validate(row["item"])
        return check.evidence(item, row["answers"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise IntegrityError(
            f"the evidence of {row.get('check')}, item {row.get('id')!r}, cannot be read ({error}); run the gate again"
        ) from error


def _result(
    checks: Sequence[Check[Any]],
    evidence: dict[str, list[Evidence]],
    identity: EngineIdentity,
    subset: int | None,
    not_asked: dict[str, str],
    judge_model: EngineIdentity | None,
) -> GateResult:
    results: list[CheckResult] = [
        _left_out(check, not_asked[check.name])
        if check.name in not_asked
        else check.summarise(evidence[check.name], evidence)
        for check in checks
    ]
    return GateResult(
        checks=[_if_proven(result, check, identity) for result, check in zip(results, checks, strict=True)],
        evidence=[row for check in checks for row in evidence[check.name]],
        engine=identity,
        subset=subset,
        not_asked=not_asked,
        judge_model=judge_model,
    )


def _left_out(check: Check[Any], reason: str) -> CheckResult:
    """The line of a check without items, which shows nothing."""
    return CheckResult(check.name, "not asked", 0, 0, Interval(0.0, 1.0), "inconclusive", "", reason=reason)


def _if_proven(result: CheckResult, check: Check[Any], identity: EngineIdentity) -> CheckResult:
    """A server that only claims its weights cannot pass a check of the capped model."""
    if check.capped and identity.claimed and not identity.vouched and result.verdict == "pass":
        return replace(result, verdict="inconclusive", reason="the server only claims what it caps with")
    return result
