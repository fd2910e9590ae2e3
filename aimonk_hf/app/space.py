"""Write and push a Hugging Face Space: a folder that serves one model, with the library in it."""

import json
import os
import re
import shutil
from importlib.metadata import requires, version
from pathlib import Path
from typing import NamedTuple

from aimonk_hf.app.examples import write_examples
from aimonk_hf.errors import AimonkError, near_names
from aimonk_hf.modeling.card import template_file
from aimonk_hf.modeling.hub import (
    MODEL_FILES,
    WEIGHTS_FILE,
    Pushed,
    create_repository,
    hub_errors,
    is_public,
    push_files,
)
from aimonk_hf.modeling.onnx_network import FP32_FILE
from aimonk_hf.modeling.predictor import AimonkPredictor
from aimonk_hf.storage import check_no_link_outside, make_folder, staged_folder, write_text

_PACKAGE = Path(__file__).parents[1]
MODEL_FOLDER = "model"
TORCH = "torch>=2.9,<2.14"  # the versions that ZeroGPU has (hub-docs, spaces-zerogpu.md)
ZERO_GPU = "zero-"  # begins the names of its hardware
# the packages that serve a model with onnx/model.onnx: neither torch nor timm
_ONNX_SERVING = re.compile(
    "(filelock|gradio|huggingface_hub|matplotlib|numpy|onnxruntime|pillow|pillow-heif|tqdm)([<>=]|$)"
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
python_version: 3.12.12
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


class SpaceSettings(NamedTuple):
    """Settings of a Space on the Hub that are not in its files."""

    hardware: str | None
    secrets: dict[str, str]
    variables: dict[str, str]


def read_settings(hardware: str | None, secrets: list[str], variables: list[str]) -> SpaceSettings:
    """Check the flags: a Space's hardware, names of environment variables, NAME=VALUE; no message tells a secret."""
    from huggingface_hub import SpaceHardware

    flavors = [flavor.value for flavor in SpaceHardware]
    if hardware and hardware not in flavors:
        near = near_names(hardware, flavors) or f": choose one of {', '.join(flavors)}"
        raise AimonkError(f"--hardware {hardware} is not hardware of Spaces{near}")
    public = dict(text.split("=", 1) for text in variables if "=" in text)
    for name in [*secrets, *(text.partition("=")[0] for text in variables)]:
        flag = "--variable" if name in public or name in variables else "--secret"
        shown = f"{flag} {name.partition('=')[0]}"
        for refused, told in (
            (not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII), " takes the name of an environment variable"),
            (name in variables, f" has no value: {shown}=VALUE"),
            (name in secrets and not os.environ.get(name), f": the environment has no {name}; export it first"),
            (
                name in public and (name in secrets or re.search("TOKEN|SECRET|PASSWORD", name.upper())),
                f" would be public: export {name}, and pass --secret {name}",
            ),
        ):
            if refused:
                raise AimonkError(shown + told)
    return SpaceSettings(hardware, {name: os.environ[name] for name in secrets}, public)


