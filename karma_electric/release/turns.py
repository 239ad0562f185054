"""What a chat template writes around each message, found by asking it; the same turns as a Go template for Ollama.

Ollama evaluates Go templates and knows nothing of Jinja. The chat template is rendered with marked messages, and what
stands around the marks is what the Go template writes. Conversations of several shapes are then rendered both ways: a
chat template that does more than surround its messages is refused, and nothing is written that is nearly right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from karma_electric.conversation import Message, Role
from karma_electric.engines.chat_template import ChatTemplate
from karma_electric.errors import InputError

_MARK = "KARMAMARK"
_ROLES: tuple[Role, ...] = ("system", "user", "assistant")
# Shapes that are compared, by the first letter of each role. A conversation for Ollama ends with a user's turn.
_SHAPES = ("u", "su", "uau", "suau", "suauau", "usu", "suasu")


@dataclass(frozen=True, slots=True)
class Turns:
    """Texts before and after a message: of a system message in the first place, and of each role in any other place.

    `opening` is written first when no system message is; `generation` is the header of the answer.
    """

    opening: str
    system_first: tuple[str, str]
    others: Mapping[str, tuple[str, str]]
    generation: str

    def text(self, messages: Sequence[Message]) -> str:
        """The conversation, with the header of the answer at its end."""
        parts = [] if messages[0].role == "system" else [self.opening]
        for index, message in enumerate(messages):
            first = index == 0 and message.role == "system"
            before, after = self.system_first if first else self.others[message.role]
            parts += [before, message.content, after]
        return "".join([*parts, self.generation])


def read_turns(chat_template: str, *, eos_token: str, where: str) -> Turns:
    """What `chat_template` (Jinja) writes around messages. The beginning-of-text token is left out: Ollama adds it.

    Raises InputError, starting with `where`, for a template that cannot be written as turns.
    """
    template = ChatTemplate(chat_template, bos_token="", eos_token=eos_token, where=where)
    turns = _turns(template, where)
    for shape in _SHAPES:
        messages = _conversation(shape)
        if turns.text(messages) != template.render(messages):
            raise InputError(
                f"{where}: the chat template changes its messages or depends on more than their roles "
                f"(seen in a conversation {shape!r}), which Ollama's template cannot; use another base model"
            )
    return turns


def go_template(turns: Turns, *, where: str) -> str:
    """The turns as a Go template over `.Messages`, of `range`, `if eq`, `and` and fields only.

    Raises InputError for text that a Go template would read as an action.
    """
    texts = [turns.opening, turns.generation, *turns.system_first, *(t for pair in turns.others.values() for t in pair)]
    if any("{{" in text or text.endswith("{") or '"""' in text for text in texts):
        raise InputError(f'{where}: the chat template writes {{{{ or """, which a Modelfile cannot hold')
    system, user, assistant = (_written(turns.others[role]) for role in _ROLES)
    branches = [('eq $m.Role "system"', system), ('eq $m.Role "user"', user)]
    if turns.system_first != turns.others["system"]:
        branches.insert(0, ('and (eq $i 0) (eq $m.Role "system")', _written(turns.system_first)))
    opening = f'{{{{ if and (eq $i 0) (ne $m.Role "system") }}}}{turns.opening}{{{{ end }}}}' if turns.opening else ""
    choice = "{{ else ".join(f"if {condition} }}}}{text}" for condition, text in branches)
    return (
        f"{{{{ range $i, $m := .Messages }}}}{opening}"
        f"{{{{ {choice}{{{{ else }}}}{assistant}{{{{ end }}}}{{{{ end }}}}{turns.generation}"
    )


def _written(around: tuple[str, str]) -> str:
    return f"{around[0]}{{{{ $m.Content }}}}{around[1]}"


def _turns(template: ChatTemplate, where: str) -> Turns:
    first, second = (f"{_MARK}{number}" for number in ("a", "b"))
    whole = template.render((Message("user", first),))
    bare = template.render((Message("user", first),), add_generation_prompt=False)
    if not whole.startswith(bare):
        raise InputError(f"{where}: the chat template writes no header of the answer after the last message")
    generation = whole[len(bare) :]
    after_user = _around(bare, first, where)
    others: dict[str, tuple[str, str]] = {}
    for role in _ROLES:
        text = template.render((Message("user", first), Message(role, second)), add_generation_prompt=False)
        if not text.startswith(bare):
            raise InputError(f"{where}: the chat template writes a message otherwise when another follows")
        others[role] = _around(text[len(bare) :], second, where)
    opening_and_before, after = after_user
    before = others["user"][0]
    if not opening_and_before.endswith(before) or after != others["user"][1]:
        raise InputError(f"{where}: the chat template writes the first message otherwise than later ones")
    system = template.render((Message("system", first),), add_generation_prompt=False)
    return Turns(
        opening=opening_and_before.removesuffix(before),
        system_first=_around(system, first, where),
        others=others,
        generation=generation,
    )


def _around(text: str, mark: str, where: str) -> tuple[str, str]:
    before, found, after = text.partition(mark)
    if not found or mark in after:
        raise InputError(f"{where}: the chat template leaves a message out or writes it twice; use another base model")
    return before, after


def _conversation(shape: str) -> tuple[Message, ...]:
    roles: dict[str, Role] = {role[0]: role for role in _ROLES}
    return tuple(Message(roles[letter], f"{_MARK} {number}\nand more") for number, letter in enumerate(shape))
