"""The model card: a template whose numbers all come from metrics, parameters and manifests."""

from __future__ import annotations

from importlib import resources
from typing import Any

import jinja2

TEMPLATE = "model-card.md.jinja"


def render_card(context: dict[str, Any]) -> str:
    """The card as Markdown. A name that the context lacks is an error, never an empty place."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - Markdown from our own metrics, not HTML from outside
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.0f}%"
    environment.filters["megabytes"] = lambda size_bytes: f"{size_bytes / 1e6:.1f} MB"
    environment.filters["points"] = lambda value: f"{value:.2f}"
    source = resources.files("karma_electric.release").joinpath("templates", TEMPLATE).read_text("utf-8")
    return environment.from_string(source).render(context)
