"""`karma db`: the training database."""

from __future__ import annotations

import typer

from karma_electric.cli.db import carrying, checking, editing, exporting, reading, writing

app = typer.Typer(help="The training database.", no_args_is_help=True)
reading.register(app)
checking.register(app)
exporting.register(app)
writing.register(app)
editing.register(app)
carrying.register(app)
