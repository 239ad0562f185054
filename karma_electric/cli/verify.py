"""`karma verify`: whether a release, here or on the hub, is what was signed."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from karma_electric.cli.output import print_json, print_text, say
from karma_electric.errors import InputError

if TYPE_CHECKING:
    from karma_electric.release.verify import Verification


def register(app: typer.Typer) -> None:
    """Add the command to `karma`."""
    app.command()(verify)


def verify(
    release: Annotated[str, typer.Argument(metavar="FOLDER|ORG/NAME", help="A folder, or a model repo of the hub.")],
    public_key: Annotated[Path | None, typer.Option(help="The publisher's key, PEM.")] = None,
    revision: Annotated[str, typer.Option(help="Of a repo: a tag or commit.")] = "main",
    output: Annotated[Path | None, typer.Option(help="Keep what is downloaded in this new folder.")] = None,
    gate: Annotated[bool, typer.Option("--gate", help="Judge again from the evidence.")] = False,
    unsigned: Annotated[bool, typer.Option("--unsigned", help="Accept a release without a signature.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Check signature, every hash, the headers of weights, the card's numbers, and what the gate judged.

    Exit code 6: something does not hold.

    Example: karma verify ORG/NAME --public-key KEY.pem
    """
    from karma_electric.release.download import is_repo_id
    from karma_electric.release.verify import verify_release

    def check(folder: Path) -> Verification:
        return verify_release(folder, public_key=public_key, unsigned=unsigned, gate=gate, report=say)

    if Path(release).is_dir():
        if output is not None or revision != "main":
            raise InputError("--output and --revision go with ORG/NAME, and this is a folder; leave them out")
        _show(check(Path(release)), _yanked_here(Path(release)), json_output=json_output)
        return
    if not is_repo_id(release):
        raise InputError(f"{release}: neither a folder here nor of the form ORG/NAME")
    from karma_electric.release.download import fetch_release

    if output is not None and output.exists() and any(output.iterdir()):
        raise InputError(f"{output}: not empty; name a new folder to download to")
    with tempfile.TemporaryDirectory(prefix="karma-verify-") as temporary:
        folder = Path(temporary) if output is None else output
        say(f"{release}: fetching {revision}")
        yanked = fetch_release(release, folder, revision=revision)
        _show(check(folder), yanked, json_output=json_output)


def _yanked_here(folder: Path) -> dict[str, str]:
    from karma_electric.canonical import read_json_object
    from karma_electric.release.card import YANKED_NAME

    path = folder / YANKED_NAME
    return {version: str(reason) for version, reason in read_json_object(path).items()} if path.exists() else {}


def _show(found: Verification, yanked: dict[str, str], *, json_output: bool) -> None:
    reason = yanked.get(found.version)
    if json_output:
        print_json({"valid": True, "yanked": reason, **dataclasses.asdict(found)})
        return
    print_text("valid" if reason is None else f"valid, yanked: {reason}", style="bold" if reason is None else "yellow")
    size = f"{found.total_bytes / 1e6:.1f} MB"
    print(f"{found.name} {found.version}: {found.files} files, {size}, {found.numbers_in_card} numbers in the card")
    print(f"gate: {found.verdict}" + (", judged again from the evidence" if found.judged_again else ""))
    if found.signed_by is None:
        print("not signed: nobody vouches for these files")
    elif found.signed_by == "public-key.pem":
        print("signed by the key that lies in the release; compare it with the publisher's, or give --public-key")
    else:
        print(f"signed by {found.signed_by}")
