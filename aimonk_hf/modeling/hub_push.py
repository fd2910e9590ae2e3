"""Model folders to the Hugging Face Hub, each push one commit."""

from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from aimonk_hf import __version__
from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.hub import hub_errors
from aimonk_hf.modeling.weights import CARD_FILE, CONFIG_FILE, FINGERPRINT, METRICS_FILE, MODEL_FILES, WEIGHTS_FILE
from aimonk_hf.storage import check_no_link_outside, read_json

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PREPROCESSOR_FILE = "preprocessor_config.json"
ONNX_FILES = "onnx/*"
PUSHED_FILES = (*MODEL_FILES, PREPROCESSOR_FILE, ONNX_FILES)

# What is true of one set of weights only: where a push brings other weights, the Hub's copies of these go.
_OF_THE_WEIGHTS = (METRICS_FILE, PREPROCESSOR_FILE, ONNX_FILES)


class Pushed(NamedTuple):
    """The page of the commit or pull request, the repository, and whether anything had changed (otherwise no commit was made)."""

    url: str
    repo_id: str
    changed: bool


def push_model_folder(
    folder: Path,
    repo_id: str,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> Pushed:
    """Push a model folder's files, and no other file that lies there, as one commit; an unchanged folder makes none.

    metrics.json, onnx/ and preprocessor_config.json of earlier weights are removed from the repository by the same commit. Raises
    `AimonkError` for a folder that is no model, links to files outside it, an export of other weights, and whatever the Hub refuses.
    """
    files: dict[str, Path | bytes] = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and any(fnmatch(path.relative_to(folder).as_posix(), pattern) for pattern in PUSHED_FILES)
    }
    if missing := [name for name in (CONFIG_FILE, WEIGHTS_FILE) if name not in files]:
        raise AimonkError(f"{folder} is no model folder: it has no {missing[0]}")
    check_no_link_outside(folder, [folder / name for name in files])
    _check_export(folder)
    if CARD_FILE in files:
        card = (folder / CARD_FILE).read_text(encoding="utf-8")
        files[CARD_FILE] = card.replace("PATH_OR_REPO", repo_id).replace("USER/REPO", repo_id).encode()

    def stale(remote: dict[str, str]) -> list[str]:
        if remote.get(WEIGHTS_FILE) == _sha256(folder / WEIGHTS_FILE):
            return []
        return [
            path for path in remote if path not in files and any(fnmatch(path, pattern) for pattern in _OF_THE_WEIGHTS)
        ]

    return push_files(
        files, repo_id, "model", stale, private, token, revision, commit_message or "Upload model", create_pr
    )


def create_repository(
    repo_id: str,
    private: bool | None = None,
    api: "HfApi | None" = None,
    repo_type: str = "model",
    space_sdk: str | None = None,
) -> str:
    """Create the repository where it does not exist and return its full name; a public one is refused where a private one is asked for."""
    from huggingface_hub import HfApi

    api = api or HfApi()
    with hub_errors(repo_id, f"cannot push to {repo_id} on the Hub"):
        repo_id = api.create_repo(
            repo_id, private=private, exist_ok=True, repo_type=repo_type, space_sdk=space_sdk
        ).repo_id
        if private and not api.repo_info(repo_id, repo_type=repo_type).private:
            raise AimonkError(
                f"{repo_id} exists and is public: make it private in its settings, or push without private"
            )
    return repo_id


def push_files(
    files: dict[str, Path | bytes],
    repo_id: str,
    repo_type: str,
    stale: Callable[[dict[str, str]], list[str]],
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload",
    create_pr: bool = False,
) -> Pushed:
    """Create the repository (and the branch `revision`) where it does not exist, and add `files` (path there -> file or content) to it.

    `stale` names what the commit removes, given the repository's files with their hashes (sha256 of large files, git's blob id of others).
    Everything is one commit on top of the state that was looked at: another push meanwhile is an error, never a mixture.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.hf_api import RepoFile

    if create_pr and revision not in (None, "main"):
        raise AimonkError(
            f"a pull request goes against the main branch: leave out the revision {revision!r}, or create_pr"
        )
    api = HfApi(token=token, library_name="aimonk_hf", library_version=__version__)
    repo_id = create_repository(repo_id, private, api, repo_type, "gradio" if repo_type == "space" else None)
    with hub_errors(repo_id, f"cannot push to {repo_id} on the Hub", revision):
        head = _head(api, repo_id, repo_type, revision)
        remote = {
            entry.path: (entry.lfs.sha256 if entry.lfs else entry.blob_id)
            for entry in api.list_repo_tree(repo_id, recursive=True, revision=head, repo_type=repo_type)
            if isinstance(entry, RepoFile)
        }
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path_in_repo=path, path_or_fileobj=content) for path, content in files.items()
        ]
        operations += [CommitOperationDelete(path_in_repo=path, is_folder=False) for path in stale(remote)]
        # create_commit, because upload_folder may cut a large folder into several commits
        commit = api.create_commit(
            repo_id,
            operations,
            repo_type=repo_type,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=head,
        )
    return Pushed(commit.pr_url or str(commit.commit_url), repo_id, commit.oid != head)


def _head(api: "HfApi", repo_id: str, repo_type: str, revision: str | None) -> str:
    """Return the newest commit of the branch, which is made from the main branch where it does not exist."""
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        head = api.repo_info(repo_id, repo_type=repo_type, revision=revision or "main").sha
    except RevisionNotFoundError:
        if revision is None or revision.startswith("refs/"):
            raise
        api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
        head = api.repo_info(repo_id, repo_type=repo_type, revision=revision).sha
    return str(head)


def _check_export(folder: Path) -> None:
    """Refuse an ONNX export that was made of other weights than those beside it."""
    path = folder / PREPROCESSOR_FILE
    exported = read_json(path).get(FINGERPRINT) if path.is_file() else None
    if exported and exported != read_json(folder / CONFIG_FILE).get(FINGERPRINT):
        raise AimonkError(
            f"onnx/ in {folder} was exported from other weights: run aimonk-hf export again, or delete onnx/ and {path.name}"
        )


def _sha256(path: Path) -> str:
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
