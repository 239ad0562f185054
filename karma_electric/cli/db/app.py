"""`karma db`: the training database."""

from __future__ import annotations

import typer

from karma_electric.cli.db import carrying, editing, reading, writing

app = typer.Typer(help="The training database.", no_args_is_help=True)
reading.register(app)
writing.register(app)
editing.register(app)
carrying.register(app)
