"""A Hugging Face Space: a folder that serves one model, with the library in it."""

import json
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.hub_push import Pushed, push_files
from aimonk_hf.modeling.weights import MODEL_FILES
from aimonk_hf.storage import check_no_link_outside, staged_folder, write_text

_PACKAGE = Path(__file__).parents[1]
MODEL_FOLDER = "model"

_APP = '''"""The Space's page. The variable AIMONK_MODEL, in the Space's settings, serves another model."""

import os
import sys

os.environ.setdefault("AIMONK_MODEL", {model!r})

from aimonk_hf.cli.main import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["app", *sys.argv[1:]]))
'''

_README = """---
title: {quoted_title}
emoji: 🏷️
colorFrom: green
colorTo: gray
sdk: gradio
{versions}app_file: app.py
{models}tags:
- aimonk_hf
- image-classification
short_description: Attributes of a picture, each with its threshold
---

# {title}

This page scores the attributes of a picture with the model {link}. It was written by `aimonk-hf push-space`; `aimonk_hf/` is the library that
it runs, `app.py` starts it.
"""


def write_space(folder: Path, model: str, title: str | None = None) -> list[Path]:
    """Write the Space that serves `model`, a Hub repository or a local model folder, which is copied into it; return its files.

    Raises `AimonkError` where the folder exists already with other things in it.
    """
    if folder.exists() and any(folder.iterdir()):
        raise AimonkError(f"{folder} is not empty: name a new folder for the Space")
    local = Path(model)
    with staged_folder(folder) as stage:
        shutil.copytree(_PACKAGE, stage / "aimonk_hf", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        if not (stage / "aimonk_hf" / "model_card.md").exists():  # of a repository; an installed package has it inside
            shutil.copy(_PACKAGE.parent / "model_card.md", stage)
        served = model
        if local.is_dir():
            served = MODEL_FOLDER
            (stage / MODEL_FOLDER).mkdir()
            files = [local / name for name in MODEL_FILES if (local / name).is_file()]
            check_no_link_outside(local, files)
            for file in files:
                shutil.copy(file, stage / MODEL_FOLDER)
        write_text(stage / "app.py", _APP.format(model=served))
        write_text(stage / "requirements.txt", _requirements())
        write_text(stage / "README.md", _readme(model, title))
    return sorted(path for path in folder.rglob("*") if path.is_file())


def push_space(folder: Path, repo_id: str, private: bool | None = None, token: str | bool | None = None) -> Pushed:
    """Push a Space folder as one commit, which also removes modules and model files that the Space no longer has."""
    files: dict[str, Path | bytes] = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }

    def stale(remote: dict[str, str]) -> list[str]:
        return [path for path in remote if path.split("/")[0] in ("aimonk_hf", MODEL_FOLDER) and path not in files]

    return push_files(files, repo_id, "space", stale, private, token, commit_message="Upload Space")


def _requirements() -> str:
    """Return requirements.txt of the repository, or what the installed package with its app needs."""
    listed = _PACKAGE.parent / "requirements.txt"
    if listed.is_file():
        return listed.read_text(encoding="utf-8")
    try:
        needed = requires("aimonk_hf") or []
    except PackageNotFoundError as error:
        raise AimonkError("aimonk_hf is neither installed nor a repository with a requirements.txt") from error
    lines = [line.partition(";") for line in needed]
    return "".join(
        f"{name.strip()}\n" for name, _, marker in lines if not marker or 'extra == "app"' in marker.replace("'", '"')
    )


def _readme(model: str, title: str | None) -> str:
    local = Path(model).is_dir()
    try:
        versions = f"sdk_version: {version('gradio')}\n"
    except PackageNotFoundError:
        versions = ""  # the newest one
    title = title or f"Image attributes: {Path(model).resolve().name if local else model.split('/')[-1]}"
    return _README.format(
        title=title,
        quoted_title=json.dumps(title, ensure_ascii=False),
        versions=versions + 'python_version: "3.11"\n',
        models="" if local else f"models:\n- {model}\n",
        link=f"in `{MODEL_FOLDER}/`" if local else f"`{model}`",
    )
