"""`karma publish`: a release, as one commit and a tag, in a repo of the hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from karma_electric.errors import InputError

if TYPE_CHECKING:
    from karma_electric.release.staging import Release

GRAPH, RECIPE, RELEASE = Path("dvc.yaml"), Path("params.yaml"), Path("models/release")
MAX_REASON_CHARACTERS = 300


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("publish")(publish)


def publish(
    repo: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="By default your own account, and the release's name.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, list the files, and send nothing.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make the repo private, if it is not there yet.")] = False,
    candidate: Annotated[
        bool, typer.Option("--candidate", help="Publish against the gate's verdict, as VERSION-candidate.")
    ] = False,
    reason: Annotated[str | None, typer.Option(help="Why a candidate is published, or a version yanked.")] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The EC key that signs, PEM; without one it is not signed.")
    ] = None,
    yank: Annotated[str | None, typer.Option(metavar="VERSION", help="Withdraw a published version.")] = None,
) -> None:
    """Publish what `dvc repro` built: one commit and a tag in a model repo of the hub. Repeated, it has nothing to do.

    The token is HF_TOKEN, or the one that `hf auth login` stored. Exit code 3: the gate failed; 4: it is inconclusive;
    6: the files are not those of the manifest.

    Example: karma publish --repo org/name --dry-run
    """
    _check_options(candidate=candidate, reason=reason, yank=yank, dry_run=dry_run, private=private)
    text = _reason(reason)
    if yank is not None:
        _yank(repo, yank, text, key)
        return
    from karma_electric.parameters import read_yaml
    from karma_electric.release.readiness import check_gate, check_verdict, read_provenance
    from karma_electric.release.staging import read_release

    for path in (GRAPH, RECIPE):
        if not path.is_file():
            raise InputError(f"{path}: missing here; publish from the folder that built the release")
    from karma_electric.graph import read_stages

    release = read_release(RELEASE, read_stages(GRAPH, read_yaml(RECIPE)), report=_say)
    verdict = check_gate(release)
    if not candidate:
        check_verdict(verdict)
    elif verdict == "pass":
        raise InputError("--candidate: the gate's verdict is pass; publish the release without it")
    override = {"verdict": verdict, "reason": text} if candidate else None
    provenance = read_provenance(Path.cwd(), release, override=override)
    tag = f"{release.version}-candidate" if candidate else release.version
    if dry_run:
        _list(release, repo, tag)
        return
    _publish(release, repo, tag, provenance, private=private, key=key)


def _publish(
    release: Release,
    repo: str | None,
    tag: str,
    provenance: dict[str, object],
    *,
    private: bool,
    key: Path | None,
) -> None:
    from karma_electric.release.hub_repo import HubRepo, own_account, require_token
    from karma_electric.release.publish import publish_release
    from karma_electric.working_store import working_store

    require_token()
    if key is None:
        _say("no --key, so the release is not signed")
    done = publish_release(
        release,
        HubRepo(repo or f"{own_account()}/{release.name}"),
        tag=tag,
        provenance=provenance,
        private=private,
        store=working_store("publish"),
        key=key,
        report=_say,
    )
    print(f"{done.repo} {done.tag} {done.commit}")


def _yank(repo: str | None, version: str, reason: str, key: Path | None) -> None:
    from karma_electric.release.hub_repo import HubRepo, require_token
    from karma_electric.release.publish import yank_version

    if repo is None:
        raise InputError("--yank: say which repo: --repo ORG/NAME")
    require_token()
    done = yank_version(HubRepo(repo), version, reason=reason, key=key, report=_say)
    print(f"{done.repo} {done.tag} {done.commit}")


def _check_options(*, candidate: bool, reason: str | None, yank: str | None, dry_run: bool, private: bool) -> None:
    if yank is not None and (candidate or dry_run or private):
        raise InputError("--yank goes with --repo and --reason only; leave out the other options")
    if (candidate or yank is not None) and reason is None:
        raise InputError("--reason is missing; say why, in a line that everybody will read")
    if reason is not None and not candidate and yank is None:
        raise InputError("--reason goes with --candidate or --yank; leave it out")


def _reason(reason: str | None) -> str:
    text = " ".join((reason or "").split())
    if reason is not None and not 0 < len(text) <= MAX_REASON_CHARACTERS:
        raise InputError(f"--reason: {len(text)} characters, expected 1 to {MAX_REASON_CHARACTERS}")
    return text


def _list(release: Release, repo: str | None, tag: str) -> None:
    from karma_electric.cli.output import print_table

    rows = [[path, artifact.size, artifact.sha256] for path, (artifact, _) in release.files.items()]
    print_table(["file", "bytes", "sha256"], rows)
    size = sum(artifact.size for artifact, _ in release.files.values())
    _say(f"{len(rows)} files, {size / 1e6:.1f} MB, would be {tag} of {repo or release.name}; nothing was sent")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
