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
    # float() of an undefined name says which name; a format would not.
    environment.filters["percent"] = lambda share: f"{100 * float(share):.1f}".removesuffix(".0") + "%"
    environment.filters["megabytes"] = lambda size_bytes: f"{float(size_bytes) / 1e6:.1f} MB"
    environment.filters["points"] = lambda value: f"{float(value):.2f}"
    source = resources.files("karma_electric.release").joinpath("templates", TEMPLATE).read_text("utf-8")
    return environment.from_string(source).render(context)
