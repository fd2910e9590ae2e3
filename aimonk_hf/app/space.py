"""Write and push a Hugging Face Space: a folder that serves one model, with the library in it."""

import json
import re
import shutil
from importlib.metadata import requires, version
from pathlib import Path

from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.card import template_file
from aimonk_hf.modeling.hub import MODEL_FILES, WEIGHTS_FILE, Pushed, push_files
from aimonk_hf.modeling.onnx_network import FP32_FILE
from aimonk_hf.modeling.predictor import AimonkPredictor
from aimonk_hf.storage import check_no_link_outside, staged_folder, write_text

_PACKAGE = Path(__file__).parents[1]
MODEL_FOLDER = "model"
# the packages that serve a model with onnx/model.onnx: neither torch nor timm
ONNX_SERVING = (
    "filelock",
    "gradio",
    "huggingface_hub",
    "matplotlib",
    "numpy",
    "onnxruntime",
    "pillow",
    "pillow-heif",
    "tqdm",
)

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
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
{models}tags:
- aimonk_hf
- image-classification
short_description: Attributes of an image, each with its threshold
---

# {title}

This page scores the attributes of an image with the model {link}. It was written by `aimonk-hf push-space`: `app.py`
starts the library in `aimonk_hf/`.
"""


def write_space(folder: Path, model: str, title: str | None = None, backend: str = "auto") -> None:
    """Write the Space of a model, a Hub repository or a local model folder, which is copied into it.

    A model that has a valid onnx/model.onnx is served by onnxruntime, and torch is not installed, unless `backend` is
    "torch". Raises `AimonkError` for a folder that is not empty, and for `backend` "onnx" without such a file.
    """
    if folder.exists() and any(folder.iterdir()):
        raise AimonkError(f"{folder} is not empty: name a new folder for the Space")
    local = Path(model) if Path(model).is_dir() else None
    serving = AimonkPredictor.from_pretrained(model, backend=backend, device="cpu").backend
    with staged_folder(folder) as stage:
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "sample_model")
        shutil.copytree(_PACKAGE, stage / "aimonk_hf", ignore=ignored)
        if not (stage / "aimonk_hf" / "model_card.md").exists():
            shutil.copy(template_file(_PACKAGE), stage)
        if local:
            left_out, added = (WEIGHTS_FILE, FP32_FILE) if serving == "onnx" else ("", "")
            names = [name for name in (*MODEL_FILES, added) if name != left_out and (local / name).is_file()]
            check_no_link_outside(local, [local / name for name in names])
            for name in names:
                (stage / MODEL_FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(local / name, stage / MODEL_FOLDER / name)
        write_text(stage / "app.py", _APP.format(model=MODEL_FOLDER if local else model))
        write_text(stage / "requirements.txt", requirements(serving))
        title = title or f"Image attributes: {local.resolve().name if local else model.split('/')[-1]}"
        readme = _README.format(
            title=title,
            quoted_title=json.dumps(title, ensure_ascii=False),
            gradio=version("gradio"),  # without it a Space takes the newest one
            models="" if local else f"models:\n- {model}\n",
            link=f"in `{MODEL_FOLDER}/`" if local else f"`{model}`",
        )
        write_text(stage / "README.md", readme)


def push_space(folder: Path, repo_id: str, private: bool | None = None) -> Pushed:
    """Push a Space folder as one commit, which also removes modules and model files that the Space no longer has."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    files: dict[str, Path | bytes] = {path.relative_to(folder).as_posix(): path for path in paths}

    def stale(remote: dict[str, str]) -> list[str]:
        return [path for path in remote if path.split("/")[0] in ("aimonk_hf", MODEL_FOLDER) and path not in files]

    return push_files(files, repo_id, "space", stale, private=private)


def requirements(serving: str) -> str:
    """Return the content of a requirements.txt for the app, with torch or with onnxruntime only."""
    listed = _PACKAGE.parent / "requirements.txt"
    if listed.is_file():
        lines = listed.read_text(encoding="utf-8").splitlines()
    else:
        needed = [line.replace('"', "'").partition(";") for line in requires("aimonk_hf") or []]
        lines = [name.strip() for name, _, marker in needed if not marker or "extra == 'app'" in marker]
    if serving == "onnx":
        lines = [line for line in lines if re.split("[<>=]", line)[0] in ONNX_SERVING]
    return "".join(f"{line}\n" for line in lines)
