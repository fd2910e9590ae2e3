"""Prediction without torch: equal pixels, equal scores, and sentences for files that cannot be used."""

import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image

from aimonk_hf import AimonkConfig, AimonkModel, AimonkPredictor
from aimonk_hf.cli.main import main
from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling import devices
from aimonk_hf.modeling.processing import EvalTransform


def test_pixels_are_timms_to_the_last_bit() -> None:
    rng, choose = np.random.default_rng(0), random.Random(0)
    for _ in range(400):
        size = (choose.randint(20, 300), choose.randint(20, 300))
        image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        height = choose.randint(16, 96)
        cfg = {
            "input_size": (3, height, choose.choice([height, choose.randint(16, 96)])),
            "interpolation": choose.choice(["bilinear", "bicubic", "nearest", "lanczos", "box", "hamming"]),
            "crop_mode": choose.choice(["center", "squash", "border"]),
            "crop_pct": choose.choice([1.0, 0.875, 0.9, 0.5, 1.1]),
            "mean": (0.5, 0.4, 0.31),
            "std": (0.2, 0.3, 0.25),
        }
        for key in [key for key in cfg if choose.random() < 0.1]:
            del cfg[key]
        theirs = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=cfg or {"mean": None}))
        ours = EvalTransform(cfg)
        assert np.array_equal(ours.normalize(ours.pixels(image)[None])[0], theirs(image).numpy()), (size, cfg)


def test_onnx_needs_neither_torch_nor_timm_and_gives_torchs_scores(
    exported: Path, tiny_model: AimonkModel, sample: Path
) -> None:
    script = (
        "import json, sys\nfrom aimonk_hf import AimonkPredictor\n"
        "predictor = AimonkPredictor.from_pretrained(sys.argv[1])\n"
        "found = [one.scores for one in predictor.predict(sys.argv[2:])]\n"
        "heavy = sorted({'torch', 'timm', 'scipy', 'sklearn', 'matplotlib', 'huggingface_hub'} & set(sys.modules))\n"
        "print(json.dumps([predictor.backend, found, heavy]))"
    )
    paths = [str(path) for path in sorted((sample / "images").iterdir())[:20]]
    ended = subprocess.run([sys.executable, "-c", script, exported, *paths], capture_output=True, text=True, check=True)
    backend, found, heavy = json.loads(ended.stdout)
    assert (backend, heavy) == ("onnx", [])
    for own, expected in zip(found, tiny_model.predict(paths), strict=True):
        assert own == pytest.approx(expected.scores, abs=1e-4)


def test_both_backends_give_the_same_predictions_options_and_repr(exported: Path, sample: Path) -> None:
    path = sorted((sample / "images").iterdir())[0]
    onnx, by_torch = (AimonkPredictor.from_pretrained(exported, backend=name) for name in ("onnx", "torch"))
    assert (onnx.backend, by_torch.backend, onnx.device, by_torch.device) == ("onnx", "torch", "cpu", "cpu")
    assert onnx.thresholds == by_torch.thresholds
    assert onnx.config.attributes == by_torch.config.attributes
    for options in ({}, {"tta": True}, {"thresholds": 0.3}, {"batch_size": 1, "workers": 1}):
        one, other = onnx.predict(path, **options), by_torch.predict(path, **options)
        assert one.scores == pytest.approx(other.scores, abs=1e-4)
        assert (one.thresholds, one.image) == (other.thresholds, other.image)
    assert "<table" in onnx.predict(np.zeros((40, 30, 3), np.uint8))._repr_html_()
    assert onnx.predict([b"no image", path], on_error="skip")[0] is None
    int8 = AimonkPredictor.from_pretrained(exported, precision="int8").predict(path).scores
    assert int8 != onnx.predict(path).scores
    assert int8 == pytest.approx(onnx.predict(path).scores, abs=0.1)


def test_class_activations_sum_up_to_the_logits(exported: Path, tiny_model: AimonkModel, sample: Path) -> None:
    predictor = AimonkPredictor.from_pretrained(exported, backend="onnx")
    paths = sorted((sample / "images").iterdir())[:2]
    pixels = np.stack([predictor.transform.pixels(Image.open(path)) for path in paths])
    maps = predictor.class_activations(pixels)
    bias = tiny_model.timm_model.get_classifier().bias.detach().numpy()
    assert maps.mean((2, 3)) + bias == pytest.approx(predictor.network().compute(pixels), abs=1e-4)


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported, tmp_path / "model")


def test_a_file_of_other_weights_is_said_once_and_not_used(folder: Path, tiny_model: AimonkModel, caplog) -> None:
    config = json.loads((folder / "config.json").read_text())
    stale = folder / "onnx" / "model.onnx"
    stale.write_bytes(stale.read_bytes().replace(config["weights_sha256"].encode(), b"0" * 64))
    for _ in range(2):
        assert AimonkPredictor.from_pretrained(folder).backend == "torch"
    assert [record.message.count("was exported from other weights") for record in caplog.records] == [1]
    with pytest.raises(AimonkError, match=r"model\.onnx was exported from other weights; write it again with"):
        AimonkPredictor.from_pretrained(folder, backend="onnx")


