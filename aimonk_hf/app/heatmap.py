"""Show the parts of an image that raised a score: by gradients, or by the last feature map of an ONNX file."""

import base64
import io
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aimonk_hf.app.scoring import Scorer, Served
from aimonk_hf.app.uploads import Upload, decoded
from aimonk_hf.errors import AimonkError, NotFiniteError
from aimonk_hf.modeling.predictor import AimonkPredictor
from aimonk_hf.modeling.processing import Pixels

SHOWN_SIDE = 448
LONGEST_SIDE = 900  # of the image below the heat on the page

Heat = NDArray[np.float32]


def heat_map(scorer: Scorer, pixels: Pixels, attribute: str) -> Heat:
    """Return the heat [H, W] in [0, 1] of the transform's uint8 pixels [H, W, 3]: high where they raised the score.

    Raises `AimonkError` for an unknown attribute, for an architecture without maps, where the output is not finite, and
    where gradients are needed and torch or grad-cam is not installed.
    """
    model, names = scorer.model, scorer.model.config.attributes
    if attribute not in names:
        raise AimonkError(f"The model has no attribute {attribute!r}")
    maps = None
    has_gradients = find_spec("torch") is not None and find_spec("pytorch_grad_cam") is not None
    if isinstance(model, AimonkPredictor) and not has_gradients:
        maps = model.class_activations(pixels[None])
    if maps is not None:
        heat = _enlarged(maps[0, names.index(attribute)].clip(min=0), model.transform.size)
    else:
        try:
            heat = scorer.gradient_map(pixels, attribute)
        except ImportError as error:
            raise AimonkError("Heat maps are not available here") from error
    if not np.isfinite(heat).all():
        raise NotFiniteError("The network's output is not finite (infinite or NaN): it gives no heat map")
    return heat


def _enlarged(cells: Heat, size: tuple[int, int]) -> Heat:
    """Return cells [h, w] at the size of the image, scaled to [0, 1]."""
    heat: Heat = np.asarray(Image.fromarray(cells).resize(size[::-1], Image.Resampling.BICUBIC)).clip(min=0)
    return heat / np.float32(max(heat.max(), 1e-9))


def heat_layer(heat: Heat) -> Image.Image:
    """Return the heat [H, W] as colours that are clear where there is none."""
    import matplotlib

    shown = np.cbrt(heat)  # a product of several maps falls off too steeply for weaker evidence to be seen
    colours = matplotlib.colormaps["inferno"](shown)
    colours[..., 3] = shown
    return Image.fromarray((colours * 255).clip(0, 255).astype(np.uint8))


def overlay(pixels: Pixels, heat: Heat, strength: float = 0.8) -> Image.Image:
    """Return the uint8 pixels [H, W, 3], grey and enlarged, with the heat [H, W] laid over them."""
    layer = heat_layer(heat)
    layer.putalpha(layer.getchannel("A").point(lambda alpha: round(alpha * strength)))
    grey = Image.fromarray(pixels).convert("L").point(lambda value: round(value * 0.75))  # so that only heat has colour
    mixed = Image.alpha_composite(grey.convert("RGBA"), layer).convert("RGB")
    scale = max(1, SHOWN_SIDE // max(mixed.size))
    return mixed.resize((mixed.width * scale, mixed.height * scale), Image.Resampling.BICUBIC)


def heat_value(served: Served, upload: Upload, attribute: str) -> dict[str, Any]:
    """Return the image and the heat of an attribute for the page, each as a data URL, and the place of the heat.

    Raises as `heat_map` does, and `ImageError` for the upload.
    """
    transform = served.scorer.model.transform
    with decoded(upload, served.limits) as (image, _):
        pixels, place = transform.pixels(image), transform.seen_part(image)
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    layer = heat_layer(heat_map(served.scorer, pixels, attribute))
    urls = {"image": data_url(image, "JPEG"), "heat": data_url(layer, "PNG")}
    return urls | {"shape": image.width / image.height, "place": place}


def data_url(image: Image.Image, form: str) -> str:
    """Return the content of an image file as a data URL."""
    image.save(content := io.BytesIO(), form, quality=85)
    return f"data:image/{form.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"
