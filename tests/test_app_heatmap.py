"""Heat maps: most of the heat is on the drawn part of an attribute; each backbone has a map or a sentence."""

import sys
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import Image

from aimonk_hf.app.heatmap import heat_map, overlay
from aimonk_hf.app.page import build_page
from aimonk_hf.app.scoring import Scorer, Served
from aimonk_hf.app.uploads import Limits
from aimonk_hf.data.sample_data import PREVALENCE, SIZE, Box, Garment, draw_garment
from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.losses import masked_bce_with_logits
from aimonk_hf.modeling.model import AimonkModel

ATTRIBUTES = list(PREVALENCE)
WHOLE = {"crop_mode": "squash", "crop_pct": 1.0}  # so that boxes lie where they were drawn


def train_briefly(
    model: AimonkModel, images: list[Image.Image], labels: torch.Tensor, epochs: int, lr: float
) -> Scorer:
    """Fit the model on the images [N] and labels [N, K], without augmentation."""
    pixels = torch.stack([model.transform(image) for image in images])
    steps = epochs * (len(images) // 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for step in range(steps):
        rows = torch.randint(len(images), (32,), generator=generator)
        batch = pixels[rows].flip(-1) if step % 2 else pixels[rows]
        optimizer.zero_grad()
        masked_bce_with_logits(model(batch).logits, labels[rows]).backward()
        optimizer.step()
        schedule.step()
    return Scorer(model)


def share_in_box(heat: np.ndarray, box: Box) -> tuple[float, float]:
    """Return the shares of the heat and of the area that lie in a box given in pixels of the drawing."""
    left, top, right, bottom = (round(value * heat.shape[0] / SIZE) for value in box)
    inside = heat[max(0, top) : bottom, max(0, left) : right]
    return float(inside.sum() / max(heat.sum(), 1e-12)), inside.size / heat.size


@pytest.fixture(scope="module")
def drawings() -> list[Garment]:
    """350 garments, the last 30 to look at; each part on half of them, so that few drawings teach the rare belt too."""
    with pytest.MonkeyPatch.context() as patched:
        for name in PREVALENCE:
            patched.setitem(PREVALENCE, name, 0.5)
        return [draw_garment(np.random.default_rng([5, number])) for number in range(350)]


@pytest.fixture(scope="module")
def garments(drawings: list[Garment]) -> Scorer:
    """A convolutional network that has seen 320 drawings eight times."""
    torch.manual_seed(0)
    model = AimonkModel.from_timm("test_resnet", ATTRIBUTES, pretrained=False, image_size=112, preprocessing=WHOLE)
    labels = torch.tensor([[float(drawing.present[name]) for name in ATTRIBUTES] for drawing in drawings[:320]])
    return train_briefly(model, [drawing.image for drawing in drawings[:320]], labels, 8, 0.003)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("attribute", "largest_area"), [("sleeves", 0.35), ("stripes", 0.27), ("collar", 0.05), ("belt", 0.03)]
)
def test_most_of_the_heat_lies_where_the_part_was_drawn(
    garments: Scorer, drawings: list[Garment], attribute: str, largest_area: float
) -> None:
    shown = [drawing for drawing in drawings[320:] if drawing.present[attribute]]
    transform = garments.model.transform
    pairs = [
        share_in_box(heat_map(garments, transform.pixels(each.image), attribute), each.boxes[attribute])
        for each in shown
    ]
    shares, area = np.array([share for share, _ in pairs]), np.mean([area for _, area in pairs])
    assert len(shares) >= 10
    assert area < largest_area
    assert shares.mean() > 0.5
    assert np.mean(shares > 0.5) > 0.75, "in most pictures"


def draw_mark(number: int) -> tuple[Image.Image, Box | None]:
    """Draw noise, with a bright square in it every other time; return the square's box."""
    rng = np.random.default_rng([7, number])
    pixels = rng.integers(0, 70, (SIZE, SIZE, 3), dtype=np.uint8)
    if number % 2:
        return Image.fromarray(pixels), None
    left, top = (int(value) for value in rng.integers(4, SIZE - 44, 2))
    pixels[top : top + 40, left : left + 40] = (255, 230, 40)
    return Image.fromarray(pixels), (left, top, left + 40, top + 40)


@pytest.mark.parametrize(("architecture", "image_size"), [("test_vit", 128), ("test_resnet", 96)])
def test_most_of_the_heat_lies_on_the_mark(architecture: str, image_size: int) -> None:
    torch.manual_seed(0)
    drawings = [draw_mark(number) for number in range(96)]
    labels = torch.tensor([[float(box is not None)] for _, box in drawings])
    model = AimonkModel.from_timm(architecture, ["mark"], pretrained=False, image_size=image_size, preprocessing=WHOLE)
    scorer = train_briefly(model, [image for image, _ in drawings], labels, 10, 0.002)
    shares = []
    for number in range(1000, 1024, 2):
        image, box = draw_mark(number)
        assert box is not None
        share, area = share_in_box(heat_map(scorer, scorer.model.transform.pixels(image), "mark"), box)
        assert area < 0.15
        shares.append(share)
    assert np.mean(shares) > 0.5


