"""`karma`: the command line. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import sys

import typer

from karma_electric.cli import axis, build, card, chat, fit, gate, publish, redteam, rl_sim, score, serve, verify
from karma_electric.cli.db.app import app as db
from karma_electric.errors import KarmaError, SetupError

app = typer.Typer(
    help="Build, judge and publish a value-aligned language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
build.register(app)
fit.register(app)
chat.register(app)
serve.register(app)
score.register(app)
redteam.register(app)
rl_sim.register(app)
publish.register(app)
verify.register(app)
app.add_typer(axis.app, name="axis")
app.add_typer(db, name="db")
app.add_typer(card.app, name="card")
app.add_typer(gate.app, name="gate")


def main() -> None:
    """Run a command. A user's mistake is one line on stderr, with the exit code of its kind."""
    try:
        app()
    except KarmaError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        where = "a file" if error.filename is None else error.filename
        print(f"error: {where}: {error.strerror or error}; correct the path, or make room", file=sys.stderr)
        sys.exit(SetupError.exit_code)


if __name__ == "__main__":
    main()