def write_space(
    folder: Path, model: str, title: str | None = None, backend: str = "auto", hardware: str | None = None
) -> None:
    """Write the Space of a model, a Hub repository or a local model folder, which is copied into it.

    A model that has a valid onnx/model.onnx is served by onnxruntime, and torch is not installed, unless `backend` is
    "torch" or the hardware has a GPU. Raises `AimonkError` for a folder that is not empty, for `backend` "onnx" without
    such a file, and for it with a GPU.
    """
    if hardware and not hardware.startswith("cpu"):
        if backend == "onnx":
            raise AimonkError(f"--hardware {hardware} computes with torch: leave out --backend onnx")
        backend = "torch"
    if folder.exists() and any(folder.iterdir()):
        raise AimonkError(f"{folder} is not empty: name a new folder for the Space")
    local = Path(model) if Path(model).is_dir() else None
    predictor = AimonkPredictor.from_pretrained(model, backend=backend, device="cpu")
    serving, source = predictor.backend, local or predictor.folder or Path()
    unused = WEIGHTS_FILE if serving == "onnx" else FP32_FILE
    names = [name for name in (*MODEL_FILES, FP32_FILE) if name != unused and (source / name).is_file()]
    with staged_folder(folder) as stage:
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "sample_model")
        shutil.copytree(_PACKAGE, stage / "aimonk_hf", ignore=ignored)
        if not (stage / "aimonk_hf" / "model_card.md").exists():
            shutil.copy(template_file(_PACKAGE), stage)
        if local:
            check_no_link_outside(local, [local / name for name in names])
            for name in names:
                (stage / MODEL_FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(local / name, stage / MODEL_FOLDER / name)
            examples = make_folder(stage / MODEL_FOLDER / "examples")
            if not write_examples(local, [], examples):  # anew: a photograph may tell where it was taken
                examples.rmdir()
        write_text(stage / "app.py", _APP.format(model=MODEL_FOLDER if local else model))
        write_text(stage / "requirements.txt", requirements(serving, hardware))
        title = title or f"Image attributes: {local.resolve().name if local else model.split('/')[-1]}"
        readme = _README.format(
            title=title,
            quoted_title=json.dumps(title, ensure_ascii=False),
            gradio=version("gradio"),  # without it a Space takes the newest one
            models="" if local else _models(model, names),
            link=f"in `{MODEL_FOLDER}/`" if local else f"`{model}`",
        )
        write_text(stage / "README.md", readme)


def _models(model: str, names: list[str]) -> str:
    """Return the head's lines on the Hub model; the Hub loads those that all may read before the Space starts."""
    preload = f"preload_from_hub:\n- {model} {','.join(names)}\n" if is_public(model) else ""
    return f"models:\n- {model}\n{preload}"


def push_space(
    folder: Path, repo_id: str, private: bool | None = None, settings: SpaceSettings | None = None
) -> Pushed:
    """Push a Space folder as one commit, which also removes modules and model files that the Space no longer has.

    The settings are made first, so that the Space starts with them.
    """
    if settings and any(settings):
        from huggingface_hub import HfApi, SpaceHardware

        api, repo_id = HfApi(), create_repository(repo_id, private, repo_type="space")
        with hub_errors(repo_id, f"Cannot change the settings of {repo_id} on the Hub"):
            for name, value in settings.variables.items():
                api.add_space_variable(repo_id, name, value)
            for name, value in settings.secrets.items():
                api.add_space_secret(repo_id, name, value)
            if settings.hardware:
                api.request_space_hardware(repo_id, SpaceHardware(settings.hardware))
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    files: dict[str, Path | bytes] = {path.relative_to(folder).as_posix(): path for path in paths}

    def stale(remote: dict[str, str]) -> list[str]:
        return [path for path in remote if path.split("/")[0] in ("aimonk_hf", MODEL_FOLDER) and path not in files]

    return push_files(files, repo_id, "space", stale, private=private)


def requirements(serving: str, hardware: str | None = None) -> str:
    """Return the content of a requirements.txt for the app, with torch or with onnxruntime only."""
    listed = _PACKAGE.parent / "requirements.txt"
    if listed.is_file():
        lines = listed.read_text(encoding="utf-8").splitlines()
    else:
        needed = [line.replace('"', "'").partition(";") for line in requires("aimonk_hf") or []]
        lines = [name.strip() for name, _, marker in needed if not marker or "extra == 'app'" in marker]
    if serving == "onnx":
        lines = list(filter(_ONNX_SERVING.match, lines))
    lines = [TORCH if re.split("[<>=]", line)[0] == "torch" else line for line in lines]
    lines += ["spaces"] * (hardware or "").startswith(ZERO_GPU)
    return "".join(f"{line}\n" for line in lines)
