"""Check, read and change the Hub's fields at the head of a model card: license, base model, datasets, tags."""

import logging
import re
from pathlib import Path
from typing import Any

import yaml

from aimonk_hf.errors import AimonkError, near_names, reason_of
from aimonk_hf.storage import is_text

_logger = logging.getLogger(__name__)

# of hub-docs, docs/hub/repositories-licenses.md
_LICENSES = Path(__file__).with_name("licenses.txt").read_text(encoding="utf-8").split()
# `render_card` writes these itself.
_RENDERED = ("library_name", "pipeline_tag", "metrics", "model-index")
_MOST_CHARACTERS = 100_000  # of a card, which may come from anywhere
_UNREADABLE = (OSError, yaml.YAMLError, ValueError, TypeError, RecursionError)


def given_fields(license: str | None, tags: list[str] | None) -> dict[str, Any]:
    """Return the fields of --license and --tags; a license is an id of the Hub, other:NAME or other:NAME:ADDRESS.

    Raises `AimonkError` for what the Hub would refuse.
    """
    fields: dict[str, Any] = {}
    if license is not None:
        known, name, link = (license.split(":", 2) + ["", ""])[:3]
        if known not in _LICENSES or (name and known != "other"):
            near = near_names(known.lower(), _LICENSES)
            raise AimonkError(f"--license {license} is not a license of the Hub{near}; another one is other:NAME")
        if known == "other" and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", name):
            wanted = "a name of small letters, digits, points and dashes, and its address if it has one"
            raise AimonkError(f"--license other needs {wanted}: other:my-license-1.0:https://example.org/license")
        if link and not re.fullmatch(r"https?://[!-~]+", link):
            raise AimonkError(f"--license {license}: its address must begin with https://")
        own = {"license_name": name or None, "license_link": link or None}
        fields = {"license": known} | own  # None takes the place of an earlier license's name
    if tags is not None:
        if bad := [tag for tag in tags if not tag.strip() or not is_text(tag)]:
            raise AimonkError(f"--tags {bad[0]!r} is not a tag: give words, such as --tags fashion,street")
        fields["tags"] = tags
    return fields


def base_model_fields(repo_id: Any) -> dict[str, Any]:
    """Return the fields of a model that was trained from the weights of a Hub repository; none for another origin."""
    return {"base_model": repo_id, "base_model_relation": "finetune"} if is_repo_id(repo_id) else {}


def read_fields(card: Path) -> dict[str, Any]:
    """Return the fields of a README.md that are words or lists of words; none, with a warning, where it is damaged."""
    from huggingface_hub import RepoCard

    try:
        with open(card, encoding="utf-8-sig") as file:
            head = file.read(_MOST_CHARACTERS)
        fields = RepoCard(head).data.to_dict() if head.startswith("---") else {}
    except FileNotFoundError:
        return {}
    except _UNREADABLE as error:
        _logger.warning("%s: its head cannot be read (%s); license and tags are lost", card, reason_of(error))
        return {}
    words = {key: value for key, value in fields.items() if all(isinstance(one, str) for one in _listed(value))}
    lists = {key: _listed(words[key]) for key in ("datasets", "tags") if key in words}
    return {key: value for key, value in (words | lists).items() if key not in _RENDERED}


def change_card(text: str, fields: dict[str, Any]) -> str:
    """Return a card with these fields, and the tags added to its own; without any, the card as it is."""
    from huggingface_hub import RepoCard

    if not fields:
        return text
    try:
        card = RepoCard(text)
        tags = list(dict.fromkeys(_listed(card.data.get("tags", [])) + fields.get("tags", [])))
    except _UNREADABLE as error:
        raise AimonkError(f"README.md: its head is no YAML ({reason_of(error)}); correct or delete it") from error
    for key, value in (fields | {"tags": tags or None}).items():
        card.data[key] = value
    return str(card)


def is_repo_id(text: Any) -> bool:
    """Return whether a text names a repository of the Hub, user/name."""
    return isinstance(text, str) and bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*", text, re.ASCII))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
