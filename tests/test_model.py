"""One saved folder, three readers; round trips; what is refused on loading."""

import json
import socket
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from aimonk_hf import AimonkConfig, AimonkModel
from aimonk_hf.errors import AimonkError, ImageError
from aimonk_hf.evaluation.report import build_report
from aimonk_hf.modeling.losses import masked_bce_with_logits

NAMES = ["collar", "long sleeve", "red"]


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("architecture", "model_args"),
    [
        ("resnet18", {"drop_rate": 0.3}),
        ("efficientnet_b0", {}),
        ("mobilenetv2_100", {"pad_type": "same", "drop_rate": 0.2}),
        ("test_vit", {}),
        ("coat_tiny", {}),  # its blocks share tensors
    ],
)
def test_three_readers_agree(architecture: str, model_args: dict, tmp_path: Path, picture: Image.Image):
    from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

    torch.manual_seed(0)
    model = AimonkModel.from_timm(
        architecture,
        NAMES,
        pretrained=False,
        image_size=96,
        preprocessing={"crop_mode": "squash", "crop_pct": 1.0},
        **model_args,
    ).eval()
    torch.nn.init.normal_(model.timm_model.get_classifier().weight, std=0.5)  # timm starts some heads at zero
    model.config.thresholds["red"] = 0.25
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    picture.save(tmp_path / "picture.png")

    ours = AimonkModel.from_pretrained(folder)
    assert not ours.training
    assert (ours.config.attributes, ours.config.thresholds) == (NAMES, {"collar": 0.5, "long sleeve": 0.5, "red": 0.25})
    pixels = ours.transform(picture)[None]
    with torch.no_grad():
        logits = model(model.transform(picture)[None]).logits
        torch.testing.assert_close(ours(pixels).logits, logits, rtol=0, atol=1e-6)

        by_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        data_config = timm.data.resolve_model_data_config(by_timm)
        timm_pixels = timm.data.create_transform(**data_config, is_training=False)(picture)[None]
        assert torch.equal(timm_pixels, pixels)
        torch.testing.assert_close(by_timm(timm_pixels), logits, rtol=0, atol=1e-5)

        by_transformers = AutoModelForImageClassification.from_pretrained(folder).eval()
        processed = AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="pt")["pixel_values"]
        assert torch.equal(processed, pixels)
        torch.testing.assert_close(by_transformers(processed).logits, logits, rtol=0, atol=1e-5)
    assert list(by_transformers.config.id2label.values()) == NAMES

    scores = {
        row["label"]: row["score"]
        for row in pipeline("image-classification", str(folder), top_k=1000)(str(tmp_path / "picture.png"))
    }
    prediction = ours.predict(tmp_path / "picture.png")
    assert list(prediction.scores) == NAMES
    for name in NAMES:
        assert prediction.scores[name] == pytest.approx(scores[name], abs=1e-5)
        assert prediction.scores[name] == pytest.approx(logits.sigmoid()[0, NAMES.index(name)].item(), abs=1e-5)


