"""A published release, brought from the hub into a folder, and what its repo says of withdrawn versions."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from karma_electric.errors import InputError, KarmaError, SetupError
from karma_electric.release.card import YANKED_NAME
from karma_electric.release.hub_repo import quiet_client
from karma_electric.release.tags import parse_yanked


def fetch_release(repo_id: str, folder: Path, *, revision: str = "main") -> dict[str, str]:
    """Bring a commit's files into `folder`. Returns tag -> reason of what the repo's main says is withdrawn.

    The list is not signed when `revision` is a tag: it is a warning, and no proof. Raises InputError for a repo or
    revision that is not there, SetupError when the hub refuses or cannot be reached.
    """
    with quiet_client():
        try:
            snapshot_download(repo_id, revision=revision, local_dir=folder, max_workers=4)
            if not HfApi().file_exists(repo_id, YANKED_NAME, revision="main"):
                return {}
            listed = Path(hf_hub_download(repo_id, YANKED_NAME)).read_bytes()
            return parse_yanked(listed, f"{repo_id}: {YANKED_NAME}")
        except RevisionNotFoundError:
            raise InputError(f"{repo_id}: has no revision {revision!r}; give one of its tags") from None
        except RepositoryNotFoundError:
            raise InputError(f"{repo_id}: no such repo, or a private one that your token may not read") from None
        except KarmaError:
            raise
        except Exception as error:  # the client's errors share no class of their own; their text may hold an address
            raise SetupError(
                f"{repo_id}: cannot be fetched ({type(error).__name__}); is the hub reachable, and the disk not full?"
            ) from None
