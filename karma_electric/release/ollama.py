"""Ollama's files, so that it runs the GGUF with the persona's prompt and exactly the turns of the chat template.

`Modelfile` is for `ollama create`; `template`, `system` and `params` are what `ollama run hf.co/ORG/NAME` reads.
Two things Ollama does by itself: it puts the beginning-of-text token first where the GGUF asks for one, and joins
messages in a row of one role, so that conversations with such rows are no longer those of the chat template.
"""

from __future__ import annotations

import re

from karma_electric.canonical import readable_json
from karma_electric.errors import InputError
from karma_electric.release.turns import go_template, read_turns

_END_OF_TURN = re.compile(r"^(<\|[A-Za-z0-9_]+\|>|</s>)")


def ollama_files(*, gguf_name: str, chat_template: str, eos_token: str, persona_prompt: str) -> dict[str, str]:
    """File name -> text of `Modelfile`, `template`, `system` and `params`.

    Raises InputError for a chat template that Ollama's cannot equal, and for a prompt that a Modelfile would cut.
    """
    turns = read_turns(chat_template, eos_token=eos_token, where=gguf_name)
    template = go_template(turns, where=gguf_name)
    if (ending := _END_OF_TURN.match(turns.others["assistant"][1])) is None:
        raise InputError(
            f"{gguf_name}: the chat template ends the assistant's turn with no special token; none to stop at"
        )
    if '"""' in persona_prompt or persona_prompt.endswith('"'):
        raise InputError('the persona prompt holds """ or ends in ", so a Modelfile would cut it; reword it')
    stop = ending[0]
    modelfile = (
        f'FROM ./{gguf_name}\nTEMPLATE """{template}"""\nSYSTEM """{persona_prompt}"""\n'
        f'PARAMETER stop "{stop}"\nPARAMETER temperature 0\n'
    )
    return {
        "Modelfile": modelfile,
        "template": template,
        "system": persona_prompt,
        "params": readable_json({"stop": [stop], "temperature": 0}),
    }
