"""Pictures on their way through a network: order, reasons, threads, and how far ahead is read."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from aimonk_hf import AimonkModel
from aimonk_hf.errors import AimonkError, ImageError
from aimonk_hf.modeling.inference import stream_logits


def prepare(image: Image.Image) -> Tensor:
    return torch.tensor(image.getpixel((0, 0)), dtype=torch.uint8).view(3, 1, 1)


def network(pixels: Tensor) -> Tensor:
    return pixels.flatten(1).float()


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Forty pictures of one colour each, their number; the third and the thirtieth cannot be read."""
    paths = []
    for number in range(40):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (2, 2), (number, 0, 7)).save(path)
        paths.append(path)
    paths[3].write_bytes(b"")
    paths[30].unlink()
    return paths


@pytest.mark.parametrize("on_cpu", [False, True])
@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_every_picture_in_order_with_its_logits_or_its_reason(
    pictures: list[Path], batch_size: int, workers: int, on_cpu: bool
) -> None:
    found = list(stream_logits(iter(pictures), prepare, network, batch_size, workers, on_cpu=on_cpu))
    assert [path for path, _ in found] == pictures
    for number, (_, logits) in enumerate(found):
        if number in (3, 30):
            assert isinstance(logits, ImageError)
        else:
            assert logits.tolist() == [number, 0, 7]


@pytest.mark.parametrize("on_cpu", [False, True])
def test_a_long_stream_is_read_only_a_few_batches_ahead(pictures: list[Path], on_cpu: bool) -> None:
    asked = 0

    def endless() -> Iterator[Path]:
        nonlocal asked
        while True:
            asked += 1
            yield pictures[0]

    stream = stream_logits(endless(), prepare, network, 4, 2, on_cpu=on_cpu)
    for _ in range(10):
        next(stream)
    assert asked <= 10 + 8 * 4
    before = threading.active_count()
    stream.close()
    assert threading.active_count() <= before - 2, "the threads have ended with the stream"


@pytest.mark.parametrize("on_cpu", [False, True])
def test_what_the_network_raises_reaches_the_caller(pictures: list[Path], on_cpu: bool) -> None:
    def fails(pixels: Tensor) -> Tensor:
        raise RuntimeError("no memory left")

    with pytest.raises(RuntimeError, match="no memory left"):
        list(stream_logits(pictures, prepare, fails, 4, 2, on_cpu=on_cpu))


def test_threads_that_compute_alone_leave_the_number_of_threads_as_it_was(pictures: list[Path]) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        used: list[int] = []
        list(
            stream_logits(
                pictures,
                prepare,
                lambda pixels: used.append(torch.get_num_threads()) or network(pixels),
                4,
                2,
                on_cpu=True,
            )
        )
        assert set(used) == {2}
        assert torch.get_num_threads() == 4
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [4]
    finally:
        torch.set_num_threads(before)


def test_many_pictures_have_the_scores_of_each_alone(tiny_model: AimonkModel, sample: Path) -> None:
    paths = sorted((sample / "images").iterdir())[:20]
    alone = [tiny_model.predict(path).scores for path in paths]
    for workers in (1, 3):
        together = [prediction.scores for _, prediction in tiny_model.stream(paths, workers=workers)]
        for one, other in zip(alone, together, strict=True):
            assert other == pytest.approx(one, abs=1e-5)


def test_bf16_changes_scores_a_little_and_other_precisions_are_refused(tiny_model: AimonkModel, sample: Path) -> None:
    paths = sorted((sample / "images").iterdir())[:8]
    exact, coarse = tiny_model.predict(paths), tiny_model.predict(paths, precision="bf16")
    changes = [
        abs(one.scores[name] - other.scores[name])
        for one, other in zip(exact, coarse, strict=True)
        for name in one.scores
    ]
    assert 0 < max(changes) < 0.05
    with pytest.raises(AimonkError, match="precision must be auto, float32, bf16 or fp16, found 'fp8'"):
        tiny_model.predict(paths, precision="fp8")


@pytest.mark.parametrize("sizes", [{"batch_size": 0}, {"workers": 0}])
def test_no_pictures_at_a_time_and_no_workers_are_refused(
    tiny_model: AimonkModel, pictures: list[Path], sizes: dict[str, int]
) -> None:
    with pytest.raises(AimonkError, match="batch_size and workers must be at least 1"):
        tiny_model.stream(pictures, **sizes)
    if "batch_size" in sizes:
        with pytest.raises(AimonkError, match="batch_size and workers must be at least 1"):
            tiny_model.predict(pictures, **sizes)
