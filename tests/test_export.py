"""The exported folder in onnxruntime, Node, a browser, and in the readers that it must not disturb."""

import json
import os
import re
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from javascript import install_transformers_js
from PIL import Image

from aimonk_hf import AimonkModel
from aimonk_hf.cli.main import main
from aimonk_hf.data.images import read_image
from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling import onnx_export as export
from aimonk_hf.modeling.hub import push_model_folder
from aimonk_hf.modeling.onnx_export import export_folder, largest_difference, preprocessor_config
from aimonk_hf.modeling.onnx_network import OnnxNetwork

ATTRIBUTES = ["sleeves", "stripes", "collar", "belt"]
SQUASH = {"crop_mode": "squash", "crop_pct": 1.0}


def make_model(architecture: str = "test_efficientnet", seed: int = 0, **preprocessing: object) -> AimonkModel:
    """An untrained model whose scores differ from picture to picture and from attribute to attribute."""
    torch.manual_seed(seed)
    model = AimonkModel.from_timm(architecture, ATTRIBUTES, pretrained=False, preprocessing=SQUASH | preprocessing)
    with torch.no_grad():
        model.timm_model.get_classifier().weight.normal_(0, 0.5)
        model.timm_model.get_classifier().bias.copy_(torch.tensor([1.0, -1.0, 0.5, -0.5]))
    model.config.thresholds = dict(zip(ATTRIBUTES, (0.4, 0.5, 0.55, 0.6), strict=True))
    return model.eval()


@pytest.fixture(scope="module")
def model() -> AimonkModel:
    return make_model()


@pytest.fixture(scope="module")
def exported(model: AimonkModel, sample: Path, tmp_path_factory) -> Path:
    """A saved model's folder by the export command, with int8 and the comparison on labelled images."""
    folder = tmp_path_factory.mktemp("export")
    model.save_pretrained(folder / "source")
    command = f"export --model {folder / 'source'} --output {folder / 'model'} --int8 --data-dir {sample}"
    assert main(command.split()) == 0
    return folder / "model"


def pictures(sample: Path) -> list[Path]:
    return sorted((sample / "images").iterdir())[:5]


@pytest.mark.parametrize("architecture", ["test_vit", "test_resnet"])
def test_onnxruntime_agrees_with_torch_on_images_in_any_batch(architecture: str, sample: Path, tmp_path: Path):
    model, file = make_model(architecture).train(), tmp_path / "model" / "onnx" / "model.onnx"
    export_folder(model, tmp_path / "model")
    assert model.training
    images = [read_image(path) for path in pictures(sample)]
    assert largest_difference(model, OnnxNetwork(file, model.config, None), images) < 1e-4
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    model.eval()
    for count in (1, 5):
        pixels = torch.stack([model.transform(Image.open(path)) for path in pictures(sample)[:count]])
        (logits,) = session.run(["logits"], {"pixel_values": pixels.numpy()})
        with torch.no_grad():
            assert np.allclose(logits, model(pixels).logits.numpy(), atol=1e-4)


def test_what_torch_cannot_export_is_one_sentence(model: AimonkModel, tmp_path: Path, monkeypatch, capsys):
    def refuse(*_: object, **__: object) -> None:
        page = "Failed to convert the exported program to an ONNX model.\n\n## Next steps\nReport it"
        raise torch.onnx.OnnxExporterError(page) from RuntimeError("no ONNX function for aten.unfold")

    model.save_pretrained(tmp_path / "source")
    monkeypatch.setattr(torch.onnx, "export", refuse)
    assert main(["export", "--model", str(tmp_path / "source"), "--output", str(tmp_path / "out")]) == 2
    told = "torch cannot export test_efficientnet to ONNX (no ONNX function for aten.unfold): nothing was exported"
    assert capsys.readouterr().err == f"aimonk-hf: {told}\n"


def test_the_command_writes_a_whole_model_folder(exported: Path, model: AimonkModel, sample: Path):
    written = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    onnx_files = {"onnx/model.onnx", "onnx/model_quantized.onnx", "onnx/comparison.json"}
    assert written == {"config.json", "model.safetensors", "README.md", "preprocessor_config.json", *onnx_files}
    assert AimonkModel.from_pretrained(exported).config == model.config
    report = json.loads((exported / "onnx" / "comparison.json").read_text())
    assert report["n_images"] == 60
    assert report["model.onnx"]["largest_score_difference"] < 1e-4
    assert report["model.onnx"]["auroc"] == pytest.approx(report["torch"]["auroc"], abs=1e-6)
    assert 1e-4 < report["model_quantized.onnx"]["largest_score_difference"] < 0.1
    assert report["model_quantized.onnx"]["auroc"] != report["torch"]["auroc"]


def test_the_small_file_is_small_and_its_grouped_convolutions_stay_float(exported: Path):
    sizes = [(exported / "onnx" / name).stat().st_size for name in ("model.onnx", "model_quantized.onnx")]
    assert sizes[1] < sizes[0] / 2
    nodes = onnx.load(exported / "onnx" / "model_quantized.onnx").graph.node
    grouped = [node for node in nodes if any(part.name == "group" and part.i > 1 for part in node.attribute)]
    assert {node.op_type for node in grouped} == {"Conv"}
    assert "ConvInteger" in {node.op_type for node in nodes}


