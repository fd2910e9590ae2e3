"""Folders from the Hugging Face Hub."""

from pathlib import Path

from aimonk_hf.errors import AimonkError


def download(
    repo_id: str,
    files: list[str],
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return a local folder with those of `files` that the repository has, all of one commit; cached copies serve without a network.

    Raises `AimonkError` within moments where the Hub cannot be reached: `snapshot_download` asks once, where single-file downloads retry.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        folder = snapshot_download(
            repo_id, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only, allow_patterns=files
        )
    except HFValidationError as error:
        raise AimonkError(f"{repo_id!r} is neither a folder nor a Hub repository (user/name)") from error
    except GatedRepoError as error:
        raise AimonkError(f"{repo_id} is gated: ask for access on its page and pass a token (hf auth login)") from error
    except RepositoryNotFoundError as error:
        raise AimonkError(f"there is no folder and no Hub repository {repo_id}; a private one needs a token (hf auth login)") from error
    except RevisionNotFoundError as error:
        raise AimonkError(f"the Hub repository {repo_id} has no revision {revision!r}") from error
    except LocalEntryNotFoundError as error:
        raise AimonkError(f"there is no folder {repo_id}, the Hub cannot be reached, and the cache has no copy") from error
    except (HfHubHTTPError, OSError) as error:
        raise AimonkError(f"cannot fetch {repo_id} from the Hub: {str(error).splitlines()[0]}") from error
    return Path(folder)
