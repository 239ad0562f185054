"""Control tokens written as text: in a chat template they would end a turn and start another."""

from __future__ import annotations

from karma_electric.engines.protocol import Engine


def is_plain_text(engine: Engine, text: str) -> bool:
    """Whether the model reads `text` as text only."""
    return engine.tokenize(text, parse_special=True) == engine.tokenize(text)