TOKEN_NETWORKS = ["cait_xxs24_224", "xcit_nano_12_p16_224", "convit_tiny", "deit_tiny_distilled_patch16_224"]


@pytest.mark.parametrize(
    "architecture",
    [
        *("test_efficientnet", "test_convnext", "test_vit", "test_vit2", "test_resnet", "test_mambaout"),
        *(pytest.param(name, marks=pytest.mark.soak) for name in TOKEN_NETWORKS),
    ],
)
def test_a_backbone_has_maps_or_a_sentence_and_stays_as_it_is(architecture: str) -> None:
    torch.manual_seed(0)
    size = {"image_size": 96} if architecture in TOKEN_NETWORKS else {}
    scorer = Scorer(AimonkModel.from_timm(architecture, ["one", "two"], pretrained=False, **size))
    before = {name: value.clone() for name, value in scorer.model.state_dict().items()}
    image = Image.effect_noise((200, 150), 80).convert("RGB")
    pixels = scorer.model.transform.pixels(image)
    try:
        heat = heat_map(scorer, pixels, "two")
    except AimonkError as error:
        assert architecture in TOKEN_NETWORKS
        assert str(error).startswith(f"Heat maps are not available for {architecture} (")  # noqa: PT017
    else:
        assert heat.shape == scorer.model.transform.size
        assert 0 <= heat.min() <= heat.max() <= 1 + 1e-6
    assert all(torch.equal(before[name], value) for name, value in scorer.model.state_dict().items())
    assert all(parameter.grad is None for parameter in scorer.model.parameters()), "weights' gradients take memory"
    assert scorer.score(pixels) == pytest.approx(scorer.model.predict(image).scores, abs=1e-6), "hooks stay behind"


def test_an_unknown_attribute_and_a_network_without_maps_are_told(tiny_model: AimonkModel) -> None:
    with pytest.raises(AimonkError, match="no attribute 'hat'"):
        heat_map(Scorer(tiny_model), np.zeros((64, 64, 3), dtype=np.uint8), "hat")
    mixer = AimonkModel.from_timm("mixer_s32_224", ["one"], pretrained=False)
    with pytest.raises(AimonkError, match="not available for mixer_s32_224 .its stages keep no rows and columns"):
        heat_map(Scorer(mixer), np.zeros((224, 224, 3), dtype=np.uint8), "one")


def test_without_the_library_a_visitor_hears_that_there_are_no_heat_maps(
    tiny_model: AimonkModel, picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "aimonk_hf.app.grad_cam", raising=False)
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    page = build_page(Served(Scorer(tiny_model), "tiny", Limits(10**6, tmp_path)), [])
    explain = next(function.fn for function in page.fns.values() if function.name == "explain")
    picture.save(tmp_path / "a.png")
    upload = {"path": str(tmp_path / "a.png"), "meta": {"_type": "gradio.FileData"}}
    told = explain(upload, gr.EventData(None, {"attribute": "belt", "round": 3}))
    assert told == {"attribute": "belt", "round": 3, "error": "Heat maps are not available here."}


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_the_heat_lies_where_the_network_looked(mode: str) -> None:
    preprocessing = {"crop_mode": mode, "crop_pct": 0.5 if mode == "center" else 1.0}
    model = AimonkModel.from_timm("test_resnet", ["one"], pretrained=False, image_size=64, preprocessing=preprocessing)
    expected = {"center": (0.375, 0.25, 0.25, 0.5), "squash": (0, 0, 1, 1), "border": (0, -0.5, 1, 2)}
    assert model.transform.seen_part(Image.new("RGB", (400, 200))) == pytest.approx(expected[mode])


def test_the_overlay_colours_heat_only_and_as_strongly_as_asked() -> None:
    pixels = np.full((32, 32, 3), 100, dtype=np.uint8)
    heat = np.zeros((32, 32), dtype=np.float32)
    heat[8:16, 8:16] = 1
    shown = np.asarray(overlay(pixels, heat)).astype(int)
    scale = shown.shape[0] // 32
    spread = shown.max(axis=2) - shown.min(axis=2)
    assert spread[2 * scale, 2 * scale] == 0
    assert spread[12 * scale, 12 * scale] > 50
    pale = np.asarray(overlay(pixels, heat, 0.2)).astype(int)[12 * scale, 12 * scale]
    assert pale.max() - pale.min() < spread[12 * scale, 12 * scale] / 2
