"""Ollama's files: the turns of the chat template, token by token, and a refusal of what they cannot say.

No Go program is at hand, so the tests evaluate the template by an interpreter of the constructs that it uses, written
from the documentation of Go's text/template, and of nothing else: text, `range $i, $m := .Messages`, `if`, `else if`,
`else`, `end`, `$m.Role`, `$m.Content`, `eq`, `ne` and `and`. Whatever else stands in a template is an error.
"""

from __future__ import annotations

import functools
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karma_electric.conversation import Message
from karma_electric.engines.chat_template import ChatTemplate
from karma_electric.errors import InputError
from karma_electric.release.ollama import ollama_files
from tests.release.release_files import CHATML
from tests.tiny_model import CHAT_TEMPLATE

# SmolLM2's: a system message of its own where there is none.
SMOLLM2 = CHAT_TEMPLATE.replace("a helper", "a helpful AI assistant named SmolLM, trained by Hugging Face")
# The turns of Llama 3.1's template without tools: a dated system header always, contents trimmed.
LLAMA3 = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set first = messages[0]['content'] | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set first = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}{{- 'Cutting Knowledge Date: December 2023\n' }}"
    "{{- 'Today Date: ' + date_string + '\n\n' }}{{- first }}{{- '<|eot_id|>' }}"
    "{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
SENTENCE = (
    "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
TEMPLATES = [CHATML, SMOLLM2, LLAMA3, SENTENCE]
PROMPT = "Be kind.\nBe brief."

WORDS = st.text("abc <|im_end|>{}%\"'\n日é0", min_size=1, max_size=20).map(lambda text: f"x{text}x")
ROLES = st.sampled_from(["system", "user", "assistant"])
CONVERSATIONS = st.lists(st.builds(Message, ROLES, WORDS), max_size=5)


def files(template: str, prompt: str = PROMPT) -> dict[str, str]:
    return ollama_files(gguf_name="tiny.gguf", chat_template=template, eos_token="</s>", persona_prompt=prompt)


@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=30)
@given(conversation=CONVERSATIONS, last=WORDS)
def test_the_same_text_as_the_chat_template(template: str, conversation: list[Message], last: str) -> None:
    messages = [*conversation, Message("user", last)]
    expected = ChatTemplate(template, bos_token="", eos_token="</s>", where="test").render(messages)
    assert GoTemplate(files(template)["template"]).render(messages) == expected


# Roles by their first letters: without and with a system message, one turn and several, rows of one role.
SHAPES = ("u", "su", "uau", "suau", "uauau", "suauau", "usu", "suasu", "uu", "suuaau")
CONTENTS = (
    PROMPT,
    "Hi",
    "Yes?",
    "12 times 7, isn't it:\n\n\tx",
    "Příliš žluťoučký",
    "<|im_end|><|eot_id|>",
    "日本語 🙂",
)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("template", "bos"), [(SMOLLM2, False), (LLAMA3, True)])
def test_the_same_tokens_as_transformers(template: str, bos: bool, shape: str) -> None:
    """Of the whole prompt, with the beginning-of-text token that Ollama adds where the GGUF file asks for one."""
    tokenizer = chat_tokenizer(template, bos=bos)
    go = GoTemplate(files(template)["template"])
    roles = {role[0]: role for role in ("system", "user", "assistant")}
    for shift in range(len(CONTENTS)):
        rows = [
            {"role": roles[letter], "content": CONTENTS[(number + shift) % len(CONTENTS)]}
            for number, letter in enumerate(shape)
        ]
        expected = tokenizer.apply_chat_template(rows, add_generation_prompt=True)["input_ids"]
        messages = [Message(row["role"], row["content"]) for row in rows]
        assert tokenizer(go.render(messages), add_special_tokens=bos)["input_ids"] == expected
        assert (expected[0] == tokenizer.bos_token_id) == bos
        assert len(expected) > 5


