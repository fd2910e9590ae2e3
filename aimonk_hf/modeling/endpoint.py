"""Answer the requests of a Hugging Face Inference Endpoint, and the files that make a model repository one."""

import base64
from importlib.metadata import requires
from pathlib import Path
from typing import Any

from PIL import Image

import aimonk_hf
from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.predictor import AimonkPredictor

_PARAMETERS = ("thresholds", "top_k")
_HANDLER = '''"""Inference Endpoints call this; the library is beside it."""

from aimonk_hf.modeling.endpoint import EndpointHandler

__all__ = ["EndpointHandler"]
'''


class EndpointHandler:
    """Predict the image of a request, as huggingface-inference-toolkit calls it.

    handler = EndpointHandler("model folder")
    handler({"inputs": image, "parameters": {"thresholds": {"collar": 0.3}, "top_k": 5}})
    """

    def __init__(self, path: str = "") -> None:
        self.predictor = AimonkPredictor.from_pretrained(path)

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """Return label, score, threshold and present of each attribute, highest score first.

        `inputs` is a PIL image, the bytes of an image file, or these in base64; text is never taken for a path.
        Raises `AimonkError` for anything else.
        """
        image, parameters = data.get("inputs"), data.get("parameters") or {}
        if isinstance(image, str):
            try:
                image = base64.b64decode(image.rpartition(",")[2], validate=True)  # a data: address ends in base64 too
            except ValueError:
                image = None
        if not isinstance(image, bytes | Image.Image):
            raise AimonkError("`inputs` must be an image file in base64, or the body of a request of type image/*")
        if unknown := sorted(set(parameters) - set(_PARAMETERS)):
            raise AimonkError(f"`parameters` has no {unknown[0]}: it takes {' and '.join(_PARAMETERS)}")
        found = self.predictor.predict(image, thresholds=parameters.get("thresholds"))
        rows = [
            {"label": name, "score": score, "threshold": found.thresholds[name], "present": name in found.attributes}
            for name, score in sorted(found.scores.items(), key=lambda item: -item[1])
        ]
        return rows[: parameters.get("top_k")]


def endpoint_files() -> dict[str, Path | bytes]:
    """Return handler.py, requirements.txt and the library by their paths in the repository."""
    package = Path(aimonk_hf.__file__).parent
    left_out = {"__pycache__", "sample_model"}
    paths = [path for path in sorted(package.rglob("*")) if path.is_file() and not left_out & set(path.parts)]
    needed = [line for line in requires("aimonk_hf") or [] if "extra ==" not in line]
    files: dict[str, Path | bytes] = {path.relative_to(package.parent).as_posix(): path for path in paths}
    return files | {"handler.py": _HANDLER.encode(), "requirements.txt": "\n".join([*needed, ""]).encode()}
