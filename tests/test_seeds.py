"""`train --seeds N`: one division, mean and spread of the figures, the first model kept."""

import json
from pathlib import Path

import numpy as np
import pytest
from train_support import FLAGS, column, places, same, small

from aimonk_hf import AimonkModel, train
from aimonk_hf.cli.main import main
from aimonk_hf.training.seeds import spread_over

DIVIDED = ["--val-split", "0.5", "--report-split", "0.5"]


def test_seeds_share_the_division_and_the_table_is_that_of_their_figures(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aimonk_hf.training.parts._SMALLEST_REPORT", 1)
    out = tmp_path / "out"
    flags = ["train", *places(few, out), *FLAGS, *DIVIDED, "--seed", "5"]
    assert main([*flags, "--seeds", "3"]) == 0
    printed = capsys.readouterr().out
    runs = [out, out / "seeds" / "seed-6", out / "seeds" / "seed-7"]
    parts = [column(run / "split.csv", "part") for run in runs]
    assert parts[0] == parts[1] == parts[2]
    alone = train(small(few, tmp_path / "alone", seed=5, val_split=0.5, report_split=0.5))
    models = [AimonkModel.from_pretrained(run) for run in runs]
    assert same(models[0], alone)
    assert not same(models[0], models[1])
    found = json.loads((out / "seeds.json").read_text())
    values = [json.loads((run / "metrics.json").read_text())["macro"]["f1"] for run in runs]
    assert found["macro"]["f1"]["values"] == values
    assert found["macro"]["f1"]["mean"] == pytest.approx(np.mean(values))
    assert found["macro"]["f1"]["sd"] == pytest.approx(np.std(values, ddof=1))
    cells = [f"{value:.3f}" for value in (np.mean(values), np.std(values, ddof=1), *values)]
    assert ["macro", "F1", *cells] in [line.split() for line in printed.splitlines()]
    before = (out / "seeds.json").read_text()
    (out / "seeds.json").unlink()
    assert main([*flags, "--seeds", "3", "--resume"]) == 0  # finished runs are kept
    assert (out / "seeds.json").read_text() == before


def test_undefined_figures_stay_undefined() -> None:
    figures = {"f1": 0.5, "average_precision": None, "auroc": 0.25}
    found = spread_over([{"macro": figures, "per_attribute": {"collar": figures}}] * 2)
    assert found["macro"]["average_precision"] == {"mean": None, "sd": None, "values": [None, None]}
    assert found["per_attribute"]["collar"]["auroc"] == {"mean": 0.25, "sd": 0.0, "values": [0.25, 0.25]}


@pytest.mark.parametrize(
    ("flags", "told"),
    [(["--seeds", "1"], "at least 2, found 1"), (["--seeds", "2", "--folds", "2"], "--folds makes several")],
)
def test_what_cannot_be_repeated_is_refused(
    flags: list[str], told: str, few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *places(few, tmp_path / "out"), *FLAGS, *flags]) == 2
    assert told in capsys.readouterr().err
