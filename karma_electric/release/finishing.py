"""The last bytes of a release that is about to be published: the card, the manifest over all of it, the signature."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from karma_electric.integrity import MANIFEST_NAME, write_bytes, write_text
from karma_electric.release.card import CARD_NAME, render_card
from karma_electric.release.manifest import (
    Artifact,
    describe_artifact,
    manifest_with,
    read_release_manifest,
    release_manifest,
    write_release_manifest,
)
from karma_electric.release.signature import PUBLIC_KEY_NAME, SIGNATURE_NAME, public_key_of, sign_release

PUBLISH_STAGE = "publish"  # the `stage` of what publishing adds


def finish_release(folder: Path, *, private_key: Path | None) -> None:
    """Make a staged folder final: the card that provenance.json and yanked.json ask for, the manifest, the signature.

    Every file keeps the stage that its manifest named. Without a key, a signature that is there is removed: it would
    be about other files.
    """
    (folder / SIGNATURE_NAME).unlink(missing_ok=True)
    (folder / PUBLIC_KEY_NAME).unlink(missing_ok=True)
    if private_key is not None:
        write_bytes(folder / PUBLIC_KEY_NAME, public_key_of(private_key))
    manifest = _described(folder)
    write_text(folder / CARD_NAME, render_card(folder, manifest).text)
    card = describe_artifact(folder / CARD_NAME, path=CARD_NAME, stage="release")
    write_release_manifest(folder, manifest_with(manifest, [card]))
    if private_key is not None:
        sign_release(folder, private_key=private_key)


def _described(folder: Path) -> dict[str, Any]:
    manifest = read_release_manifest(folder)
    known = {entry["path"]: Artifact(**entry) for entry in manifest["files"]}
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    def describe(path: str) -> Artifact:
        return describe_artifact(folder / path, path=path, stage=known[path].stage if path in known else PUBLISH_STAGE)

    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        described = list(pool.map(describe, (path for path in paths if path != MANIFEST_NAME)))
    return release_manifest(manifest["identity"], described)
