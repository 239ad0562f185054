"""Chat templates are foreign programs: rendered as Hugging Face renders them, and refused in one line."""

from __future__ import annotations

import pytest

from karma_electric.conversation import Message
from karma_electric.engines.chat_template import MAX_TEMPLATE_CHARACTERS, ChatTemplate
from karma_electric.errors import InputError

TURNS = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>", where="m.gguf")


def test_blocks_are_trimmed_and_special_tokens_known() -> None:
    source = (
        "{{ bos_token }}\n  {% for m in messages %}\n{{ m.role }}={{ m['content'] }}{{ eos_token }}\n  {% endfor %}\n"
    )
    assert template(source).render(TURNS) == "<s>\nuser=a</s>\nassistant=b</s>\nuser=c</s>\n"


def test_loop_controls_namespaces_json_and_the_generation_prompt() -> None:
    source = (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% if loop.index == 3 %}{% break %}{% endif %}"
        "{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ {'é': 1} | tojson }}"
        "{% if tools is not none %}tools{% endif %}{% if add_generation_prompt %}>{% endif %}"
    )
    assert template(source).render(TURNS) == '2{"é": 1}>'
    assert template(source).render(TURNS, add_generation_prompt=False) == '2{"é": 1}'


def test_the_clock_is_not_there() -> None:
    source = "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}26 Jul 2024{% endif %}"
    assert template(source).render(TURNS) == "26 Jul 2024"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for %}", "is not Jinja"),
        ("{{ raise_exception('only two turns') }}", "only two turns"),
        ("{{ messages[9]['content'] }}", "refuses the conversation"),
        ("{{ messages.append(1) }}", "refuses the conversation"),
        ("{{ ''.__class__.__mro__ }}", "refuses the conversation"),
        ("{{ 1 / 0 }}", "refuses the conversation"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "refuses the conversation"),
        (" " * (MAX_TEMPLATE_CHARACTERS + 1), "this is no template"),
    ],
)
def test_what_a_template_may_not_do_is_one_line(source: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        template(source).render(TURNS)
    assert str(caught.value).startswith("m.gguf: ")
    assert "\n" not in str(caught.value)
