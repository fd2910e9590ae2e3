"""`train --push-to-hub`: the finished run directory's model is pushed; obstacles are reported before the run."""

from pathlib import Path

import torch
from hub_support import hub
from loopback_hub import LoopbackHub

from aimonk_hf import AimonkModel
from aimonk_hf.cli.main import main

__all__ = ["hub"]  # a fixture


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
        ("--push-to-hub user/run", "hf_wrong", "cannot push to user/run on the Hub: it does not accept the token"),
    ):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        assert run(sample, tmp_path / "run", flags) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run" / "history.csv").exists()
    assert hub.repos["model", "user/open"].files() == before
