"""The web page and the HTTP interface of a model: upload an image, see its attributes, move a threshold, export."""

from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.devices import on_zero_gpu

if on_zero_gpu():
    import spaces  # noqa: F401 - before a model goes to the device

try:
    import gradio  # noqa: F401
except ImportError as error:
    raise AimonkError("The app needs gradio: pip install 'aimonk_hf[app]'") from error

from aimonk_hf.app.serve import mount, serve

__all__ = ["mount", "serve"]
