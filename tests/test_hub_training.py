"""`train --push-to-hub`: the finished run directory's model is pushed; obstacles are reported before the run."""

from pathlib import Path

import torch
from loopback_hub import LoopbackHub

from aimonk_hf import AimonkModel
from aimonk_hf.cli.main import main


def run(sample: Path, out: Path, flags: str) -> int:
    settings = "--architecture test_resnet --no-pretrained --image-size 32 --epochs 1 --num-workers 0"
    return main(f"train --data-dir {sample} --output-dir {out} {settings} {flags}".split())


def test_a_finished_run_is_pushed(hub: LoopbackHub, few: Path, tmp_path: Path, capsys):
    assert run(few, tmp_path / "run", "--folds 2 --push-to-hub user/run --private") == 0
    repo = hub.repos["model", "user/run"]
    assert f"pushed:   {hub.url}/user/run/commit/{repo.branches['main']}" in capsys.readouterr().out
    assert repo.private
    assert set(repo.files()) == {".gitattributes", "config.json", "model.safetensors", "README.md", "metrics.json"}
    pushed, kept = AimonkModel.from_pretrained("user/run"), AimonkModel.from_pretrained(tmp_path / "run")
    assert pushed.metrics == kept.metrics
    assert pushed.config.thresholds == kept.config.thresholds
    assert all(torch.equal(pushed.state_dict()[name], tensor) for name, tensor in kept.state_dict().items())


def test_obstacles_are_reported_before_the_run(hub: LoopbackHub, sample: Path, tmp_path: Path, monkeypatch, capsys):
    AimonkModel.from_timm("test_resnet", ["a"], pretrained=False, image_size=32).push_to_hub("user/open")
    before = hub.repos["model", "user/open"].files()
    for flags, token, message in (
        ("--private", None, "--private is about the repository of --push-to-hub"),
        ("--push-to-hub user/open --private", None, "user/open exists and is public: make it private in its settings"),
        ("--push-to-hub user/run", "hf_wrong", "Cannot push to user/run on the Hub: it does not accept the token"),
    ):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        assert run(sample, tmp_path / "run", flags) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run" / "history.csv").exists()
    assert hub.repos["model", "user/open"].files() == before


def test_a_run_starts_from_a_model_of_the_hub(hub: LoopbackHub, few: Path, tmp_path: Path, capsys):
    earlier = AimonkModel.from_timm("test_resnet", ["belt", "hat"], pretrained=False, image_size=32)
    earlier.push_to_hub("user/earlier")
    flags = "--image-size 32 --epochs 1 --num-workers 0 --lr 1e-30 --ema-decay 0 --no-calibrate"
    flags += " --init-from user/earlier"
    assert main(f"train --data-dir {few} --output-dir {tmp_path / 'run'} {flags}".split()) == 0
    printed = capsys.readouterr().out
    assert "Starting from user/earlier: 1 of 4 rows of the head are copied by name" in printed
    model = AimonkModel.from_pretrained(tmp_path / "run")
    rows = [one.timm_model.get_classifier().weight for one in (model, earlier)]
    torch.testing.assert_close(rows[0][model.config.attributes.index("belt")], rows[1][0])
    torch.testing.assert_close(model.timm_model.layer1[0].conv1.weight, earlier.timm_model.layer1[0].conv1.weight)
    assert model.card["base_model"] == "user/earlier"
    assert main(f"train --data-dir {few} --output-dir {tmp_path / 'other'} {flags}1".split()) == 2
    assert "user/earlier1" in capsys.readouterr().err
