"""The Modelfile: the right turns for the templates we know, and a refusal of what it cannot say."""

from __future__ import annotations

import pytest

from karma_electric.errors import InputError
from karma_electric.release.ollama import modelfile
from tests.release.release_files import CHATML
from tests.tiny_model import CHAT_TEMPLATE

LLAMA3 = (
    "{{- bos_token }}{% for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
)


@pytest.mark.parametrize("template", [CHATML, CHAT_TEMPLATE])
def test_chatml(template: str) -> None:
    assert modelfile(gguf_name="tiny.gguf", chat_template=template, persona_prompt="Be kind.\nBe brief.") == (
        "FROM ./tiny.gguf\n"
        'TEMPLATE """{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}'
        '<|im_start|>assistant\n"""\n'
        'SYSTEM """Be kind.\nBe brief."""\n'
        'PARAMETER stop "<|im_end|>"\n'
        "PARAMETER temperature 0\n"
    )


def test_llama_3() -> None:
    assert modelfile(gguf_name="tiny.gguf", chat_template=LLAMA3, persona_prompt="Be kind.") == (
        "FROM ./tiny.gguf\n"
        'TEMPLATE """{{- range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n{{ .Content }}<|eot_id|>'
        '{{ end }}<|start_header_id|>assistant<|end_header_id|>\n\n"""\n'
        'SYSTEM """Be kind."""\n'
        'PARAMETER stop "<|eot_id|>"\n'
        "PARAMETER temperature 0\n"
    )


@pytest.mark.parametrize("template", ["", "[INST] {{ messages[0].content }} [/INST]", "<start_of_turn>user"])
def test_another_template_is_refused(template: str) -> None:
    with pytest.raises(InputError, match="neither ChatML nor Llama 3's"):
        modelfile(gguf_name="tiny.gguf", chat_template=template, persona_prompt="Be kind.")


@pytest.mark.parametrize("prompt", ['Say """ often.', 'Say "yes"', 'He said ""'])
def test_a_prompt_that_would_end_early_is_refused(prompt: str) -> None:
    with pytest.raises(InputError, match="persona prompt"):
        modelfile(gguf_name="tiny.gguf", chat_template=CHATML, persona_prompt=prompt)


def test_quotes_inside_a_prompt_stay() -> None:
    text = modelfile(gguf_name="tiny.gguf", chat_template=CHATML, persona_prompt='Say "yes" or ""no"".')
    assert 'SYSTEM """Say "yes" or ""no""."""\n' in text
