"""What is wrong, or looks wrong, with the rows of a training database and its patches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from karma_electric.conversation import ROLES, Message
from karma_electric.errors import InputError, shown
from karma_electric.training_db.contamination import GateIndex
from karma_electric.training_db.diversity import Answer, Diversity, answer_text, find_templates, measure_diversity
from karma_electric.training_db.private_data import find_private_data
from karma_electric.training_db.texts import words
from karma_electric.training_db.token_counts import TokenCounter
from karma_electric.wording import counted

MOST_TEMPLATES = 0.02
LEAST_DISTINCT_3 = 0.9
LEAST_WORDS_OF_A_QUESTION = 4

Severity = Literal["failure", "warning"]
RULES = {
    "empty-turn": "a turn without text, or a row without turns",
    "unknown-role": "a role that is not system, user or assistant",
    "role-order": "turns that do not go user, assistant, ..., assistant",
    "system-turn": "a system turn left in a row; an export would take it out",
    "too-long": "a row of more tokens than training takes; its end is cut off",
    "private-data": "secrets and personal data",
    "contamination": "a gate item that is in a row, or nearly",
    "near-duplicates": "rows that say nearly the same",
    "same-question": "rows that begin with the same question",
    "templates": "answers that are built like others; a failure above 2% of the rows",
    "diversity": "categories whose answers repeat their words",
}


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it is stored: `conversations` is whatever its JSON holds. `where` is the database, or a patch's line."""

    id: str
    where: str
    category: str
    is_pending: bool
    template_flag: str | None
    conversations: object

    def turns(self) -> list[str]:
        """The texts of the user and the assistant, as far as they can be read."""
        messages = self.conversations if isinstance(self.conversations, list) else []
        return [
            message["content"]
            for message in messages
            if isinstance(message, dict) and message.get("role") != "system" and isinstance(message.get("content"), str)
        ]


@dataclass(frozen=True, slots=True)
class Finding:
    """`id` is none for a finding about many rows."""

    rule: str
    severity: Severity
    where: str
    id: str | None
    message: str

    def __str__(self) -> str:
        row = "" if self.id is None else f" {shown(self.id)}:"
        return f"{self.where}:{row} {self.message}"


@dataclass(frozen=True, slots=True)
class TokenLimit:
    """The most tokens that a row may have, with the system prompt of its category before it."""

    counter: TokenCounter
    max_tokens: int
    prompt_of: Callable[[str], str | None] = lambda _category: None


@dataclass(slots=True)
class Report:
    """`unchecked` says which rules were asked for and could not be applied, and why."""

    rows: int = 0
    findings: list[Finding] = field(default_factory=list)
    diversity: dict[str, Diversity] = field(default_factory=dict)
    template_rows: int = 0
    unchecked: dict[str, str] = field(default_factory=dict)

    @property
    def failures(self) -> int:
        return sum(finding.severity == "failure" for finding in self.findings)


def lint(
    rows: Sequence[Row],
    *,
    rules: Iterable[str] = tuple(RULES),
    gate: GateIndex | None = None,
    token_limit: TokenLimit | None = None,
) -> Report:
    """Apply `rules` to `rows`. Without `gate` or `token_limit` the rules that need them are `unchecked`.

    Raises InputError for an unknown rule.
    """
    wanted = list(dict.fromkeys(rules))
    for rule in wanted:
        if rule not in RULES:
            raise InputError(f"no rule {shown(rule)}; there are {', '.join(RULES)}")
    report = Report(rows=len(rows))
    if "contamination" in wanted and gate is None:
        report.unchecked["contamination"] = "no gate items were given"
    if "too-long" in wanted and token_limit is None:
        report.unchecked["too-long"] = "no tokenizer was given"
    for row in rows:
        report.findings += (found for found in _row_findings(row, gate, token_limit) if found.rule in wanted)
    if "near-duplicates" in wanted:
        report.findings += _near_duplicates(rows)
    if "same-question" in wanted:
        report.findings += _same_questions(rows)
    answers = [Answer(row.id, row.where, row.category, answer_text(row.turns())) for row in rows]
    if "templates" in wanted:
        _add_templates(report, rows, answers)
    if "diversity" in wanted:
        report.diversity = measure_diversity(answers)
        report.findings += _monotonous(report.diversity)
    report.findings.sort(key=lambda found: (found.severity, wanted.index(found.rule)))
    return report


