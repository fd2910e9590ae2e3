"""What the tests share: one thread, no network, a small drawn dataset, tiny untrained models."""

import os

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
if "AIMONK_TEST_GPU" not in os.environ:  # set by `make test-gpu`
    os.environ.update(ACCELERATE_USE_CPU="true", CUDA_VISIBLE_DEVICES="")

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from aimonk_hf.data.sample_data import write_sample_data
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.modeling.onnx_export import export_folder
from aimonk_hf.training import finish
from aimonk_hf.training.plots import plot_predictions

torch.set_num_threads(1)

SAVEFIG = Figure.savefig
ATTRIBUTES = ["sleeves", "stripes", "collar", "belt"]


def pytest_collection_finish() -> None:
    """Exempt all that imports have made from garbage collections, of which every run makes some."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def small_heap() -> Iterator[None]:
    """Exempt what the tests of this module have left as well: collections took a fifth of the time of all tests."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def image_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep decoded images beside the tests' other files, never in the user's own folder, also on a nearly full disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIMONK_CACHE", str(tmp_path_factory.mktemp("image-cache")))
        patch.setattr("aimonk_hf.data.image_cache.FREE_SHARE", 0.0)
        yield


@pytest.fixture(scope="session", autouse=True)
def blank_plots() -> Iterator[None]:
    """Write empty files in place of plots, which take longer than the rest of a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, path, **_: Path(path).write_bytes(b""))
        patch.setattr(finish, "plot_predictions", lambda dataset, predictions, path: path.write_bytes(b""))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_onnx() -> Iterator[None]:
    """Let runs write no onnx/model.onnx, which takes seconds; those of `test_training` that do are few."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "onnx_line", lambda model, folder: "onnx: none in tests")
        yield


@pytest.fixture(scope="module")
def real_plots(blank_plots: None) -> Iterator[None]:
    """Draw plots from here to the end of the module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", SAVEFIG)
        patch.setattr(finish, "plot_predictions", plot_predictions)
        yield


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 drawings."""
    return write_sample_data(tmp_path_factory.mktemp("data") / "sample", n_images=60, seed=3)


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 drawings, of which 19 make three steps of at most 8 images."""
    return write_sample_data(tmp_path_factory.mktemp("few") / "data", n_images=24, seed=3)


@pytest.fixture(scope="session")
def tiny_model() -> AimonkModel:
    """An untrained model with distinct thresholds."""
    torch.manual_seed(0)
    model = AimonkModel.from_timm("test_resnet", ATTRIBUTES, pretrained=False, image_size=64).eval()
    model.config.thresholds = dict(zip(ATTRIBUTES, (0.4, 0.5, 0.45, 0.6), strict=True))
    return model


@pytest.fixture
def folder(tiny_model: AimonkModel, tmp_path: Path) -> Path:
    """The tiny model's own folder."""
    tiny_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="session")
def exported(tiny_model: AimonkModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's folder with both ONNX files, for tests that only read it."""
    export_folder(tiny_model, folder := tmp_path_factory.mktemp("exported") / "model", int8=True)
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A Hub that the real client of this process talks to, with a clean cache and the writer's token."""
    from huggingface_hub import constants
    from loopback_hub import WRITER, serve_hub

    with serve_hub() as server:
        changes = {"ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": False}
        changes |= {"HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}"}
        changes |= dict.fromkeys(("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_PROGRESS_BARS"), True)
        for name, value in changes.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", WRITER)
        yield server


@pytest.fixture
def picture() -> Image.Image:
    """An image with structure in every channel, wider than high."""
    rows, columns = np.mgrid[0:90, 0:120]
    pixels = np.stack([rows * 2, columns * 2, (rows * columns) % 256], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))
