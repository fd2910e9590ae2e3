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
def picture() -> Image.Image:
    ramp = np.linspace(0, 255, 90 * 70 * 3).reshape(70, 90, 3)
    return Image.fromarray(ramp.astype(np.uint8))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_gives_bytes_of_the_models_size_and_follows_the_seed(
    name: str, picture: Image.Image
) -> None:
    augment = train_augmentation(name, TRANSFORM)
    torch.manual_seed(3)
    first = augment(picture)
    torch.manual_seed(3)
    assert torch.equal(augment(picture), first)
    assert (first.shape, first.dtype) == ((3, 48, 64), torch.uint8)
    many = torch.stack([augment(picture) for _ in range(40)])
    assert (len(torch.unique(many, dim=0)) == 1) == (name == "none")


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_smaller_pictures_come_from_the_same_preparation(name: str, picture: Image.Image) -> None:
    full, small = train_augmentation(name, TRANSFORM), train_augmentation(name, TRANSFORM, (32, 40))
    assert small.fingerprint == full.fingerprint
    assert small.prepare(picture).tobytes() == full.prepare(picture).tobytes()
    assert small(picture).shape == (3, 32, 40)
    if name == "none":
        shrunk = Image.fromarray(TRANSFORM.pixels(picture).permute(1, 2, 0).numpy()).resize(
            (40, 32), Image.Resampling.BILINEAR
        )
        assert np.array_equal(small(picture).permute(1, 2, 0), np.asarray(shrunk))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_preparation_is_the_same_every_time_and_can_be_kept(name: str, picture: Image.Image) -> None:
    augment = train_augmentation(name, TRANSFORM)
    prepared = augment.prepare(picture)
    assert prepared.tobytes() == augment.prepare(picture).tobytes()
    kept = Image.fromarray(np.asarray(prepared))
    torch.manual_seed(1)
    direct = augment(picture)
    torch.manual_seed(1)
    assert torch.equal(augment.change(kept), direct)
    other = train_augmentation(name, EvalTransform({"input_size": (3, 32, 32)}))
    assert other.fingerprint != augment.fingerprint


def test_none_is_the_eval_transform_and_flip_mirrors_it(picture: Image.Image) -> None:
    pixels = TRANSFORM.pixels(picture)
    assert torch.equal(train_augmentation("none", TRANSFORM)(picture), pixels)
    seen = [train_augmentation("flip", TRANSFORM)(picture) for _ in range(20)]
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
