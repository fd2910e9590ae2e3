"""Folders that timm, transformers and authors of taggers saved: loaded, converted or refused; equal logits."""

import csv
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from loopback_hub import LoopbackHub, Repo
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf
from torch import Tensor, nn

from aimonk_hf import AimonkModel
from aimonk_hf.cli.main import main
from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.convert import convert_folder
from aimonk_hf.storage import read_json, write_json

NAMES = ["collar", "belt"]
MULTI_LABEL = {"label_names": NAMES, "problem_type": "multi_label_classification"}
PIXELS = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


def logits(network: nn.Module, pixels: Tensor = PIXELS) -> Tensor:
    with torch.no_grad():
        found = network.eval()(pixels)
    return getattr(found, "logits", found)


def timm_network(name: str = "test_efficientnet", **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=2, **arguments).eval()


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "pickle"])
@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_a_folder_of_timm_is_an_architecture(name: str, safe: bool, tmp_path: Path) -> None:
    pool = {"test_efficientnet": "max", "test_vit": "avg"}[name]  # a changed pooling changes the network
    network = timm_network(name, global_pool=pool, in_chans=3)
    # as timm writes them by itself since 1.0.31
    args = {"num_classes": 2, "in_chans": 3, "global_pool": pool}
    save_for_hf(network, tmp_path, safe_serialization=safe, model_config={"label_names": NAMES}, model_args=args)
    same = AimonkModel.from_timm(f"local-dir:{tmp_path}", NAMES)
    torch.testing.assert_close(logits(same, torch.zeros(1, 3, 160, 160)), logits(network, torch.zeros(1, 3, 160, 160)))
    assert "num_classes" not in same.config.model_args
    assert "state_dict" not in same.timm_model.pretrained_cfg
    other = AimonkModel.from_timm(f"local-dir:{tmp_path}", ["a", "b", "c"])
    weights = dict(network.named_parameters())
    fresh = [key for key, value in other.timm_model.named_parameters() if not torch.equal(value, weights[key])]
    assert {key.split(".")[0] for key in fresh} <= {"classifier", "head"}
    assert not torch.equal(
        next(AimonkModel.from_timm(f"local-dir:{tmp_path}", NAMES, pretrained=False).parameters()),
        next(network.parameters()),
    )


def test_a_folder_of_timm_that_tells_its_problem_loads(tmp_path: Path) -> None:
    network = timm_network(global_pool="max", in_chans=3)
    args = {"num_classes": 2, "in_chans": 3, "global_pool": "max"}
    save_for_hf(network, tmp_path, model_config=MULTI_LABEL, safe_serialization=True, model_args=args)
    model = AimonkModel.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(model), logits(network))
    assert (model.config.attributes, model.config.threshold_values) == (NAMES, [0.5, 0.5])
    model.save_pretrained(tmp_path / "ours")
    assert "num_classes" not in read_json(tmp_path / "ours/config.json")["model_args"]
    by_timm = timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True)
    torch.testing.assert_close(logits(by_timm), logits(network))


def test_a_round_trip_through_timm_asks_for_thresholds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = AimonkModel.from_timm("test_efficientnet", NAMES, pretrained=False, drop_rate=0.3)
    model.config.thresholds = {"collar": 0.25, "belt": 0.75}
    model.save_pretrained(tmp_path / "ours")
    save_for_hf(timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True), tmp_path / "timms")
    assert main(["predict", "x.jpg", "--model", str(tmp_path / "timms")]) == 2
    assert "problem_type None: not one sigmoid per attribute; if it has one, convert it: aimonk-hf convert FOLDER" in (
        capsys.readouterr().err
    )
    convert = ["convert", str(tmp_path / "timms"), "--no-onnx", "--output"]
    assert main([*convert, str(tmp_path / "plain")]) == 0
    told = capsys.readouterr().out
    assert "(collar, belt; thresholds 0.5)" in told
    assert f"aimonk-hf tune --model {tmp_path / 'plain'} --data-dir DATA, or convert with --threshold" in told
    assert main([*convert, str(tmp_path / "new"), "--threshold", "collar=0.25", "--threshold", "belt=0.75"]) == 0
    assert "with its thresholds" in capsys.readouterr().out
    again = AimonkModel.from_pretrained(tmp_path / "new")
    torch.testing.assert_close(logits(again), logits(model))
    assert again.config.thresholds == model.config.thresholds
    assert again.config.pretrained_cfg == model.config.pretrained_cfg
    write_json(tmp_path / "timms/config.json", read_json(tmp_path / "timms/config.json") | MULTI_LABEL)
    with pytest.raises(AimonkError, match="no model.safetensors, only a pickle: aimonk-hf convert .*timms --output"):
        AimonkModel.from_pretrained(tmp_path / "timms")


