"""Model folders from and to the Hugging Face Hub; each push is one commit, each failure one line."""

import hashlib
import mmap
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from os import fspath
from pathlib import Path
from typing import NamedTuple, TypedDict, Unpack

from aimonk_hf import __version__
from aimonk_hf.errors import AimonkError, reason_of
from aimonk_hf.modeling.card_fields import change_card, given_fields, is_repo_id
from aimonk_hf.storage import StrPath, check_no_link_outside, read_json

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
METRICS_FILE = "metrics.json"
CARD_FILE = "README.md"
MODEL_FILES = (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, METRICS_FILE)
PREPROCESSOR_FILE = "preprocessor_config.json"
# This key in config.json and in the header of model.safetensors tells files of two different saves apart.
FINGERPRINT = "weights_sha256"
_DATASET = re.compile(r"hf://datasets/([^/@]*(?:/[^/@]*)?)(?:@([^/]*))?/?(.*)", re.S)
# These files describe one set of weights: a push of other weights removes the Hub's copies.
_OF_THE_WEIGHTS = (METRICS_FILE, PREPROCESSOR_FILE, "onnx/*")


class HubOptions(TypedDict, total=False):
    """Options of huggingface_hub that choose a repository's version, and its copy on this machine."""

    revision: str | None
    token: str | bool | None
    cache_dir: str | Path | None
    local_files_only: bool
    force_download: bool


class PushOptions(TypedDict, total=False):
    """Options of a push; the branch `revision` is created where missing, a public repository refuses `private`.

    `license` and `tags` go into the card of a model, as those of `--license` and `--tags`.
    """

    private: bool | None
    token: str | bool | None
    revision: str | None
    commit_message: str | None
    create_pr: bool
    license: str | None
    tags: list[str] | None


class Pushed(NamedTuple):
    """The page of the commit or pull request, and the repository; an unchanged one got no commit."""

    url: str
    repo_id: str
    changed: bool


def model_folder(
    name: StrPath, files: Sequence[str], subfolder: str | None = None, **options: Unpack[HubOptions]
) -> Path:
    """Return a local model folder, or one with those of `files` that the Hub repository has."""
    if unknown := options.keys() - HubOptions.__annotations__.keys():  # a local folder would take them in silence
        raise TypeError(f"from_pretrained() got an unexpected keyword argument {min(unknown)!r}")
    below = subfolder or ""
    folder = Path(name, below)
    if not Path(name).is_dir():
        folder = download(fspath(name), [f"{below}/{file}".removeprefix("/") for file in files], **options) / below
    if not (folder / CONFIG_FILE).is_file():
        raise AimonkError(f"{name} is not a model: it has no {CONFIG_FILE}")
    return folder


def download(repo_id: str, files: list[str], **options: Unpack[HubOptions]) -> Path:
    """Return a local folder with those of `files` that the repository has, from the cache where there is no network.

    Raises `AimonkError` at once for an unreachable Hub: `snapshot_download`, unlike single downloads, never retries.
    """
    from huggingface_hub import snapshot_download

    with hub_errors(repo_id, f"Cannot fetch {repo_id} from the Hub", options.get("revision")):
        return Path(snapshot_download(repo_id, allow_patterns=files, **options))


def is_public(repo_id: str) -> bool:
    """Return whether everybody may read a model repository; False where the Hub cannot be asked."""
    from huggingface_hub import HfApi

    try:
        with hub_errors(repo_id, "unknown"):
            info = HfApi().model_info(repo_id)
    except AimonkError:
        return False
    return not (info.private or info.gated)


def data_folder(name: StrPath) -> Path:
    """Return a data folder; hf://datasets/user/name[@revision][/folder] is fetched from the Hub."""
    text = fspath(name)
    if not (found := _DATASET.fullmatch(text)):
        return Path(text)
    repo_id, revision, below = found.groups()
    from huggingface_hub import snapshot_download

    with hub_errors(repo_id, f"Cannot fetch {text}", revision or None):
        return Path(snapshot_download(repo_id, repo_type="dataset", revision=revision or None), below)


def dataset_id(name: StrPath) -> str | None:
    """Return the repository of hf://datasets/user/name[@revision][/folder], None for another place."""
    found = _DATASET.fullmatch(fspath(name))
    return found[1] if found and is_repo_id(found[1]) else None


@contextmanager
def hub_errors(repo_id: str, failure: str, revision: str | None = None) -> Iterator[None]:
    """Turn huggingface_hub's errors into an `AimonkError` with the next step; `failure` begins its sentence."""
    from huggingface_hub import errors

    wanted = f"{repo_id} at {revision!r}" if revision else repo_id
    advice: dict[type[Exception], str] = {
        errors.HFValidationError: f"{repo_id!r} is neither a folder nor a Hub repository (user/name)",
        errors.RepositoryNotFoundError: f"There is no folder and no Hub repository {repo_id}; a private or "
        "gated one needs a token (hf auth login)",
        errors.RevisionNotFoundError: f"The Hub repository {repo_id} has no revision {revision!r}",
        errors.LocalEntryNotFoundError: f"There is no folder, and no complete copy of {wanted} in the cache; the Hub "
        "was not reached (offline, HF_HUB_OFFLINE, or local_files_only): go online once",
    }
    answers = {
        401: "it does not accept the token; log in with `hf auth login`, or pass a valid token",
        403: f"the token may not do this with {repo_id}; use one with write access, or another repository",
        412: f"{repo_id} has got another commit meanwhile; try again",
    }
    try:
        yield
    except tuple(advice) as error:
        raise AimonkError(next(text for kind, text in advice.items() if isinstance(error, kind))) from error
    except errors.HfHubHTTPError as error:
        told = answers.get(error.response.status_code, error.server_message or reason_of(error))
        raise AimonkError(f"{failure}: {told}") from error
    except ValueError as error:  # of `create_commit`, where the Hub refuses a card
        if isinstance(error, AimonkError):
            raise
        raise AimonkError(f"{failure}: {' '.join(str(error).split())}") from error
    except (errors.HTTPError, OSError, RuntimeError) as error:  # RuntimeError: an upload of bytes that failed
        told = f"{reason_of(error.__cause__ or error)}; check the connection and try again"
        raise AimonkError(f"{failure}: {told}") from error


