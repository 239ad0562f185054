"""`karma publish`: a release, or its training sets, as one commit and a tag in a repo of the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from karma_electric.cli.output import print_table, say
from karma_electric.cli.paths import GRAPH, LICENSE, RECIPE, RELEASE
from karma_electric.errors import InputError

if TYPE_CHECKING:
    from karma_electric.release.signature import Signer
    from karma_electric.release.staging import Publication

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
    dataset: Annotated[
        bool, typer.Option("--dataset", help="Publish the training sets instead, each as the dataset NAME-SET.")
    ] = False,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The EC key that signs, PEM; without one it is not signed.")
    ] = None,
    keyless: Annotated[
        bool, typer.Option("--keyless", help="Sign by sigstore, as whom SIGSTORE_ID_TOKEN or a login names.")
    ] = False,
    yank: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Withdraw what was published under this tag.")
    ] = None,
) -> None:
    """Publish what `dvc repro` built: one commit and a tag in a model repo of the hub. Repeated, it has nothing to do.

    The token is HF_TOKEN, or the one that `hf auth login` stored. Exit code 3: the gate failed; 4: it is inconclusive;
    6: the files are not those of the manifest.

    Example: karma publish --repo org/name --dry-run
    """
    _check_options(candidate=candidate, reason=reason, yank=yank, only_publishing=dry_run or private or dataset)
    text = _reason(reason)
    signer = _signer(key, keyless=keyless)
    if yank is not None:
        _yank(repo, yank, text, signer)
        return
    from karma_electric.parameters import read_yaml
    from karma_electric.release.readiness import check_gate, check_verdict, read_provenance
    from karma_electric.release.staging import read_release
    from karma_electric.release.tags import release_tag

    for path in (GRAPH, RECIPE):
        if not path.is_file():
            raise InputError(f"{path}: missing here; publish from the folder that built the release")
    from karma_electric.graph import read_stages

    stages = read_stages(GRAPH, read_yaml(RECIPE))
    release = read_release(RELEASE, stages, report=say)
    verdict = check_gate(release)
    if not candidate:
        check_verdict(verdict)
    elif verdict == "pass":
        raise InputError("--candidate: the gate's verdict is pass; publish the release without it")
    override = {"verdict": verdict, "reason": text} if candidate else None
    provenance = read_provenance(Path.cwd(), release, override=override)
    tag = release_tag(release.version, candidate=candidate)
    publications: dict[str, Publication] = {"": release}  # what follows the repo's name -> what it is to hold
    if dataset:
        from karma_electric.release.training_set import training_sets

        found = training_sets(release, stages, license_text=LICENSE)
        publications = {f"-{each.identity['set']}": each for each in found}
    if dry_run:
        for suffix, publication in publications.items():
            _list(publication, f"{repo or release.name}{suffix}", tag)
        return
    _publish(
        publications,
        repo,
        release.name,
        kind="dataset" if dataset else "model",
        tag=tag,
        provenance=provenance,
        private=private,
        key=signer,
    )


def _publish(
    publications: dict[str, Publication],
    repo: str | None,
    name: str,
    *,
    kind: str,
    tag: str,
    provenance: dict[str, object],
    private: bool,
    key: Signer | None,
) -> None:
    from karma_electric.release.hub_repo import HubRepo, own_account, require_token
    from karma_electric.release.publish import publish_release
    from karma_electric.working_store import working_store

    require_token()
    if key is None:
        say("neither --key nor --keyless, so what is published is not signed")
    repo = repo or f"{own_account()}/{name}"
    for suffix, publication in publications.items():
        done = publish_release(
            publication,
            HubRepo(f"{repo}{suffix}", kind=kind),
            tag=tag,
            provenance=provenance,
            private=private,
            store=working_store("publish"),
            key=key,
            report=say,
        )
        print(f"{done.repo} {done.tag} {done.commit}")


def _signer(key: Path | None, *, keyless: bool) -> Signer | None:
    if not keyless:
        return key
    if key is not None:
        raise InputError("--key and --keyless: a release is signed with a key, or without one; leave out one of them")
    from karma_electric.release.signature import Keyless

    return Keyless()


def _yank(repo: str | None, version: str, reason: str, key: Signer | None) -> None:
    from karma_electric.release.hub_repo import HubRepo, require_token
    from karma_electric.release.publish import yank_version

    if repo is None:
        raise InputError("--yank: say which repo: --repo ORG/NAME")
    require_token()
    done = yank_version(HubRepo(repo), version, reason=reason, key=key, report=say)
    print(f"{done.repo} {done.tag} {done.commit}")


def _check_options(*, candidate: bool, reason: str | None, yank: str | None, only_publishing: bool) -> None:
    if yank is not None and (candidate or only_publishing):
        raise InputError("--yank goes with --repo, --reason and a key only; leave out the other options")
    if (candidate or yank is not None) and reason is None:
        raise InputError("--reason is missing; say why, in a line that everybody will read")
    if reason is not None and not candidate and yank is None:
        raise InputError("--reason goes with --candidate or --yank; leave it out")


def _reason(reason: str | None) -> str:
    text = " ".join((reason or "").split())
    if reason is not None and not 0 < len(text) <= MAX_REASON_CHARACTERS:
        raise InputError(f"--reason: {len(text)} characters, expected 1 to {MAX_REASON_CHARACTERS}")
    return text


def _list(publication: Publication, repo: str, tag: str) -> None:
    rows = [[path, artifact.size, artifact.sha256] for path, (artifact, _) in publication.files.items()]
    print_table(["file", "bytes", "sha256"], rows)
    size = sum(artifact.size for artifact, _ in publication.files.values())
    say(f"{len(rows)} files, {size / 1e6:.1f} MB, would be {tag} of {repo}; nothing was sent")
