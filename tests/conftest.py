"""What the tests share: one thread, no network, a small drawn dataset, tiny untrained models."""

import os

os.environ.update(
    OMP_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    ACCELERATE_USE_CPU="true",
    CUDA_VISIBLE_DEVICES="",
)

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aimonk_hf.data.sample_data import write_sample_data
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.training import finish

torch.set_num_threads(1)

ATTRIBUTES = ["sleeves", "stripes", "collar", "belt"]


@pytest.fixture(scope="session", autouse=True)
def image_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Decoded pictures are kept beside the tests' other files, never in the user's own folder."""
    os.environ["AIMONK_CACHE"] = str(tmp_path_factory.mktemp("image-cache"))


@pytest.fixture(scope="session", autouse=True)
def small_plots() -> None:
    """Two images are drawn at the end of a run instead of twelve, which takes longer than the run itself."""
    finish._PLOTTED_IMAGES = 2


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of 60 drawings."""
    return write_sample_data(tmp_path_factory.mktemp("data") / "sample", n_images=60, seed=3)


@pytest.fixture(scope="session")
def tiny_model() -> AimonkModel:
    """An untrained model with distinct thresholds."""
    torch.manual_seed(0)
    model = AimonkModel.from_timm("test_resnet", ATTRIBUTES, pretrained=False, image_size=64).eval()
    model.config.thresholds = dict(zip(ATTRIBUTES, (0.4, 0.5, 0.45, 0.6), strict=True))
    return model


@pytest.fixture
def picture() -> Image.Image:
    """A picture with structure in every channel, wider than high."""
    rows, columns = np.mgrid[0:90, 0:120]
    pixels = np.stack([rows * 2, columns * 2, (rows * columns) % 256], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))
