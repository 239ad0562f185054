"""A Modelfile, so that Ollama runs the GGUF with the persona's prompt and the right turns."""

from __future__ import annotations

from karma_electric.errors import InputError

# A sign in the chat template -> the same turns as an Ollama template, and the text that ends a turn.
_FORMATS = {
    "<|im_start|>": (
        "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "<|start_header_id|>": (
        "{{- range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n{{ .Content }}<|eot_id|>{{ end }}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
}


def modelfile(*, gguf_name: str, chat_template: str, persona_prompt: str) -> str:
    """The text of a Modelfile. Raises InputError for a chat template of another form."""
    for sign, (template, stop) in _FORMATS.items():
        if sign in chat_template:
            if '"""' in persona_prompt or persona_prompt.endswith('"'):
                raise InputError('the persona prompt holds """ or ends in ", so a Modelfile would cut it; reword it')
            return (
                f'FROM ./{gguf_name}\nTEMPLATE """{template}"""\nSYSTEM """{persona_prompt}"""\n'
                f'PARAMETER stop "{stop}"\nPARAMETER temperature 0\n'
            )
    raise InputError("the chat template is neither ChatML nor Llama 3's; add its turns to the Modelfile's formats")
