"""Folders from the Hugging Face Hub, and the Hub's failures as one line each."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aimonk_hf.errors import AimonkError, reason_of


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

    with hub_errors(repo_id, f"cannot fetch {repo_id} from the Hub", revision, local_files_only):
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=files,
            )
        )


@contextmanager
def hub_errors(
    repo_id: str, failure: str, revision: str | None = None, local_files_only: bool = False
) -> Iterator[None]:
    """Turn huggingface_hub's failures inside the block into an `AimonkError` that says what to do; `failure` says what did not succeed."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except HFValidationError as error:
        raise AimonkError(f"{repo_id!r} is neither a folder nor a Hub repository (user/name)") from error
    except GatedRepoError as error:
        raise AimonkError(f"{repo_id} is gated: ask for access on its page and pass a token (hf auth login)") from error
    except RepositoryNotFoundError as error:
        raise AimonkError(
            f"there is no folder and no Hub repository {repo_id}; a private one needs a token (hf auth login)"
        ) from error
    except RevisionNotFoundError as error:
        raise AimonkError(f"the Hub repository {repo_id} has no revision {revision!r}") from error
    except LocalEntryNotFoundError as error:
        raise AimonkError(_not_cached(repo_id, revision, local_files_only)) from error
    except HfHubHTTPError as error:
        raise AimonkError(_answer(error.response.status_code, repo_id, failure, error)) from error
    except LocalTokenNotFoundError as error:
        raise AimonkError(f"{failure}: no token is stored here; log in with `hf auth login`, or pass one") from error
    except OfflineModeIsEnabled as error:
        raise AimonkError(f"{failure}: offline mode is on; unset HF_HUB_OFFLINE") from error
    except RuntimeError as error:  # the client's name for a transfer of bytes that failed
        raise AimonkError(
            f"{failure}: {reason_of(error)} ({reason_of(error.__cause__ or error)}); try again"
        ) from error
    except (HTTPError, OSError) as error:
        raise AimonkError(f"{failure}: {reason_of(error)}; check the connection and try again") from error


def _not_cached(repo_id: str, revision: str | None, local_files_only: bool) -> str:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    wanted = f"{repo_id} at {revision!r}" if revision else repo_id
    if local_files_only:
        return f"there is no folder {repo_id}, and the cache has no complete copy of {wanted}; load it once without local_files_only"
    why = "HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else "the Hub cannot be reached"
    return f"there is no folder {repo_id}, {why}, and the cache has no complete copy of {wanted}; go online once, or name a folder"


def _answer(status: int, repo_id: str, failure: str, error: Exception) -> str:
    if status == 401:
        return f"{failure}: it does not accept the token; log in with `hf auth login`, or pass a valid token"
    if status == 403:
        return f"{failure}: the token may not do this with {repo_id}; use one with write access, or another repository"
    if status == 412:
        return f"{failure}: {repo_id} has got another commit meanwhile; try again"
    return f"{failure}: {reason_of(error)}"
