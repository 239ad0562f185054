"""The stage `base`: one form for every base model. A folder of safetensors, tokenizer and configs, with a manifest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from karma_electric.base_model.contents import describe_model, remove_machine_traces
from karma_electric.base_model.params import FolderBase, HubBase, PackagedBase
from karma_electric.integrity import atomic_directory, write_manifest


def make_base(
    params: PackagedBase | HubBase | FolderBase, output: Path, report: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Write the base model that `params` pins into the folder `output`, and return its manifest.

    The manifest's identity is source, repo, revision or sha256, license, architecture, hidden_size, n_layers and
    vocab_size. A hub model is links into the hub's cache; the others are files, equal in every build.

    Raises SetupError (a package, the network or a licence is missing), IntegrityError (other bytes than pinned) or
    InputError (no such repo or folder, or a model that the pipeline cannot use).
    """
    say = report or (lambda _: None)
    if isinstance(params, FolderBase):
        from karma_electric.base_model.folder import refuse_overlap

        refuse_overlap(params, output)
    with atomic_directory(output) as folder:
        pin = _fill(params, folder, say)
        identity = {"source": params.source, "repo": params.repo, **pin, "license": params.license}
        manifest = write_manifest(folder, identity | describe_model(folder))
    say(f"base: {params.repo}, {len(manifest['files'])} files, {sum(f['size'] for f in manifest['files']):,} bytes")
    return manifest


def _fill(params: PackagedBase | HubBase | FolderBase, folder: Path, say: Callable[[str], None]) -> dict[str, str]:
    """Put the model's files into `folder`; the result is what pins them."""
    if isinstance(params, PackagedBase):
        from karma_electric.base_model.packaged import convert_packaged

        say(f"base: converting {params.file} of the package {params.package}")
        convert_packaged(params, folder)
        return {"sha256": params.sha256}
    if isinstance(params, HubBase):
        from karma_electric.base_model.hub import link_snapshot

        say(f"base: fetching {params.repo} at {params.revision[:12]}")
        link_snapshot(params, folder)
        return {"revision": params.revision}
    from karma_electric.base_model.folder import copy_folder

    say(f"base: copying {params.path}")
    copy_folder(params, folder)
    remove_machine_traces(folder, Path(params.path).resolve(), folder)
    return {"sha256": params.sha256}
