"""The last bytes of a release that is about to be published: the card, the manifest over all of it, the signature."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from karma_electric.integrity import MANIFEST_NAME, sha256_file, write_bytes, write_text
from karma_electric.release.card import CARD_NAME, model_card
from karma_electric.release.digests import paths_below, sha256_files
from karma_electric.release.manifest import (
    Artifact,
    describe_artifact,
    manifest_with,
    read_release_manifest,
    release_manifest,
    write_release_manifest,
)
from karma_electric.release.signature import PUBLIC_KEY_NAME, Signer, public_key_of, sign_release
from karma_electric.release.signature_file import SIGNATURE_NAME

PUBLISH_STAGE = "publish"  # the `stage` of what publishing adds
CardText = Callable[[Path, dict[str, Any]], str]  # (folder, manifest) -> README.md


def finish_release(folder: Path, *, private_key: Signer | None, card: CardText = model_card) -> None:
    """Make a staged folder final: the card that provenance.json and yanked.json ask for, the manifest, the signature.

    Every file keeps the stage that its manifest named. Without a key, a signature that is there is removed: it would
    be about other files. Each file is hashed once.
    """
    (folder / SIGNATURE_NAME).unlink(missing_ok=True)
    (folder / PUBLIC_KEY_NAME).unlink(missing_ok=True)
    if isinstance(private_key, Path):
        write_bytes(folder / PUBLIC_KEY_NAME, public_key_of(private_key))
    manifest = read_release_manifest(folder)
    stages = {entry["path"]: entry["stage"] for entry in manifest["files"]}
    digests = sha256_files(folder, [path for path in paths_below(folder) if path not in (MANIFEST_NAME, CARD_NAME)])
    artifacts = [
        Artifact(path, (folder / path).stat().st_size, digest, stages.get(path, PUBLISH_STAGE))
        for path, digest in digests.items()
    ]
    digests |= write_card_and_manifest(folder, artifacts, card=card)
    if private_key is not None:
        sign_release(folder, signer=private_key, digests=digests)


def write_card_and_manifest(
    folder: Path, artifacts: Iterable[Artifact], *, card: CardText = model_card
) -> dict[str, str]:
    """Let card and manifest of `folder` be about `artifacts`: all files but these two. The SHA-256 of these two."""
    manifest = release_manifest(read_release_manifest(folder)["identity"], artifacts)
    write_text(folder / CARD_NAME, card(folder, manifest))
    described = describe_artifact(folder / CARD_NAME, path=CARD_NAME, stage="release")
    write_release_manifest(folder, manifest_with(manifest, [described]))
    return {CARD_NAME: described.sha256, MANIFEST_NAME: sha256_file(folder / MANIFEST_NAME)}