def _row_findings(row: Row, gate: GateIndex | None, token_limit: TokenLimit | None) -> Iterator[Finding]:
    def found(rule: str, message: str, severity: Severity = "failure") -> Finding:
        return Finding(rule, severity, row.where, row.id, message)

    structure = list(_structure(row.conversations))
    yield from (found(rule, message) for rule, message in structure)
    turns = row.turns()
    for number, turn in enumerate(turns, start=1):
        for kind, beginning in find_private_data(turn):
            yield found("private-data", f"turn {number} holds what looks like a {kind} ({beginning}); take it out")
    if gate is not None:
        for hit in gate.hits(turns, row=row.id, where=row.where):
            severity: Severity = "warning" if row.is_pending else "failure"
            yield found("contamination", hit.described(), severity)
    if token_limit is not None and not {rule for rule, _ in structure} - {"system-turn"}:
        prompt = token_limit.prompt_of(row.category)
        spoken = tuple(Message("assistant" if index % 2 else "user", turn) for index, turn in enumerate(turns))
        conversation = (Message("system", prompt), *spoken) if prompt else spoken
        tokens = token_limit.counter.count(conversation)
        if tokens > token_limit.max_tokens:
            yield found("too-long", f"{tokens} tokens, training takes {token_limit.max_tokens}; shorten it", "warning")


def _structure(conversations: object) -> Iterator[tuple[str, str]]:
    """(rule, message) of everything that is wrong with the list of turns."""
    if not isinstance(conversations, list) or not conversations:
        yield "empty-turn", f"conversations is {shown(conversations)}, expected a list of turns"
        return
    expected = "user"
    for number, message in enumerate(conversations, start=1):
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, str) or not content.strip():
            yield "empty-turn", f"turn {number} has no text"
        if role not in ROLES:
            yield "unknown-role", f"turn {number} is of role {shown(role)}, expected one of {', '.join(ROLES)}"
        elif role == "system":
            yield "system-turn", f"turn {number} is a system turn; the export puts the prompt first, so take it out"
            continue
        elif role != expected:
            yield "role-order", f"turn {number} is of role {role!r}, expected {expected!r}"
        spoken = role if role in ROLES else expected
        expected = "assistant" if spoken == "user" else "user"
    if expected == "assistant":
        yield "role-order", "the last turn is the user's, so there is nothing to learn"


def _near_duplicates(rows: Sequence[Row]) -> Iterator[Finding]:
    from karma_electric.training_db.near_duplicates import near_duplicates

    where = {row.id: row.where for row in reversed(rows)}
    for group in near_duplicates((row.id, "\n".join(row.turns())) for row in rows):
        first, *others = group.ids
        message = f"nearly the same as {', '.join(map(shown, others))} ({group.likeness:.0%}); keep one"
        yield Finding("near-duplicates", "failure", where[first], first, message)


def _same_questions(rows: Sequence[Row]) -> Iterator[Finding]:
    first: dict[tuple[str, ...], Row] = {}
    for row in rows:
        question = tuple(words(next(iter(row.turns()), "")))
        if len(question) < LEAST_WORDS_OF_A_QUESTION:
            continue
        known = first.setdefault(question, row)
        if known.id != row.id:
            message = f"begins with the same question as {shown(known.id)}"
            yield Finding("same-question", "warning", row.where, row.id, message)


def _add_templates(report: Report, rows: Sequence[Row], answers: Sequence[Answer]) -> None:
    flags = {row.id: row.template_flag for row in rows if row.template_flag}
    reasons = find_templates(answers, flags)
    where = {row.id: row.where for row in reversed(rows)}
    report.template_rows = len(reasons)
    report.findings += (
        Finding("templates", "warning", where[id_], id_, reason) for id_, reason in sorted(reasons.items())
    )
    ids = len(where)
    if len(reasons) > MOST_TEMPLATES * ids:
        message = (
            f"templates: {len(reasons)} of {counted(ids, 'row')}, at most {MOST_TEMPLATES:.0%} may be; rewrite them"
        )
        report.findings.append(Finding("templates", "failure", "the corpus", None, message))


def _monotonous(diversity: dict[str, Diversity]) -> Iterator[Finding]:
    for category, found in diversity.items():
        if found.distinct_3 < LEAST_DISTINCT_3:
            message = (
                f"{found.distinct_3:.0%} of the runs of three words in its answers are distinct, expected at least "
                f"{LEAST_DISTINCT_3:.0%}; vary them"
            )
            yield Finding("diversity", "warning", f"category {category}", None, message)
