"""A base model out of the Hugging Face hub, at one commit."""

from __future__ import annotations

import fnmatch
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from karma_electric.base_model.params import HubBase
from karma_electric.errors import InputError, KarmaError, SetupError

TIMEOUT_SECONDS = 30

# No pattern matches a file in a sub-folder, a pickle, or code.
PATTERNS = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-[0-9]*-of-[0-9]*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def link_snapshot(params: HubBase, folder: Path) -> None:
    """Bring the repo's files into the hub's own cache, and links to them into `folder`.

    A snapshot that is in the cache already needs no network. Raises SetupError or InputError, of one line, for a gated
    or missing repo, an unknown revision, and a hub that cannot be reached. Never asks for a token.
    """
    bars_were_off = are_progress_bars_disabled()
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        snapshot = _snapshot(params)
    except Exception as error:  # the client's errors share no class of their own
        raise explain(error, params) from error
    finally:
        if not bars_were_off:
            enable_progress_bars()
    for file in sorted(snapshot.iterdir()):
        if any(fnmatch.fnmatchcase(file.name, pattern) for pattern in PATTERNS):
            (folder / file.name).symlink_to(file.resolve(strict=True))


def _snapshot(params: HubBase) -> Path:
    wanted: dict[str, Any] = {"revision": params.revision, "allow_patterns": list(PATTERNS)}
    try:
        return Path(snapshot_download(params.repo, local_files_only=True, **wanted))
    except LocalEntryNotFoundError:  # or incomplete
        # Says at once what the download would say after half a minute of retries.
        HfApi().model_info(params.repo, revision=params.revision, timeout=TIMEOUT_SECONDS)
        return Path(snapshot_download(params.repo, **wanted))


def explain(error: Exception, params: HubBase) -> KarmaError:
    """The one line for an error of the hub's client."""
    page = f"https://huggingface.co/{params.repo}"
    if isinstance(error, GatedRepoError):
        return SetupError(
            f"base.repo: {params.repo} is gated; accept its licence at {page}, then set HF_TOKEN to a token of the "
            "account that did"
        )
    if isinstance(error, RevisionNotFoundError):
        return InputError(
            f"base.revision: {params.repo} has no commit {params.revision}; take one from {page}/commits/main"
        )
    if isinstance(error, RepositoryNotFoundError):
        return InputError(
            f"base.repo: {params.repo} does not exist, or is private or gated; compare {page}, accept its licence "
            "there if it has one, and set HF_TOKEN to a token that may read it"
        )
    reason = " ".join(str(error).split())[:200]
    return SetupError(
        f"base.repo: {params.repo} cannot be downloaded from {constants.ENDPOINT} ({type(error).__name__}: {reason}); "
        f"check the network, and that {page} can be read with your HF_TOKEN if the model is gated"
    )