@pytest.mark.parametrize("problem", ["multi_label_classification", None, "single_label_classification"])
def test_a_wrapper_that_transformers_saved_from_a_config(problem: str | None, tmp_path: Path) -> None:
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    torch.manual_seed(0)
    settings = {"num_labels": 2, "problem_type": problem, "id2label": dict(enumerate(NAMES))}
    config = TimmWrapperConfig(architecture="test_resnet", **settings)
    wrapper = TimmWrapperForImageClassification(config).eval()
    wrapper.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")  # transformers 5.0 wrote no prefix
    state = {f"timm_model.{name.removeprefix('timm_model.')}": value for name, value in state.items()}
    save_file(state, tmp_path / "model.safetensors")
    started = AimonkModel.from_timm(f"local-dir:{tmp_path}", NAMES)
    torch.testing.assert_close(logits(started), logits(wrapper))
    if problem == "multi_label_classification":
        models = [AimonkModel.from_pretrained(tmp_path), convert_folder(tmp_path)]
    else:
        with pytest.raises(AimonkError, match="not one sigmoid per attribute"):
            AimonkModel.from_pretrained(tmp_path)
        models = [convert_folder(tmp_path)] if problem is None else []
    for model in models:
        torch.testing.assert_close(logits(model), logits(wrapper))
        assert model.config.attributes == NAMES
        assert model.transform.size == (160, 160)
    if problem == "single_label_classification":
        with pytest.raises(AimonkError, match="its scores are no sigmoids; train from it instead, with train --arch"):
            convert_folder(tmp_path)


def test_what_transformers_saves_of_ours_keeps_its_head_as_an_architecture(
    tiny_model: AimonkModel, tmp_path: Path
) -> None:
    from transformers import AutoModelForImageClassification

    tiny_model.save_pretrained(tmp_path / "ours")
    AutoModelForImageClassification.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    started = AimonkModel.from_timm(f"local-dir:{tmp_path / 'theirs'}", tiny_model.config.attributes)
    torch.testing.assert_close(logits(started), logits(tiny_model))
    again = AimonkModel.from_pretrained(tmp_path / "theirs")
    torch.testing.assert_close(logits(again), logits(tiny_model))
    assert again.config.thresholds == tiny_model.config.thresholds


TAGS = [
    {"tag_id": 1, "name": "general", "category": 9, "count": 100, "best_threshold": 0.25},
    {"tag_id": 2, "name": "long_hair", "category": 0, "count": 80, "best_threshold": 0.375},
    {"tag_id": 3, "name": ">_<, or so", "category": 0, "count": 3, "best_threshold": ""},
]


