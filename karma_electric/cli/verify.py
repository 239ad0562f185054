"""`karma verify`: whether a release, here or on the hub, is what was signed."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from karma_electric.cli.output import print_json, print_text, say
from karma_electric.errors import InputError, IntegrityError

if TYPE_CHECKING:
    from karma_electric.release.rebuild import Rebuild
    from karma_electric.release.signature import Identity
    from karma_electric.release.verify import Verification


def register(app: typer.Typer) -> None:
    """Add the command to `karma`."""
    app.command()(verify)


def verify(
    release: Annotated[str, typer.Argument(metavar="FOLDER|ORG/NAME", help="A folder, or a model repo of the hub.")],
    public_key: Annotated[Path | None, typer.Option(help="The publisher's key, PEM.")] = None,
    identity: Annotated[str | None, typer.Option(help="Who signed without a key: a mail address or workflow.")] = None,
    issuer: Annotated[str | None, typer.Option(help="Who attested that identity: an address.")] = None,
    revision: Annotated[str, typer.Option(help="Of a repo: a tag or commit.")] = "main",
    output: Annotated[Path | None, typer.Option(help="Keep what is downloaded in this new folder.")] = None,
    gate: Annotated[bool, typer.Option("--gate", help="Judge again from the evidence.")] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Make everything again from the adapters on, and compare.")
    ] = False,
    base: Annotated[Path | None, typer.Option(help="For --rebuild: the base model, where it is a folder.")] = None,
    unsigned: Annotated[bool, typer.Option("--unsigned", help="Accept a release without a signature.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Check signature, every hash, the headers of weights, the card's numbers, and what the gate judged.

    Exit code 6: something does not hold.

    Example: karma verify ORG/NAME --public-key KEY.pub.pem
    """
    signer = _signer(public_key, identity, issuer)
    if base is not None and not rebuild:
        raise InputError("--base goes with --rebuild; leave it out, or add that")
    from karma_electric.release.tags import tag_of
    from karma_electric.release.verify import verify_release

    def check(folder: Path, yanked: dict[str, str]) -> None:
        found = verify_release(folder, signer=signer, unsigned=unsigned, gate=gate, report=say)
        again = _rebuild(folder, base) if rebuild else None
        _show(found, tag_of(folder), yanked, again, json_output=json_output)

    if Path(release).is_dir():
        if output is not None or revision != "main":
            raise InputError("--output and --revision go with ORG/NAME, and this is a folder; leave them out")
        check(Path(release), _yanked_here(Path(release)))
        return
    from karma_electric.release.hub_repo import is_repo_id

    if not is_repo_id(release):
        raise InputError(f"{release}: neither a folder here nor of the form ORG/NAME")
    from karma_electric.release.download import fetch_release

    if output is not None and (output.is_file() or (output.exists() and any(output.iterdir()))):
        raise InputError(f"{output}: not empty; name a new folder to download to")
    with tempfile.TemporaryDirectory(prefix="karma-verify-") as temporary:
        folder = Path(temporary) if output is None else output
        say(f"{release}: fetching {revision}")
        check(folder, fetch_release(release, folder, revision=revision))


def _signer(public_key: Path | None, identity: str | None, issuer: str | None) -> Path | Identity | None:
    if (identity is None) != (issuer is None):
        raise InputError("--identity and --issuer go together: who signed, and who attested that it was them")
    if identity is None or issuer is None:
        return public_key
    if public_key is not None:
        raise InputError(
            "--public-key and --identity: a release is signed with a key, or without one; give one of them"
        )
    from karma_electric.release.signature import Identity

    return Identity(identity, issuer)


def _rebuild(folder: Path, base: Path | None) -> Rebuild:
    from karma_electric.release.rebuild import rebuild_release

    return rebuild_release(folder, base=base, report=say)


def _yanked_here(folder: Path) -> dict[str, str]:
    from karma_electric.release.card import YANKED_NAME
    from karma_electric.release.tags import parse_yanked

    path = folder / YANKED_NAME
    return parse_yanked(path.read_bytes() if path.exists() else None, str(path))


def _show(found: Verification, tag: str, yanked: dict[str, str], again: Rebuild | None, *, json_output: bool) -> None:
    """Print what was found. Raises IntegrityError when something that was made again differs."""
    reason = yanked.get(tag)
    faults = [] if again is None else again.faults
    if json_output:
        value: dict[str, Any] = {"valid": not faults, "tag": tag, "yanked": reason, **dataclasses.asdict(found)}
        print_json(value if again is None else {**value, "rebuild": dataclasses.asdict(again)})
    else:
        if again is not None:
            _show_rebuild(again)
        if not faults:
            _show_verification(found, tag, reason)
    if faults:
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise IntegrityError(f"{faults[0]}{more}: not what the release's own adapters, axis and evidence give")


def _show_verification(found: Verification, tag: str, reason: str | None) -> None:
    print_text("valid" if reason is None else f"valid, yanked: {reason}", style="bold" if reason is None else "yellow")
    size = f"{found.total_bytes / 1e6:.1f} MB"
    print(f"{found.name} {tag}: {found.files} files, {size}, {found.numbers_in_card} numbers in the card")
    print(f"gate: {found.verdict}" + (", judged again from the evidence" if found.judged_again else ""))
    if found.judged_again and not found.report_made_again:
        print(
            "gate.md: not compared: provenance.json names other code as its writer than is here, and that words it "
            "otherwise; it is as the manifest says, but read the numbers in gate.json, which were judged again"
        )
    if found.signed_by is None:
        print("not signed: nobody vouches for these files")
    elif found.signed_by == "public-key.pem":
        print("signed by the key that lies in the release; compare it with the publisher's, or give --public-key")
    else:
        print(f"signed by {found.signed_by}")


def _show_rebuild(again: Rebuild) -> None:
    if again.elsewhere:
        print("made again elsewhere, so that files may differ within tolerances:")
        for line in again.elsewhere:
            print(f"  {line}")
    else:
        print("made again where CPU and versions are those recorded, so every file must be equal:")
    for entry in again.lines:
        print(f"{entry.result:<8} {entry.path}" + (f": {entry.detail}" if entry.detail else ""))
    for path in again.taken:
        print(f"{'taken':<8} {path}")
