"""A published release, brought from the hub into a folder, and what its repo says of withdrawn versions."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from karma_electric.canonical import read_json_object
from karma_electric.errors import InputError, SetupError
from karma_electric.release.card import YANKED_NAME

_REPO_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def is_repo_id(text: str) -> bool:
    """Whether `text` has the form ORG/NAME."""
    return _REPO_ID.fullmatch(text) is not None


def fetch_release(repo_id: str, folder: Path, *, revision: str = "main") -> dict[str, str]:
    """Bring a commit's files into `folder`. Returns version -> reason of what the repo's main says is withdrawn.

    The list is not signed when `revision` is a tag: it is a warning, and no proof. Raises InputError for a repo or
    revision that is not there, SetupError when the hub refuses or cannot be reached.
    """
    bars_were_off = are_progress_bars_disabled()
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        snapshot_download(repo_id, revision=revision, local_dir=folder, max_workers=4)
        if not HfApi().file_exists(repo_id, YANKED_NAME, revision="main"):
            return {}
        yanked = read_json_object(Path(hf_hub_download(repo_id, YANKED_NAME)))
        return {version: str(reason) for version, reason in yanked.items()}
    except RevisionNotFoundError:
        raise InputError(f"{repo_id}: has no revision {revision!r}; give one of its tags") from None
    except RepositoryNotFoundError:
        raise InputError(f"{repo_id}: no such repo, or a private one that your token may not read") from None
    except InputError:
        raise
    except Exception as error:  # the client's errors share no class of their own; their text may hold an address only
        raise SetupError(
            f"{repo_id}: cannot be fetched ({type(error).__name__}); is the hub reachable, and the disk not full?"
        ) from None
    finally:
        if not bars_were_off:
            enable_progress_bars()
