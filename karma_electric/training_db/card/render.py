"""The dataset card: Markdown in the hub's form, whose numbers are counted and never typed."""

from __future__ import annotations

import dataclasses
from importlib import resources

import jinja2

from karma_electric.training_db.card.counts import CardCounts
from karma_electric.wording import counted

TEMPLATE = "dataset-card.md.jinja"
_SIZE_BOUNDS = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def render_dataset_card(counts: CardCounts) -> str:
    """The card; a name that the template lacks is an error, never an empty place."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - Markdown from our own counts, not HTML from outside
    )
    environment.filters["size_category"] = size_category
    environment.filters["counted"] = counted
    source = resources.files("karma_electric.training_db.card").joinpath(TEMPLATE).read_text("utf-8")
    values = {field.name: getattr(counts, field.name) for field in dataclasses.fields(counts)}
    return environment.from_string(source).render(values)


def size_category(rows: int) -> str:
    """The hub's name for a number of rows."""
    return next((name for bound, name in _SIZE_BOUNDS if rows < bound), "n>1M")
