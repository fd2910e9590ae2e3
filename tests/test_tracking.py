"""Trackers: the options of trackio, what a finished run hands over, the run's address in the card."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants
from PIL import Image
from train_support import small

from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.card import render_card
from aimonk_hf.modeling.config import AimonkConfig
from aimonk_hf.training.tracking import log_plots, start_tracker, tracked_run


class Tracker:
    """Keeps what it is given, as one of accelerate's does."""

    def __init__(self, name: str, address: str | None = None) -> None:
        self.name, self.tracker = name, SimpleNamespace(url=address)
        self.logged: dict[str, Any] = {}

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged |= values

    def log_images(self, values: dict[str, Any], step: int, **form: str) -> None:
        self.logged |= {name: (pixels.shape, form) for name, pixels in values.items()}


def test_images_of_the_data_stay_on_this_machine(tmp_path: Path, monkeypatch) -> None:
    plots = [tmp_path / "loss_curve.png", tmp_path / "sample_predictions.png"]
    for path in plots:
        Image.new("RGBA", (30, 20)).save(path)
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(Image=str))
    shape = (1, 20, 30, 3)
    both = dict.fromkeys(("loss_curve", "sample_predictions"), (shape, {"dataformats": "NHWC"}))
    for tracker, logged, address in (
        (Tracker("tensorboard"), both, None),
        (Tracker("wandb", "https://wandb.example/run/1"), {"loss_curve": (shape, {})}, "https://wandb.example/run/1"),
        (Tracker("trackio"), {path.stem: str(path) for path in plots}, None),
        (Tracker("trackio", "user/space"), {"loss_curve": str(plots[0])}, f"{constants.ENDPOINT}/spaces/user/space"),
        (SimpleNamespace(name="mlflow"), None, None),
    ):
        accelerator = SimpleNamespace(trackers=[tracker])
        log_plots(accelerator, plots[:1], plots[1:], step=3)
        assert getattr(tracker, "logged", None) == logged
        assert tracked_run(accelerator) == ({"tracked_run": address} if address else {})


def test_trackio_gets_the_run_and_its_space(few: Path, tmp_path: Path) -> None:
    given = {}
    accelerator = SimpleNamespace(init_trackers=lambda name, *rest: given.update({name: rest}), trackers=["one"])
    for resume, wanted in ((False, "never"), (True, "allow")):
        config = small(few, tmp_path / "first", log_with="trackio", trackio_space="user/space", resume=resume)
        start_tracker(accelerator, config)
        settings, options = given[config.run_name]
        assert settings["trackio_space"] == "user/space"
        assert options["trackio"] == {"name": "first", "resume": wanted, "space_id": "user/space", "embed": False}


def test_a_tracker_that_cannot_start_is_one_line(few: Path, tmp_path: Path, monkeypatch) -> None:
    for error in (OSError("You must be logged in"), RuntimeError("it has been frozen"), ValueError("a bad name")):

        def fail(*_: object, raised: Exception = error) -> None:
            raise raised

        with pytest.raises(AimonkError, match=f"Cannot start trackio: {error}"):
            start_tracker(SimpleNamespace(init_trackers=fail), small(few, tmp_path, log_with="trackio"))


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://wandb.ai/user/project/runs/1?a=b&c=d", True),
        ("javascript:alert(1)", False),
        ("https://x.org/) <img src=x>", False),
    ],
)
def test_the_card_links_the_run(address: str, shown: bool) -> None:
    card = render_card(AimonkConfig("test_resnet", ["a"]), None, {"training_time": "3:12", "tracked_run": address})
    body = card.split("---\n", 2)[2]
    assert (f" Its [losses and figures]({address}) were tracked." in body) == shown
    assert ("Training took 3:12." in body, "<img" in body) == (True, False)


def test_real_trackio_keeps_figures_and_plots(few: Path, tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    data, out = str(few), str(tmp_path / "out")
    code = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from train_support import small
from aimonk_hf import train
from trackio.sqlite_storage import SQLiteStorage
train(small({data!r}, {out!r}, log_with="trackio", run_name="garments", onnx=False))
runs = SQLiteStorage.get_runs("garments")
print(json.dumps([runs, SQLiteStorage.get_logs("garments", runs[0])]))
"""
    variables = {"TRACKIO_DIR": str(tmp_path / "trackio"), "OMP_NUM_THREADS": "1"}
    given = {"env": os.environ | variables, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", code], check=False, **given)
    assert done.returncode == 0, done.stderr[-2000:]
    (told,) = [line for line in done.stdout.splitlines() if line.startswith("[[")]
    runs, logs = json.loads(told)
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert runs == ["out"]
    logged = {key: value for row in logs for key, value in row.items()}
    assert logged["f1/sleeves"] == pytest.approx(report["per_attribute"]["sleeves"]["f1"])
    assert {logged[name]["_type"] for name in ("loss_curve", "sample_predictions")} == {"trackio.image"}
    assert len(list((tmp_path / "trackio").rglob("*.png"))) == 2