def other_outputs(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    names = config["label_names"][:-1]
    kept = {"num_classes", "label_names", "id2label", "label2id", "thresholds"}
    config = {key: value for key, value in config.items() if key not in kept}
    cfg = config["pretrained_cfg"] | {"num_classes": len(names)}
    path.write_text(json.dumps(config | {"label_names": names, "pretrained_cfg": cfg}))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: (folder / "onnx/model.onnx").write_bytes(b"no protobuf"), r"model\.onnx cannot be read: .*"),
        (lambda folder: (folder / "onnx/model.onnx").write_bytes(b""), r"model\.onnx cannot be read: .*"),
        (other_outputs, r"model\.onnx computes \d+ outputs from images of .*; config\.json has .*"),
        (
            lambda folder: (folder / "onnx/model.onnx").unlink(),
            r"has no onnx/model\.onnx; write it with: aimonk-hf export --model .*",
        ),
    ],
)
def test_an_unusable_file_is_one_sentence(spoil, told: str, folder: Path, sample: Path, capsys) -> None:
    spoil(folder)
    image = str(sorted((sample / "images").iterdir())[0])
    assert main(["predict", image, "--model", str(folder), "--backend", "onnx"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(told, error)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"backend": "tensorrt"}, "backend must be auto, onnx or torch, found 'tensorrt'"),
        ({"precision": "int4"}, "precision must be auto, float32, bf16, fp16 or int8, found 'int4'"),
        ({"precision": "bf16", "backend": "onnx"}, "backend onnx computes in float32 or int8, found precision 'bf16'"),
        ({"precision": "int8", "backend": "torch"}, "precision must be auto, float32, bf16 or fp16, found 'int8'"),
        ({"device": "cuda:7"}, "--device cuda:7 cannot be used"),
        ({"device": "toaster"}, "--device toaster cannot be used"),
    ],
)
def test_wrong_options_are_one_sentence(options: dict, told: str, exported: Path) -> None:
    with pytest.raises(AimonkError, match=told):
        AimonkPredictor.from_pretrained(exported, **options)


@pytest.mark.parametrize(
    ("bf16", "precision", "backend"), [(True, "float32", "onnx"), (True, "auto", "torch"), (False, "auto", "onnx")]
)
def test_auto_is_torch_where_the_processor_gains_by_bf16(
    bf16: bool, precision: str, backend: str, exported: Path, monkeypatch
) -> None:
    monkeypatch.setattr("aimonk_hf.modeling.predictor.is_faster_in_bf16", lambda: bf16)
    assert AimonkPredictor.from_pretrained(exported, precision=precision).backend == backend


def test_without_onnxruntime_torch_computes(exported: Path, monkeypatch, caplog) -> None:
    from aimonk_hf.modeling import predictor

    find = predictor.find_spec
    monkeypatch.setattr(predictor, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    assert AimonkPredictor.from_pretrained(exported).backend == "torch"
    assert "onnxruntime is not installed: pip install onnxruntime; torch computes instead" in caplog.text


def test_an_accelerator_is_looked_for_only_where_a_driver_is_and_each_process_has_one(exported: Path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(devices, "_DRIVERS", ("/nowhere",))
    assert devices.resolve_device("auto") == "cpu"
    monkeypatch.setattr(devices, "_DRIVERS", ("/dev/null",))
    assert (devices.resolve_device("auto"), devices.resolve_device("cpu")) == ("cuda", "cpu")
    assert AimonkPredictor.from_pretrained(exported, backend="onnx").device == "cpu"
    for rank, device in (("0", "cuda:0"), ("1", "cuda:1"), ("2", "cuda:0")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert devices.resolve_device("auto") == device


def test_a_saved_folder_keeps_the_files_of_its_weights_only(folder: Path, tmp_path: Path, caplog) -> None:
    model = AimonkModel.from_pretrained(folder)
    model.config.thresholds = dict.fromkeys(model.config.attributes, 0.25)
    model.save_pretrained(tmp_path / "copy")
    copied = AimonkPredictor.from_pretrained(tmp_path / "copy", backend="onnx")
    assert set(copied.thresholds.values()) == {0.25}
    with torch.no_grad():
        model.timm_model.get_classifier().bias.add_(1)
    model.save_pretrained(folder)
    assert "is of other weights and was removed" in caplog.text
    assert not (folder / "onnx").exists()
    assert not (folder / "preprocessor_config.json").exists()
    model.save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other" / "onnx").exists()


@pytest.mark.parametrize("kind", [AimonkConfig, AimonkModel, AimonkPredictor])
def test_an_unknown_option_of_loading_is_refused_for_a_local_folder_too(kind: Any, tiny_model: AimonkModel, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="unexpected keyword argument 'revison'"):
        kind.from_pretrained(tmp_path, revison="v1")
