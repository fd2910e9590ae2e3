import numpy as np
import pytest
import torch
from PIL import Image

from aimonk_hf.modeling.processing import EvalTransform
from aimonk_hf.training.augmentation import mix_batch, train_augmentation
from aimonk_hf.training.settings import AUGMENTATIONS

TRANSFORM = EvalTransform({"input_size": (3, 48, 64), "crop_mode": "squash", "crop_pct": 1.0})
NAN = float("nan")
PIXELS = torch.stack([torch.zeros(3, 10, 14), torch.ones(3, 10, 14)])


@pytest.fixture(scope="module")
def image() -> Image.Image:
    ramp = np.linspace(0, 255, 90 * 70 * 3).reshape(70, 90, 3)
    return Image.fromarray(ramp.astype(np.uint8))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_gives_bytes_of_the_asked_size_and_follows_the_seed(name: str, image: Image.Image) -> None:
    augment, small = train_augmentation(name, TRANSFORM), train_augmentation(name, TRANSFORM, (32, 40))
    torch.manual_seed(3)
    first = augment(image)
    assert (first.shape, first.dtype) == ((3, 48, 64), torch.uint8)
    assert small(image).shape == (3, 32, 40)
    prepared = augment.prepare(image)  # the same every time and for every size, so that it can be kept
    assert prepared.tobytes() == augment.prepare(image).tobytes() == small.prepare(image).tobytes()
    assert small.fingerprint == augment.fingerprint
    assert train_augmentation(name, EvalTransform({"input_size": (3, 32, 32)})).fingerprint != augment.fingerprint
    torch.manual_seed(3)
    assert torch.equal(augment.change(Image.fromarray(np.asarray(prepared))), first)
    many = torch.stack([augment(image) for _ in range(40)])
    assert (len(torch.unique(many, dim=0)) == 1) == (name == "none")


def test_none_is_the_eval_transform_and_flip_mirrors_it(image: Image.Image) -> None:
    pixels = torch.from_numpy(TRANSFORM.pixels(image)).permute(2, 0, 1)
    assert torch.equal(train_augmentation("none", TRANSFORM)(image), pixels)
    small = train_augmentation("none", TRANSFORM, (32, 40))(image)
    shrunk = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((40, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(small.permute(1, 2, 0), np.asarray(shrunk))
    seen = [train_augmentation("flip", TRANSFORM)(image) for _ in range(20)]
    assert all(torch.equal(one, pixels) or torch.equal(one, pixels.flip(-1)) for one in seen)
    assert len({one.numpy().tobytes() for one in seen}) == 2


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("seed", range(5))
def test_pixels_and_labels_are_mixed_by_the_same_share(mixup: float, cutmix: float, seed: int) -> None:
    torch.manual_seed(seed)
    pixels, labels = mix_batch(PIXELS, torch.tensor([[0.0, 1.0], [1.0, 1.0]]), mixup, cutmix)
    share = pixels[0].mean().item()
    assert 0 < share < 1
    assert labels[0].tolist() == pytest.approx([share, 1.0])
    assert labels[1].tolist() == pytest.approx([pixels[1].mean().item(), 1.0])
    assert (len(pixels[0].unique()) == 1) == bool(mixup)  # blended everywhere, or a box
    assert PIXELS[0].sum() == 0


def test_a_mixed_label_is_observed_only_where_both_are() -> None:
    torch.manual_seed(0)
    _, labels = mix_batch(PIXELS, torch.tensor([[0.0, NAN, NAN], [1.0, 1.0, NAN]]), 0.4, 0.0)
    assert torch.isnan(labels).tolist() == [[False, True, True]] * 2


def test_both_kinds_take_turns() -> None:
    torch.manual_seed(0)
    kinds = {len(mix_batch(PIXELS, torch.ones(2, 1), 0.4, 1.0)[0][0].unique()) for _ in range(20)}
    assert kinds == {1, 2}
    assert np.isfinite(mix_batch(PIXELS, torch.ones(2, 1), 0.4, 1.0)[1].numpy()).all()
