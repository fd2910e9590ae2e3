"""`train --push-to-hub`: the finished run folder's model goes up, and what would stop it is said before the run."""

from pathlib import Path

import torch
from hub_support import hub
from loopback_hub import LoopbackHub
from PIL import Image

from aimonk_hf import AimonkModel
from aimonk_hf.cli.main import main

__all__ = ["hub"]  # a fixture

FLAGS = [
    "--architecture",
    "test_resnet",
    "--no-pretrained",
    "--image-size",
    "32",
    "--epochs",
    "1",
    "--num-workers",
    "0",
]


def test_a_finished_run_is_pushed(hub: LoopbackHub, sample: Path, tmp_path: Path, capsys):
    command = [
        "train",
        "--data-dir",
        str(sample),
        "--output-dir",
        str(tmp_path / "run"),
        *FLAGS,
        "--push-to-hub",
        "user/run",
    ]
    assert main(command) == 0
    repo = hub.repos["model", "user/run"]
    assert f"pushed:   {hub.url}/user/run/commit/{repo.branches['main']}" in capsys.readouterr().out
    assert set(repo.files()) == {".gitattributes", "config.json", "model.safetensors", "README.md", "metrics.json"}
    pushed, kept = AimonkModel.from_pretrained("user/run"), AimonkModel.from_pretrained(tmp_path / "run")
    assert pushed.metrics == kept.metrics
    assert pushed.config.thresholds == kept.config.thresholds
    for name, tensor in kept.state_dict().items():
        assert torch.equal(pushed.state_dict()[name], tensor)


def test_a_wrong_token_is_said_before_the_run(hub: LoopbackHub, sample: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    command = [
        "train",
        "--data-dir",
        str(sample),
        "--output-dir",
        str(tmp_path / "run"),
        *FLAGS,
        "--push-to-hub",
        "user/run",
    ]
    assert main(command) == 2
    assert (
        "cannot push to user/run on the Hub: it does not accept the token; log in with `hf auth login`"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "run" / "history.csv").exists()


def test_a_run_is_pushed_to_a_private_repository_and_never_to_a_public_one(
    hub: LoopbackHub, sample: Path, tmp_path: Path, capsys
):
    command = ["train", "--data-dir", str(sample), "--output-dir", str(tmp_path / "run"), *FLAGS]
    assert main([*command, "--private"]) == 2
    assert "--private is about the repository of --push-to-hub" in capsys.readouterr().err
    AimonkModel.from_timm("test_resnet", ["a"], pretrained=False, image_size=32).push_to_hub("user/open")
    before = len(hub.repos["model", "user/open"].files())
    assert main([*command, "--push-to-hub", "user/open", "--private"]) == 2
    assert "user/open exists and is public: make it private in its settings" in capsys.readouterr().err
    assert not (tmp_path / "run" / "history.csv").exists()
    assert len(hub.repos["model", "user/open"].files()) == before
    assert main([*command, "--folds", "2", "--push-to-hub", "user/shut", "--private"]) == 0
    assert hub.repos["model", "user/shut"].private
    assert "model.safetensors" in hub.repos["model", "user/shut"].files()


def test_predict_keeps_the_callers_picture_and_a_stream_none(tiny_model: AimonkModel, picture: Image.Image):
    assert tiny_model.predict(picture).source is picture
    assert [prediction.source is picture for prediction in tiny_model.predict([picture, picture])] == [True, True]
    assert [prediction.source for _, prediction in tiny_model.stream([picture])] == [None]
    assert "<img" in tiny_model.predict(picture)._repr_html_()
