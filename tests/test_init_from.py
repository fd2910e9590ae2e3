"""`--init-from`: weights and head rows of an earlier model, its held-out images, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from train_support import FLAGS, column, places, same, small, train_until

from aimonk_hf import AimonkModel, AttributeDataset, train
from aimonk_hf.cli.main import main
from aimonk_hf.data.labels import Labels, write_labels
from aimonk_hf.data.sample_data import write_sample_data
from aimonk_hf.errors import AimonkError
from aimonk_hf.evaluation.report import evaluate
from aimonk_hf.training.setup import build_model, load_earlier


@pytest.fixture(scope="module")
def run(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 24 drawings, of which five validate."""
    out = tmp_path_factory.mktemp("earlier") / "run"
    train(small(few, out, val_split=0.2))
    return out


def other_columns(data: Path, folder: Path) -> Path:
    """Write a table of the same images with two attributes of before, in another order, and a new one."""
    labels = AttributeDataset.from_folder(data).labels
    values = np.stack([labels.values[:, 2], np.arange(len(labels)) % 2, labels.values[:, 0]], axis=1)
    path = folder / "labels.csv"
    write_labels(path, Labels(labels.images, ["collar", "even", "sleeves"], values.astype(np.float32)))
    return path


def classifier(model: AimonkModel) -> dict[str, torch.Tensor]:
    """Return weights and bias of each attribute's output."""
    layer = model.timm_model.get_classifier()
    rows = torch.cat([layer.weight, layer.bias[:, None]], dim=1)
    return dict(zip(model.config.attributes, rows, strict=True))


@pytest.mark.parametrize("names", [["collar", "even", "sleeves"], ["belt", "stripes", "new", "sleeves"]], ids=str)
def test_rows_of_the_head_are_copied_by_name_and_the_backbone_as_it_is(
    names: list[str], run: Path, tmp_path: Path
) -> None:
    config = small("", tmp_path / "out", init_from=run)
    earlier = load_earlier(config)
    assert earlier is not None
    model = build_model(config, names, earlier)
    own, before = classifier(model), classifier(earlier)
    assert {name for name in names if name in before and torch.equal(own[name], before[name])} == {*names} & {*before}
    new = next(name for name in names if name not in before)
    assert not any(torch.equal(own[new], row) for row in before.values())
    head = {f"{model.timm_model.pretrained_cfg['classifier']}.{kind}" for kind in ("weight", "bias")}
    states = model.timm_model.state_dict(), earlier.timm_model.state_dict()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items() if name not in head)
    assert model.config.architecture == "test_resnet"


def test_a_run_starts_from_another_and_holds_out_the_same_images(
    run: Path, few: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    labels, out = other_columns(few, tmp_path), tmp_path / "out"
    flags = ["--labels", str(labels), "--images-dir", str(few / "images"), "--val-split", "0.4", "--lr", "1e-9"]
    assert main(["train", *FLAGS, *places(few, out), *flags, "--init-from", str(run)]) == 0
    printed = capsys.readouterr().out
    told = "2 of 3 rows of the head are copied by name; new: even; left out: stripes, belt"
    assert f"Starting from {run}: {told}\n" in printed
    assert f"24 images keep their part in the split of {run}\n" in printed
    assert column(out / "split.csv", "part") == column(run / "split.csv", "part")
    own, before = (classifier(AimonkModel.from_pretrained(folder)) for folder in (out, run))
    assert torch.allclose(own["collar"], before["collar"], atol=1e-3)


def test_new_images_are_divided_and_those_of_the_earlier_run_stay_known(
    run: Path, few: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    more = write_sample_data(tmp_path / "more", n_images=20, seed=7)
    train(small(more, tmp_path / "out", init_from=run, val_split=0.2))
    assert "\n0 images keep their part" in capsys.readouterr().out
    parts = list(column(tmp_path / "out" / "split.csv", "part").values())
    assert len(parts) == 24  # both have images of the same names
    model = AimonkModel.from_pretrained(tmp_path / "out")
    note = evaluate(model, AttributeDataset.from_folder(few))["measured_on"]["note"]
    assert "19 of its train part, 5 of its validation part" in note


def test_a_model_without_a_record_says_that_its_images_are_unknown(
    tiny_model: AimonkModel, few: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    train(small(few, tmp_path / "out", init_from=tmp_path / "model"))
    told = f"0 images keep their part in the split of {tmp_path / 'model'}; the figures hold if it has seen no other"
    assert f"{told} ({tmp_path / 'model'} has no split.csv)" in capsys.readouterr().out
    more = AttributeDataset.from_folder(write_sample_data(tmp_path / "more", n_images=20, seed=7))
    report = evaluate(AimonkModel.from_pretrained(tmp_path / "out"), more)
    assert report["measured_on"]["seen_by_model"] == "unknown"


def test_a_run_that_was_ended_goes_on_as_it_would_have(run: Path, few: Path, tmp_path: Path) -> None:
    whole = train(small(few, tmp_path / "whole", init_from=run, epochs=2, batch_size=8))
    train_until(2, small(few, tmp_path / "out", init_from=run, epochs=2, batch_size=8, checkpoint_minutes=1e-9))
    resumed = train(small(few, tmp_path / "out", init_from=run, epochs=2, batch_size=8, resume=True))
    assert same(whole, resumed)


def test_a_run_that_chooses_its_epoch_needs_images_that_the_earlier_model_was_not_trained_on(
    few: Path, tmp_path: Path
) -> None:
    train(small(few, tmp_path / "all", val_split=0))
    settings = small(few, tmp_path / "out", init_from=tmp_path / "all", metric_for_best_model="val_loss")
    with pytest.raises(AimonkError, match="No image is left to validate on, by which the run chooses its epoch"):
        train(settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "test_vit"}, "is a test_resnet, not a test_vit: leave out --architecture"),
        ({"folds": 2}, "may have seen the images: leave out --folds"),
        ({"output_dir": "RUN", "overwrite": True}, "--init-from names the run directory itself"),
        ({"init_from": "nowhere/at/all"}, "nowhere/at/all"),
    ],
    ids=str,
)
def test_what_cannot_start_from_it_is_refused_before_anything_is_changed(
    changes: dict[str, object], message: str, run: Path, few: Path, tmp_path: Path
) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    given = {"output_dir": str(tmp_path / "out"), "init_from": run} | changes
    out = str(given.pop("output_dir")).replace("RUN", str(run))
    with pytest.raises(AimonkError, match=message):
        train(small(few, out, **given))
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    assert not (tmp_path / "out").exists()


def test_a_model_given_in_python_is_not_also_loaded(tiny_model: AimonkModel, few: Path, tmp_path: Path) -> None:
    with pytest.raises(AimonkError, match="leave out init_from"):
        train(small(few, tmp_path / "out", init_from=tmp_path), model=tiny_model)


@pytest.mark.parametrize("more", [[], ["--ignore-changes"]], ids=["plain", "ignoring changes"])
def test_more_epochs_of_a_finished_run_are_refused_with_the_way_to_train_further(
    more: list[str], run: Path, few: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["train", *FLAGS, *places(few, run), "--val-split", "0.2", "--resume", "--epochs", "2", *more]) == 2
    told = f"train further with --init-from {run} and another --output-dir"
    assert told in capsys.readouterr().err
    assert main(["train", *FLAGS, *places(few, run), "--val-split", "0.2", "--resume"]) == 0
