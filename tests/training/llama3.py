"""A small tokenizer and chat template of Llama 3.1's make: one BOS, headers between marks, trimmed contents."""

from __future__ import annotations

from typing import Any

BOS, START, END, EOT = "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
_TEXT = "Which way to the station?\n\nTurn left at the mill, then ask again.\n\nThank you, and a good day to you.\n\n"

# Like Llama 3's, and unlike GPT-2's, a run of line breaks is one piece, whatever follows it.
_PIECES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

_TURN = "{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}"
_LOOP = "{%- for message in messages %}%s{%- endfor %}"
_HEADER = "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
TEMPLATE = "{{- bos_token }}" + _LOOP.replace("%s", _TURN + "{{- message.content | trim + '<|eot_id|>' }}") + _HEADER
WITHOUT_BOS = TEMPLATE.removeprefix("{{- bos_token }}")
# The same text, with the mark that transformers understands: an independent way to the mask.
MARKED = (
    "{{- bos_token }}"
    + _LOOP.replace(
        "%s",
        _TURN + "{%- if message.role == 'assistant' %}{% generation %}{{- message.content | trim + '<|eot_id|>' }}"
        "{% endgeneration %}{%- else %}{{- message.content | trim + '<|eot_id|>' }}{%- endif %}",
    )
    + _HEADER
)


def llama3_tokenizer(*, adds_bos: bool, template: str = TEMPLATE) -> Any:
    """A byte-level BPE tokenizer that puts BOS before every text, or does not."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[BOS, START, END, EOT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT] * 4 + ["\n\n\n\n"] * 8, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOT, pad_token=EOT)
    fast.chat_template = template
    return fast