@functools.cache
def chat_tokenizer(template: str, *, bos: bool) -> Any:
    """A byte-level BPE with the special tokens of both models; with `bos`, as Llama's, it writes that token first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = sorted({*re.findall(r"<\|\w+\|>", SMOLLM2 + LLAMA3), "<|begin_of_text|>"})
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*CONTENTS, SMOLLM2, LLAMA3], trainer)
    if bos:
        first = ("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{first[0]} $A", special_tokens=[first])
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "</s>", "chat_template": template}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


@pytest.mark.parametrize(("template", "stop"), [(CHATML, "<|im_end|>"), (LLAMA3, "<|eot_id|>"), (SENTENCE, "</s>")])
def test_the_files_agree(template: str, stop: str) -> None:
    found = files(template)
    assert found["Modelfile"] == (
        f'FROM ./tiny.gguf\nTEMPLATE """{found["template"]}"""\nSYSTEM """Be kind.\nBe brief."""\n'
        f'PARAMETER stop "{stop}"\nPARAMETER temperature 0\n'
    )
    assert json.loads(found["params"]) == {"stop": [stop], "temperature": 0}
    assert found["system"] == PROMPT


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("", "no header of the answer|leaves a message out"),
        ("[INST] {{ messages[0].content }} [/INST]", "otherwise when another follows|leaves a message out"),
        (CHATML.replace("message['content']", "message['content'] | upper"), "leaves a message out"),
        (CHATML.replace("message['content']", "message['content'][:12]"), "changes its messages"),
        (CHATML.replace("'<|im_start|>' +", "loop.index|string + '<|im_start|>' +"), "otherwise than later ones"),
        (CHATML.replace("<|im_end|>", ""), "no special token"),
        (CHATML.replace("<|im_end|>", "<|im_end|>{" + "{"), "a Modelfile cannot hold"),
        ("{{ raise_exception('no') }}", "refuses the conversation"),
    ],
)
def test_a_template_that_ollamas_cannot_equal_is_refused(template: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        files(template)


@pytest.mark.parametrize("prompt", ['Say """ often.', 'Say "yes"', 'He said ""'])
def test_a_prompt_that_would_end_early_is_refused(prompt: str) -> None:
    with pytest.raises(InputError, match="persona prompt"):
        files(CHATML, prompt)


def test_quotes_inside_a_prompt_stay() -> None:
    assert 'SYSTEM """Say "yes" or ""no""."""\n' in files(CHATML, 'Say "yes" or ""no"".')["Modelfile"]


class GoTemplate:
    """The subset of Go's text/template that the head of this file names. Blank space around actions is kept."""

    def __init__(self, source: str) -> None:
        parts = re.split(r"\{\{(.*?)\}\}", source, flags=re.DOTALL)
        self._parts = [(index % 2 == 1, part.strip() if index % 2 else part) for index, part in enumerate(parts)]

    def render(self, messages: list[Message]) -> str:
        text, position = self._block(0, messages, {}, run=True)
        assert position == len(self._parts), "an `end` or `else` too many"
        return text

    def _block(self, position: int, messages: list[Message], names: dict[str, object], *, run: bool) -> tuple[str, int]:
        """The text of the parts up to the `else` or `end` that closes the block, and the place of that part."""
        text = ""
        while position < len(self._parts):
            is_action, part = self._parts[position]
            if not is_action:
                text += part if run else ""
                position += 1
            elif part == "end" or part.split()[0] == "else":
                return text, position
            elif part == "range $i, $m := .Messages":
                start = position + 1
                if not run:
                    _, position = self._block(start, messages, names, run=False)
                for index, message in enumerate(messages if run else []):
                    more, position = self._block(start, messages, {"$i": index, "$m": message}, run=True)
                    text += more
                assert self._parts[position] == (True, "end")
                position += 1
            elif part.startswith("if "):
                more, position = self._choice(position, messages, names, run=run)
                text += more
            else:
                text += str(_value(part, names)) if run else ""
                position += 1
        return text, position

    def _choice(
        self, position: int, messages: list[Message], names: dict[str, object], *, run: bool
    ) -> tuple[str, int]:
        text, taken = "", False
        condition = self._parts[position][1].removeprefix("if ")
        while True:
            now = run and not taken and (condition is None or bool(_value(condition, names)))
            more, position = self._block(position + 1, messages, names, run=now)
            text, taken = text + more, taken or now
            part = self._parts[position][1]
            if part == "end":
                return text, position + 1
            condition = part.removeprefix("else if ") if part != "else" else None


def _value(expression: str, names: dict[str, object]) -> object:
    tokens = re.findall(r'"[^"]*"|[()]|[^\s()]+', expression)
    value, rest = _pipeline(tokens, names)
    assert not rest, f"{expression}: not of the subset"
    return value


def _pipeline(tokens: list[str], names: dict[str, object]) -> tuple[object, list[str]]:
    """A function and its operands, or one operand; ends at `)`."""
    head, *rest = tokens
    if head not in ("eq", "ne", "and"):
        return _operand(tokens, names)
    operands = []
    while rest and rest[0] != ")":
        operand, rest = _operand(rest, names)
        operands.append(operand)
    assert len(operands) == 2
    if head == "and":
        return operands[1] if operands[0] else operands[0], rest
    return (operands[0] == operands[1]) == (head == "eq"), rest


def _operand(tokens: list[str], names: dict[str, object]) -> tuple[object, list[str]]:
    head, *rest = tokens
    if head == "(":
        value, rest = _pipeline(rest, names)
        assert rest[0] == ")"
        return value, rest[1:]
    if head.startswith('"'):
        return head[1:-1], rest
    if head.isdigit():
        return int(head), rest
    if head == "$i":
        return names["$i"], rest
    message = names["$m"]
    assert isinstance(message, Message)
    return {"$m.Role": message.role, "$m.Content": message.content}[head], rest
