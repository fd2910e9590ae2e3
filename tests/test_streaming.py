"""Images on their way through a network: order, reasons, threads, and how far ahead is read."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from aimonk_hf import AimonkModel
from aimonk_hf.errors import AimonkError, ImageError
from aimonk_hf.modeling.devices import torch_network
from aimonk_hf.modeling.streaming import Network, stream_outputs

both = pytest.mark.parametrize("threads", [0, 2])


def prepare(image: Image.Image) -> np.ndarray:
    return np.array(image.getpixel((0, 0)), dtype=np.uint8).reshape(1, 1, 3)


def first_pixel(pixels: np.ndarray) -> np.ndarray:
    return pixels.reshape(len(pixels), 3).astype(np.float32)


def number_and_process(image: Image.Image) -> np.ndarray:
    content = bytes(image.getpixel((0, 0))[:1]) + os.getpid().to_bytes(5, "little")
    return np.frombuffer(content, np.uint8).reshape(1, 2, 3)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Forty images of one colour each, their number; the third and the thirtieth cannot be read."""
    paths = [tmp_path / f"{number}.png" for number in range(40)]
    for number, path in enumerate(paths):
        Image.new("RGB", (2, 2), (number, 0, 7)).save(path)
    paths[3].write_bytes(b"")
    paths[30].unlink()
    return paths


@both
@pytest.mark.parametrize(("batch_size", "workers"), [(1, 2), (4, 1), (4, 5), (32, 2)])
def test_every_image_in_order_with_its_logits_or_its_reason(
    images: list[Path], batch_size: int, workers: int, threads: int
) -> None:
    found = list(stream_outputs(iter(images), prepare, Network(first_pixel, threads), batch_size, workers))
    assert [path for path, _ in found] == images
    for number, (_, logits) in enumerate(found):
        assert isinstance(logits, ImageError) if number in (3, 30) else logits.tolist() == [number, 0, 7]


@both
def test_a_long_stream_is_read_only_a_few_batches_ahead(images: list[Path], threads: int) -> None:
    asked = 0

    def endless() -> Iterator[Path]:
        nonlocal asked
        while True:
            asked += 1
            yield images[0]

    stream = stream_outputs(endless(), prepare, Network(first_pixel, threads), 4, 2)
    for _ in range(10):
        next(stream)
    assert asked <= 10 + 8 * 4
    before = threading.active_count()
    stream.close()
    assert threading.active_count() <= before - 2, "the threads have ended with the stream"


def test_an_accelerator_gets_many_files_from_processes(images: list[Path]) -> None:
    many, decoded_by = images * 7, set[int]()

    def network(pixels: np.ndarray) -> np.ndarray:
        decoded_by.update(int.from_bytes(row.tobytes(), "little") for row in pixels.reshape(len(pixels), 6)[:, 1:])
        return pixels.reshape(len(pixels), 6)[:, :1].astype(np.float32)

    found = list(stream_outputs(many, number_and_process, Network(network, on_accelerator=True), 16, 2))
    assert [path for path, _ in found] == many
    for row, (_, logits) in enumerate(found):
        assert isinstance(logits, ImageError) if row % 40 in (3, 30) else logits[0] == row % 40
    assert len(decoded_by) == 2
    assert os.getpid() not in decoded_by

    decoded_by.clear()
    list(stream_outputs(images, number_and_process, Network(network, on_accelerator=True), 16, 2))
    assert decoded_by == {os.getpid()}, "a few images are decoded by threads"


@both
def test_an_error_of_the_network_reaches_the_caller(images: list[Path], threads: int) -> None:
    def fails(pixels: np.ndarray) -> np.ndarray:
        raise RuntimeError("no memory left")

    with pytest.raises(RuntimeError, match="no memory left"):
        list(stream_outputs(images, prepare, Network(fails, threads), 4, 2))


def test_inference_threads_leave_the_number_of_threads_as_it_was(images: list[Path]) -> None:
    before = torch.get_num_threads()
    used: list[int] = []

    def counting(pixels: Tensor) -> Tensor:
        used.append(torch.get_num_threads())
        return pixels.flatten(1).float()

    try:
        torch.set_num_threads(4)
        list(stream_outputs(images, prepare, torch_network(counting, torch.device("cpu")), 4, 2))
        assert set(used) == {2}
        assert torch.get_num_threads() == 4
        thread = threading.Thread(target=lambda: used.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert used[-1] == 4
    finally:
        torch.set_num_threads(before)


def test_many_images_have_the_scores_of_each_alone(tiny_model: AimonkModel, sample: Path) -> None:
    paths = sorted((sample / "images").iterdir())[:20]
    alone = [tiny_model.predict(path).scores for path in paths]
    for workers in (1, 3):
        together = [prediction.scores for _, prediction in tiny_model.stream(paths, workers=workers)]
        assert all(other == pytest.approx(one, abs=1e-5) for one, other in zip(alone, together, strict=True))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_changes_scores_a_little(precision: str, tiny_model: AimonkModel, sample: Path) -> None:
    paths = sorted((sample / "images").iterdir())[:8]
    exact, coarse = tiny_model.predict(paths), tiny_model.predict(paths, precision=precision)
    pairs = [
        (one.scores[name], other.scores[name]) for one, other in zip(exact, coarse, strict=True) for name in one.scores
    ]
    assert 0 < max(abs(one - other) for one, other in pairs) < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size and workers must be at least 1"),
        ({"workers": 0}, "batch_size and workers must be at least 1"),
        ({"precision": "fp8"}, "precision must be auto, float32, bf16 or fp16, found 'fp8'"),
    ],
)
def test_options_without_sense_are_refused_before_an_image_is_read(
    options: dict, message: str, tiny_model: AimonkModel
) -> None:
    for call in (tiny_model.stream, tiny_model.predict):
        with pytest.raises(AimonkError, match=message):
            call(["none.png"], **options)