def test_folders_that_transformers_or_we_save_again_keep_thresholds_and_unknown_keys(
    folder: Path, tmp_path: Path, tiny_model: AimonkModel
):
    from transformers import AutoModelForImageClassification

    change_config(folder, annotator="Ada")
    (folder / "metrics.json").write_text('{"n_images": 3}')
    AutoModelForImageClassification.from_pretrained(folder).save_pretrained(tmp_path / "theirs")
    AimonkModel.from_pretrained(folder).save_pretrained(tmp_path / "ours")
    values = torch.randn(2, 3, 64, 64)
    for name in ("theirs", "ours"):
        again = AimonkModel.from_pretrained(tmp_path / name)
        assert again.config.thresholds == tiny_model.config.thresholds
        assert again.config.extra["annotator"] == "Ada"
        with torch.no_grad():
            torch.testing.assert_close(again(values).logits, tiny_model(values).logits)
    names = ["README.md", "config.json", "model.safetensors"]
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == names
    assert json.loads((tmp_path / "ours/config.json").read_text()) == json.loads((folder / "config.json").read_text())
    assert (tmp_path / "ours/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_the_card_shows_metrics_kept_through_load_and_save(folder: Path, tmp_path: Path):
    model = AimonkModel.from_pretrained(folder)
    labels, scores = np.eye(4, dtype=np.float32), np.linspace(0.1, 0.9, 16).reshape(4, 4)
    model.metrics = build_report(labels, scores, scores >= 0.5, model.config.attributes, model.config.thresholds)
    model.save_pretrained(tmp_path / "b")
    AimonkModel.from_pretrained(tmp_path / "b").save_pretrained(tmp_path / "c")
    assert (tmp_path / "c" / "metrics.json").read_bytes() == (tmp_path / "b" / "metrics.json").read_bytes()
    card = (tmp_path / "c" / "README.md").read_text()
    assert "library_name: timm" in card
    assert "| everything present |" in card
    assert card.count("| sleeves |") == 1


def test_saving_over_a_model_replaces_its_files_and_keeps_others(folder: Path):
    (folder / "notes.txt").write_text("a file of this user")
    AimonkModel.from_timm("test_resnet", ["x"], pretrained=False).save_pretrained(folder)
    assert AimonkModel.from_pretrained(folder).config.attributes == ["x"]
    assert (folder / "notes.txt").read_text() == "a file of this user"
    assert not list(folder.parent.glob(".*"))
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1, "as the umask lets"


def test_forward_gives_the_masked_loss_and_logits_in_the_order_of_transformers(tiny_model: AimonkModel):
    output = tiny_model(torch.randn(2, 3, 64, 64), labels=torch.tensor([[1.0, float("nan"), 0.0, 1.0]] * 2))
    assert output.logits.shape == (2, 4)
    assert torch.isfinite(output.loss)
    loss, logits = output
    assert (output[0], output[1]) == (loss, logits) == (output.loss, output.logits)
    plain = tiny_model(torch.randn(2, 3, 64, 64))
    assert plain.loss is None
    assert plain[0] is plain.logits


def test_transformers_trainer_trains_evaluates_and_predicts(tmp_path: Path):
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(0)
    model = AimonkModel.from_timm("test_resnet", NAMES, pretrained=False, image_size=32)
    pixels, labels = torch.randn(24, 3, 32, 32), (torch.rand(24, 3) < 0.5).float()
    labels[::3, 1] = torch.nan
    rows = [{"pixel_values": values, "labels": label} for values, label in zip(pixels, labels, strict=True)]
    arguments = TrainingArguments(
        tmp_path / "out", max_steps=10, per_device_train_batch_size=8, learning_rate=1e-2, report_to=[], use_cpu=True
    )
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    assert trainer.train().global_step == 10
    after = trainer.evaluate()["eval_loss"]
    assert after < before
    with torch.no_grad():
        assert after == pytest.approx(masked_bce_with_logits(model.eval()(pixels).logits, labels).item(), rel=0.05)
        found = trainer.predict([{"pixel_values": row["pixel_values"]} for row in rows]).predictions
        np.testing.assert_allclose(found, model(pixels).logits, atol=1e-5)


def test_load_state_dict_takes_the_keys_of_the_saved_file_and_of_the_module(folder: Path, tiny_model: AimonkModel):
    saved, own = load_file(folder / "model.safetensors"), tiny_model.state_dict()
    assert saved.keys() == {name.removeprefix("timm_model.") for name in own}
    for state in (saved, own):
        fresh = AimonkModel(tiny_model.config)
        assert fresh.load_state_dict(state) == ([], [])
        assert all(torch.equal(fresh.state_dict()[name], own[name]) for name in own)
    with pytest.raises(RuntimeError, match="fc.bias"):
        AimonkModel(tiny_model.config).load_state_dict({name: saved[name] for name in saved if name != "fc.bias"})


def test_loading_takes_a_subfolder_a_device_and_a_dtype(folder: Path, picture: Image.Image):
    model = AimonkModel.from_pretrained(folder.parent, subfolder="model", device="cpu", dtype=torch.float64)
    assert next(model.parameters()).dtype == torch.float64
    exact = AimonkModel.from_pretrained(folder).predict(picture).scores
    assert model.predict(picture).scores == pytest.approx(exact, abs=1e-6)


def test_a_config_loads_and_saves_alone(folder: Path, tmp_path: Path, tiny_model: AimonkModel):
    config = AimonkConfig.from_pretrained(folder)
    assert config.thresholds == tiny_model.config.thresholds
    config.thresholds["belt"] = 0.25
    config.save_pretrained(folder)
    assert AimonkModel.from_pretrained(folder).config.thresholds["belt"] == 0.25
    config.save_pretrained(tmp_path / "new")
    assert AimonkConfig.from_pretrained(tmp_path, subfolder="new") == config


def test_starting_from_a_saved_model_keeps_its_head_only_for_the_same_attributes(folder: Path, tiny_model: AimonkModel):
    same = AimonkModel.from_timm(f"local-dir:{folder}", tiny_model.config.attributes)
    other = AimonkModel.from_timm(f"local-dir:{folder}", ["a", "b", "c", "d"], drop_rate=0.2)
    fewer = AimonkModel.from_timm(f"local-dir:{folder}", ["a"])
    head = tiny_model.timm_model.get_classifier().weight
    assert torch.equal(same.timm_model.get_classifier().weight, head)
    assert not torch.equal(other.timm_model.get_classifier().weight, head)
    assert other.config.model_args == {"drop_rate": 0.2}
    for model in (same, other, fewer):
        assert torch.equal(model.timm_model.conv1[0].weight, tiny_model.timm_model.conv1[0].weight)


def test_predict_takes_every_kind_of_image_and_lists(tiny_model: AimonkModel, tmp_path: Path, picture: Image.Image):
    path = tmp_path / "a.png"
    picture.save(path)
    one = tiny_model.predict(path)
    assert (one.image, one.thresholds) == (str(path), tiny_model.config.thresholds)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    kinds = [str(path), picture, np.asarray(picture), path.read_bytes(), pixels]
    many = tiny_model.predict(kinds * 3, batch_size=5) + tiny_model.predict(image for image in kinds)
    many += [tiny_model.predict(pixels), *tiny_model.predict(torch.stack([pixels] * 2))]
    assert len(many) == 23
    for prediction in many:
        assert prediction.scores == pytest.approx(one.scores, abs=1e-6)
    assert tiny_model.predict([]) == []


def test_test_time_flip_averages_logits(tiny_model: AimonkModel, picture: Image.Image):
    mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    plain = np.array([list(one.scores.values()) for one in tiny_model.predict([picture, mirrored])])
    both = list(tiny_model.predict(picture, tta=True).scores.values())
    assert both == pytest.approx(1 / (1 + np.exp(-np.log(plain / (1 - plain)).mean(axis=0))), abs=1e-4)


def test_predict_keeps_the_callers_image_and_a_stream_none(tiny_model: AimonkModel, picture: Image.Image):
    assert [prediction.source is picture for prediction in tiny_model.predict([picture, picture])] == [True, True]
    assert [prediction.source for _, prediction in tiny_model.stream([picture])] == [None]
    assert "<img" in tiny_model.predict(torch.zeros(3, 8, 8, dtype=torch.uint8))._repr_html_()


def test_bad_images_raise_with_their_name_or_leave_a_gap(tiny_model: AimonkModel, tmp_path: Path, picture: Image.Image):
    (tmp_path / "bad.jpg").write_bytes(b"nonsense")
    with pytest.raises(ImageError, match=r"bad.jpg: not an image file"):
        tiny_model.predict([picture, tmp_path / "bad.jpg"])
    results = tiny_model.predict([picture, tmp_path / "bad.jpg", picture], on_error="skip")
    assert [result is None for result in results] == [False, True, False]
    assert tiny_model.predict(tmp_path / "bad.jpg", on_error="skip") is None
    with pytest.raises(ImageError, match=r"a tensor must be uint8 \[3, H, W\], found torch.float32 \[3, 8, 8\]"):
        tiny_model.predict(torch.zeros(3, 8, 8))
    with pytest.raises(AimonkError, match="on_error"):
        tiny_model.predict(picture, on_error="ignore")


def config(**changes: object):
    return lambda folder: change_config(folder, **changes)


def tensors(**changes: object):
    def change(folder: Path) -> None:
        state = load_file(folder / "model.safetensors") | {name.replace("_", "."): changes[name] for name in changes}
        state = {name: tensor for name, tensor in state.items() if tensor is not None}
        save_file(state, folder / "model.safetensors")

    return change


def content(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (content("config.json", b"{broken"), r"config.json is damaged"),
        (content("config.json", b"\xff\xfe"), r"config.json is damaged"),
        (content("config.json", b"[]"), r"a JSON object was expected"),
        (lambda folder: (folder / "config.json").unlink(), r"it has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"has no model.safetensors"),
        (content("model.safetensors", b"\x80\x04pickle"), r"model.safetensors is damaged"),
        (content("model.safetensors", b"{}"), r"model.safetensors is damaged"),
        (config(model_type="vit"), r"model_type 'vit'"),
        (config(problem_type="single_label_classification"), r"not one sigmoid per attribute"),
        (config(label_names=["a"]), r"num_classes is 4|unknown attributes"),
        (config(label_names=["a", "a", "b", "c"], thresholds={}), r"'a' is there twice"),
        (config(thresholds={"sleeves": 7}), r"must lie between 0 and 1"),
        (config(thresholds=[0.5]), r"thresholds must map"),
        (config(architecture="resnet_nonsense"), r"has no architecture"),
        (config(architecture="test_vit", weights_sha256=None), "does not fit its architecture"),
        (config(model_args={"no_such_argument": 1}), r"timm cannot build test_resnet"),
        (config(weights_sha256="0" * 64), r"come from two different saves"),
        (tensors(fc_bias=None), r"fc.bias holds nothing, wanted: floats of shape \[4\]"),
        (tensors(extra_weight=torch.zeros(1)), r"extra.weight holds floats of shape \[1\], wanted: nothing"),
        (tensors(fc_bias=torch.zeros(9)), r"fc.bias holds floats of shape \[9\], wanted: floats of shape \[4\]"),
    ],
)
def test_damaged_folders_are_named_in_one_line(folder: Path, damage, message: str):
    damage(folder)
    with pytest.raises(AimonkError, match=message) as caught:
        AimonkModel.from_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", r"timm .* has no architecture 'resnet19' \(did you mean"),
        ("resnet18", r"pass --no-pretrained .* --architecture local-dir:PATH"),
        ("local-dir:none", "Cannot read none/config.json: No such file"),
        ("user/repo", "use hf-hub:"),
        ("resnet18.zz", "timm has no weights 'resnet18.zz'; it has"),
    ],
)
def test_names_that_lead_nowhere_are_refused_without_a_network(name: str, message: str, monkeypatch):
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    with pytest.raises(AimonkError, match=message):
        AimonkModel.from_timm(name, NAMES)


@pytest.mark.parametrize(
    "values", [{"attributes": []}, {"attributes": ["a", " "]}, {"attributes": "ab"}, {"model_args": {"num_classes": 3}}]
)
def test_configurations_that_no_model_could_have(values: dict):
    with pytest.raises(AimonkError):
        AimonkConfig(**({"architecture": "resnet18", "attributes": ["a"]} | values))
