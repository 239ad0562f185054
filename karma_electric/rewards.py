"""One reward for a response: the built model's own rating, less what the anti-judge finds. Also for GRPO in TRL.

    with LlamaCppEngine(Path("models/gguf/NAME-Q8_0.gguf")) as engine:
        reward = KarmaReward(engine, read_prompt(Path("data/prompts/evaluator.txt")))
        GRPOTrainer(model=..., reward_funcs=reward, ...)

The rating is the gate's: the evaluator's form, uncapped. The shaped reward is the overall score less the penalties, not
below 1; a hard block, and a response that is not rated, get 0, which no rating can reach. Not rated is a response
without words, and one that writes the model's control tokens as text: in the evaluator's prompt they would end the
turn, and the response could write its own rating.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from karma_electric.canonical import read_json_lines, rounded
from karma_electric.conversation import parse_text
from karma_electric.engines.control_tokens import is_plain_text
from karma_electric.engines.protocol import Engine
from karma_electric.engines.questions import hold
from karma_electric.errors import InputError, shown
from karma_electric.suites.antijudge import AntiJudgement, antijudge
from karma_electric.suites.evaluation import LOWEST_SCORE, Evaluation, NotRated, evaluate
from karma_electric.wording import counted

BLOCKED_REWARD = 0.0


@dataclass(frozen=True, slots=True)
class Exchange:
    """A message and the response to rate; where it stands in its file."""

    prompt: str
    response: str
    id: str


@dataclass(frozen=True, slots=True)
class Scored:
    """A response with its rating and its penalties; `not_rated` is why there is no rating."""

    evaluation: Evaluation | None
    judgement: AntiJudgement
    not_rated: str | None = None

    @property
    def raw(self) -> int | None:
        """The overall score, 1 to 10."""
        return None if self.evaluation is None else self.evaluation.overall

    @property
    def reward(self) -> float:
        """The shaped reward, 0 to 10."""
        return shaped_reward(self.raw, self.judgement)

    def as_row(self) -> dict[str, Any]:
        """As JSON holds it."""
        found = self.evaluation
        return {
            "raw": self.raw,
            "expected": None if found is None else found.as_row()["expected_overall"],
            "dimensions": None if found is None else found.dimensions,
            "antijudge": self.judgement.as_row(),
            "reward": rounded(self.reward),
            "not_rated": self.not_rated,
        }


def shaped_reward(raw: int | None, judgement: AntiJudgement) -> float:
    """The score less the penalties, at least 1; BLOCKED_REWARD for a hard block or for no score."""
    if raw is None or judgement.hard_block:
        return BLOCKED_REWARD
    return max(float(LOWEST_SCORE), raw - judgement.total)


def score_response(
    engine: Engine, evaluator_prompt: str, *, prompt: str, response: str, reasons: bool = False
) -> Scored:
    """Rate one response, uncapped, with the model's reasons or with scores only; and read it for penalties."""
    judgement = antijudge(response)
    if not response.strip():
        return Scored(None, judgement, "no words")
    rating = evaluate(
        evaluator_prompt,
        prompt=prompt,
        response=response,
        reasons=reasons,
        is_plain=partial(is_plain_text, engine),
    )
    found = hold(engine, rating)
    return Scored(None, judgement, found.reason) if isinstance(found, NotRated) else Scored(found, judgement)


def read_exchanges(path: Path) -> list[Exchange]:
    """The rows of a file of JSON lines: `prompt`, `response`, and an `id` where wanted (else the line's number).

    A response may be empty. Raises InputError for a bad row, with its line, and for a file without rows.
    """
    exchanges = list(_exchanges(path))
    if not exchanges:
        raise InputError(f"{path}: holds no rows; expected JSON lines with prompt and response")
    return exchanges


class KarmaReward:
    """A reward function for TRL's trainers: `reward_funcs=KarmaReward(engine, evaluator_prompt)`.

    Prompts and completions are texts, or lists of messages, of which the last user turn and the assistant's turns are
    rated. Equal pairs are rated once. `report` gets the mean reward of each batch.
    """

    def __init__(self, engine: Engine, evaluator_prompt: str, *, report: Callable[[str], None] | None = None) -> None:
        self.__name__ = "karma_reward"  # the trainer's logs name the reward so
        self._engine = engine
        self._evaluator_prompt = evaluator_prompt
        self._report = report

    def score(self, prompt: object, completion: object) -> Scored:
        """One pair."""
        return score_response(
            self._engine,
            self._evaluator_prompt,
            prompt=_text_of(prompt, "user", last_only=True),
            response=_text_of(completion, "assistant", last_only=False),
        )

    def __call__(self, prompts: Sequence[object], completions: Sequence[object], **kwargs: object) -> list[float]:
        """The shaped reward of each completion. Other columns of the data set and the trainer's state are not read."""
        if len(prompts) != len(completions):
            raise InputError(f"{len(prompts)} prompts and {len(completions)} completions, expected as many of each")
        known: dict[tuple[str, str], float] = {}
        rewards = []
        for prompt, completion in zip(prompts, completions, strict=True):
            pair = (_text_of(prompt, "user", last_only=True), _text_of(completion, "assistant", last_only=False))
            if pair not in known:
                known[pair] = self.score(*pair).reward
            rewards.append(known[pair])
        if self._report is not None and rewards:
            self._report(f"mean reward {sum(rewards) / len(rewards):.2f} of {counted(len(rewards), 'completion')}")
        return rewards


def _exchanges(path: Path) -> Iterator[Exchange]:
    for number, row in read_json_lines(path):
        where = f"{path}:{number}"
        if unknown := sorted(set(row) - {"id", "prompt", "response"}):
            raise InputError(f"{where}: unknown key {shown(unknown[0])}; a row has prompt, response and maybe id")
        response = row.get("response")
        if response != "":
            response = parse_text(response, f"{where}: response")
        name = parse_text(row.get("id", str(number)), f"{where}: id")
        yield Exchange(parse_text(row.get("prompt"), f"{where}: prompt"), response, name)


def _text_of(value: object, role: str, *, last_only: bool) -> str:
    """A text as it is; of messages, the last content of `role`, or all of them."""
    if isinstance(value, str):
        return value
    if not isinstance(value, Sequence) or not value:
        raise InputError(f"found {shown(value)}, expected a text or a list of messages with role and content")
    contents = [_content(message) for message in value if isinstance(message, Mapping) and message.get("role") == role]
    if not contents:
        raise InputError(f"found {shown(value)}, expected a message with the role {role!r}")
    return contents[-1] if last_only else "\n".join(contents)


def _content(message: Mapping[str, object]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if isinstance(content, Sequence) and all(
        isinstance(part, Mapping) and part.get("type") == "text" for part in content
    ):
        return "\n".join(str(part["text"]) for part in content)
    raise InputError(f"found the content {shown(content)}, expected text")