def tagger(folder: Path, columns: str = "tag_id name category count best_threshold", **changes: Any) -> nn.Module:
    """Write a tagger's repository; its network and images as wd-tagger's: BGR, mean and std 0.5, a larger test size."""
    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet", num_classes=3).eval()
    network.pretrained_cfg |= {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": (3, 64, 64), "crop_pct": 1.0}
    save_for_hf(network, folder, safe_serialization=True, model_config={"tags": [tag["name"] for tag in TAGS]})
    config = read_json(folder / "config.json")
    config["pretrained_cfg"] |= {"test_input_size": [3, 96, 96]}
    write_json(folder / "config.json", config)
    with open(folder / "selected_tags.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, columns.split(), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(tag | changes for tag in TAGS)
    return network


def test_a_tagger_of_imgutils_keeps_names_thresholds_and_pixels(
    hub: LoopbackHub, tmp_path: Path, picture: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tagger").mkdir()
    network = tagger(tmp_path / "tagger")
    repository = hub.repos["model", "author/tagger"] = Repo(private=False)
    repository.commit("main", {path.name: path.read_bytes() for path in (tmp_path / "tagger").iterdir()}, "a tagger")
    assert main(["convert", "author/tagger", "--output", str(tmp_path / "new")]) == 0
    assert "(general, long_hair, >_<, or so; with its thresholds)" in capsys.readouterr().out
    model = AimonkModel.from_pretrained(tmp_path / "new")
    assert model.config.thresholds == {"general": 0.25, "long_hair": 0.375, ">_<, or so": 0.5}
    assert (tmp_path / "new/onnx/model.onnx").is_file()
    square = picture.resize((200, 200))
    cfg = read_json(tmp_path / "tagger/config.json")["pretrained_cfg"]
    pixels = create_transform(**resolve_data_config({}, pretrained_cfg=cfg, use_test_size=True))(square)
    assert torch.equal(model.transform(square), pixels)
    torch.testing.assert_close(logits(model, pixels[None]), logits(network, pixels[None]))
    edges = model.transform(picture)[:, [0, -1]]  # a wider image is seen whole, with bars
    assert torch.allclose(edges, torch.tensor(0.0), atol=0.01)


def test_a_tagger_of_bgr_pixels_takes_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = tagger(tmp_path, "tag_id name category count")
    assert torch.equal(logits(convert_folder(tmp_path)), logits(network))
    assert torch.allclose(logits(convert_folder(tmp_path, bgr=True)), logits(network, PIXELS.flip(1)), atol=1e-5)
    write_json(tmp_path / "sw_jax_cv_config.json", {"image_size": 64})
    assert main(["convert", str(tmp_path), "--output", str(tmp_path / "new"), "--no-onnx", "--threshold", "0.375"]) == 0
    model = AimonkModel.from_pretrained(tmp_path / "new")
    assert torch.allclose(logits(model), logits(network, PIXELS.flip(1)), atol=1e-5)
    assert model.config.threshold_values == [0.375] * 3
    assert torch.equal(logits(convert_folder(tmp_path, bgr=False)), logits(network))


@pytest.mark.parametrize(
    ("columns", "changes", "message"),
    [
        ("tag_id category", {}, "selected_tags.csv has no column `name`: not a tagger's list of labels"),
        (
            "name best_threshold",
            {"best_threshold": "high"},
            ":2: best_threshold must be a number, found 'high'",
        ),
        ("name best_threshold", {"best_threshold": 7}, "The threshold of general must lie between 0 and 1, found 7.0"),
        (
            "name best_threshold",
            {"best_threshold": "nan"},
            "of general must lie between 0 and 1, found nan",
        ),
        ("name", {"name": "same"}, "The attribute name 'same' is there twice"),
    ],
)
def test_lists_of_tags_that_cannot_be_used_are_named(columns: str, changes: dict, message: str, tmp_path: Path) -> None:
    tagger(tmp_path, columns, **changes)
    with pytest.raises(AimonkError, match=message):
        convert_folder(tmp_path)


def test_folders_and_flags_that_do_not_fit_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tagger(tmp_path)
    with pytest.raises(AimonkError, match="has 3 outputs but 2 attributes were named: a, b"):
        convert_folder(tmp_path, ["a", "b"])
    renamed = convert_folder(tmp_path, ["a", "b", "c"])
    assert renamed.config.thresholds == {"a": 0.25, "b": 0.375, "c": 0.5}
    weights = str(tmp_path / "model.safetensors")
    out = ["--output", str(tmp_path / "new"), "--no-onnx"]
    assert main(["convert", weights, *out]) == 2
    assert "does not tell its network: add --architecture, such as resnet18" in capsys.readouterr().err
    assert main(["convert", weights, *out, "--architecture", "test_efficientnet", "--bgr"]) == 2
    assert "--bgr is about a folder" in capsys.readouterr().err
    assert main(["convert", str(tmp_path), *out, "--threshold", "nobody=0.5"]) == 2
    assert "thresholds for unknown attributes: nobody" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert main(["convert", weights, *out, "--architecture", "test_efficientnet"]) == 0  # a safetensors file is one too
    for key, value, message in (
        ("model_args", [1], "model_args must be a mapping, found list"),
        ("architecture", "resnet_nonsense", "has no architecture 'resnet_nonsense'"),
        ("num_classes", 4, "has 4 outputs but 3 attributes"),
    ):
        config = read_json(tmp_path / "config.json")
        write_json(tmp_path / "config.json", config | {key: value})
        with pytest.raises(AimonkError, match=message):
            convert_folder(tmp_path)
        write_json(tmp_path / "config.json", config)
    save_file({"conv_stem.weight": torch.zeros(2)}, weights)
    with pytest.raises(AimonkError, match="holds far fewer numbers than the arch|does not fit its arch"):
        convert_folder(tmp_path)