def test_timm_transformers_and_we_read_the_exported_folder_as_before(exported: Path, model: AimonkModel, sample: Path):
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    image = Image.open(pictures(sample)[0])
    pixels = model.transform(image)[None]
    transformer = AutoModelForImageClassification.from_pretrained(exported).eval()
    network = timm.create_model(f"local-dir:{exported}", pretrained=True).eval()
    theirs = AutoImageProcessor.from_pretrained(exported)(image, return_tensors="pt")["pixel_values"]
    assert torch.allclose(theirs, pixels, atol=1e-6)
    with torch.no_grad():
        expected = model(pixels).logits
        assert torch.allclose(transformer(pixels).logits, expected, atol=1e-5)
        assert torch.allclose(network(pixels), expected, atol=1e-5)


def test_preprocessing_in_the_words_of_transformers_js():
    side = {"height": 160, "width": 160}
    squash = preprocessor_config(make_model().config)
    assert "image_processor_type" not in squash
    assert (squash["size"], squash["do_center_crop"]) == (side, False)
    center = preprocessor_config(make_model(crop_mode="center", crop_pct=0.875, mean=[0.1, 0.2, 0.3]).config)
    assert (center["size"], center["do_center_crop"]) == ({"shortest_edge": 182}, True)
    assert (center["crop_size"], center["image_mean"]) == (side, [0.1, 0.2, 0.3])
    assert preprocessor_config(make_model(crop_mode="border").config) is None


def test_another_model_is_not_overwritten_and_a_stale_export_not_pushed(exported: Path, tmp_path: Path, capsys):
    folder = shutil.copytree(exported, tmp_path / "model")
    other = make_model(seed=1)
    with pytest.raises(AimonkError, match="holds another model: name another --output"):
        export_folder(other, folder)
    stale = (folder / "onnx" / "model.onnx").read_bytes()
    other.save_pretrained(folder)
    assert not (folder / "onnx").exists(), "the old weights' files have gone"
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(stale)
    told = r"model\.onnx is of other weights: run aimonk-hf export again, or delete onnx/"
    with pytest.raises(AimonkError, match=told):
        push_model_folder(folder, "user/model")
    assert main(["export", "--model", str(folder), "--output", str(folder)]) == 0  # in place
    assert f"written:  {folder / 'onnx' / 'model.onnx'}" in capsys.readouterr().out
    assert [path.name for path in (folder / "onnx").iterdir()] == ["model.onnx"]


def test_an_export_that_computes_something_else_is_refused(monkeypatch, tmp_path: Path):
    original, other = export._export_network, make_model("test_resnet", seed=1)
    monkeypatch.setattr(export, "_export_network", lambda model, *rest: original(other, *rest))
    with pytest.raises(AimonkError, match="onnxruntime and torch disagree by .* on test_resnet: nothing was exported"):
        export_folder(make_model("test_resnet"), tmp_path / "model")
    assert not (tmp_path / "model" / "onnx").exists()


def sized_pictures(sample: Path, folder: Path) -> list[Path]:
    """The same images at the model's size, where no two resizing filters can differ, and one at its own size."""
    paths = [folder / path.name for path in pictures(sample)[:3]]
    for path in paths:
        Image.open(sample / "images" / path.name).convert("RGB").resize((160, 160)).save(path)
    return [*paths, pictures(sample)[0]]


@pytest.mark.parametrize("dtype", ["fp32", "q8"])
def test_node_gives_the_same_scores(exported: Path, model: AimonkModel, sample: Path, tmp_path: Path, dtype: str):
    paths = sized_pictures(sample, tmp_path)
    command, environment = ["node", "predict.mjs", str(exported), *map(str, paths)], os.environ | {"DTYPE": dtype}
    run = subprocess.run(command, cwd=install_transformers_js(), env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    found = [json.loads(line) for line in run.stdout.splitlines()]
    for row, expected in zip(found, model.predict(paths), strict=True):
        is_exact = dtype == "fp32" and row["image"] != str(paths[-1])
        assert row["scores"] == pytest.approx(expected.scores, abs=1e-4 if is_exact else 0.1)
        assert not is_exact or row["attributes"] == expected.attributes


@pytest.fixture
def website(exported: Path, tmp_path: Path):
    """The address of the example's page, with a model and Transformers.js beside it."""
    site, cache = tmp_path / "site", install_transformers_js()
    site.mkdir()
    shutil.copy(cache / "index.html", site)
    (site / "node_modules").symlink_to(cache / "node_modules")
    (site / "model").symlink_to(exported)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_the_page_runs_the_model_in_a_browser(website: str, model: AimonkModel, sample: Path, tmp_path: Path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("chromium is not installed")
    from playwright.sync_api import expect, sync_playwright

    paths = sized_pictures(sample, tmp_path)
    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(website)
        status = page.get_by_role("status")
        expect(status).to_have_text("Ready.", timeout=60_000)
        for path in paths[:2]:
            page.set_input_files("#file", {"name": "notes.png", "mimeType": "image/png", "buffer": b"no picture"})
            expect(status).to_contain_text("notes.png cannot be read as an image")
            page.set_input_files("#file", path)
            expected = model.predict(path)
            expect(status).to_have_text(f"Present: {', '.join(expected.attributes) or 'none'}", timeout=30_000)
            rows = page.locator("#scores tr").all_inner_texts()
            found = {name: float(score) for name, score in (re.split(r"\s+", row.strip()) for row in rows)}
            assert found == pytest.approx(expected.scores, abs=2e-3)
        page.goto(f"{website}?model=none")
        expect(page.get_by_role("status")).to_contain_text("The model none cannot be loaded", timeout=30_000)
        browser.close()
    assert asked
    assert all(url.startswith((website, "blob:", "data:")) for url in asked), "the page asked somebody else"