def made_from(path: Path, fingerprint: str) -> bool:
    """Return whether an ONNX file names these weights in its metadata; nothing of it is parsed."""
    if not path.stat().st_size:
        return False
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(fingerprint.encode()) >= 0


def push_model_folder(
    folder: Path, repo_id: str, added: dict[str, Path | bytes] | None = None, **options: Unpack[PushOptions]
) -> Pushed:
    """Push the files of a model folder, `added` and no others as one commit; an unchanged folder makes none.

    The commit removes metrics.json, onnx/ and preprocessor_config.json of earlier weights. Raises `AimonkError` for a
    folder without a model, links to files outside it, an export of other weights, and a refusal of the Hub.
    """
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    pushed = (*MODEL_FILES, *_OF_THE_WEIGHTS)
    chosen = [name for name in names if any(fnmatch(name, pattern) for pattern in pushed)]
    files: dict[str, Path | bytes] = {name: folder / name for name in chosen}
    if missing := [name for name in (CONFIG_FILE, WEIGHTS_FILE) if name not in files]:
        raise AimonkError(f"{folder} is not a model folder: it has no {missing[0]}")
    check_no_link_outside(folder, [folder / name for name in files])
    fingerprint = read_json(folder / CONFIG_FILE).get(FINGERPRINT)
    networks = [folder / name for name in files if name.endswith(".onnx")]
    if fingerprint and (others := [path for path in networks if not made_from(path, fingerprint)]):
        raise AimonkError(f"{others[0]} is of other weights: run aimonk-hf export again, or delete onnx/")
    fields = given_fields(options.get("license"), options.get("tags"))
    if CARD_FILE in files or fields:
        card = (folder / CARD_FILE).read_text(encoding="utf-8") if CARD_FILE in files else ""
        card = card.replace("PATH_OR_REPO", repo_id).replace("USER/REPO", repo_id)
        files[CARD_FILE] = change_card(card, fields).encode()
    files |= added or {}
    with open(folder / WEIGHTS_FILE, "rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()

    def stale(remote: dict[str, str]) -> list[str]:
        gone = [path for path in remote if path not in files]
        of_others = [path for path in gone if any(fnmatch(path, pattern) for pattern in _OF_THE_WEIGHTS)]
        library = [path for path in gone if added and path.startswith("aimonk_hf/")]  # modules that are no more
        return library + ([] if remote.get(WEIGHTS_FILE) == weights else of_others)

    return push_files(files, repo_id, "model", stale, **options)


def create_repository(
    repo_id: str, private: bool | None = None, token: str | bool | None = None, repo_type: str = "model"
) -> str:
    """Create a missing repository and return its full name; refuse a public one where `private` is asked for."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    sdk = "gradio" if repo_type == "space" else None
    with hub_errors(repo_id, f"Cannot push to {repo_id} on the Hub"):
        repo = api.create_repo(repo_id, private=private, exist_ok=True, repo_type=repo_type, space_sdk=sdk).repo_id
        if private and not api.repo_info(repo, repo_type=repo_type).private:
            raise AimonkError(f"{repo} exists and is public: make it private in its settings, or push without private")
    return repo


def push_files(
    files: dict[str, Path | bytes],
    repo_id: str,
    repo_type: str,
    stale: Callable[[dict[str, str]], list[str]],
    **options: Unpack[PushOptions],
) -> Pushed:
    """Add `files` (path there -> file or content) to a repository, which is created where missing, in one commit.

    `stale` returns the paths to remove, given the repository's files with their hashes (sha256 of large files, git's
    blob id of others). Another push meanwhile is an error, never a mixture.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.hf_api import RepoFile

    revision, create_pr = options.get("revision"), options.get("create_pr", False)
    if create_pr and revision not in (None, "main"):
        raise AimonkError(f"A pull request goes against the main branch: leave out the revision {revision!r}")
    api = HfApi(token=options.get("token"), library_name="aimonk_hf", library_version=__version__)
    repo_id = create_repository(repo_id, options.get("private"), options.get("token"), repo_type)
    with hub_errors(repo_id, f"Cannot push to {repo_id} on the Hub", revision):
        if revision and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
        head = api.repo_info(repo_id, repo_type=repo_type, revision=revision).sha
        remote = {
            entry.path: (entry.lfs.sha256 if entry.lfs else entry.blob_id)
            for entry in api.list_repo_tree(repo_id, recursive=True, revision=head, repo_type=repo_type)
            if isinstance(entry, RepoFile)
        }
        # create_commit, because upload_folder may cut a large folder into several commits
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(path_in_repo=path, path_or_fileobj=content) for path, content in files.items()),
                *(CommitOperationDelete(path_in_repo=path, is_folder=False) for path in stale(remote)),
            ],
            repo_type=repo_type,
            commit_message=options.get("commit_message") or f"Upload {repo_type}",
            revision=revision,
            create_pr=create_pr,
            parent_commit=head,
        )
    return Pushed(commit.pr_url or str(commit.commit_url), repo_id, commit.oid != head)
