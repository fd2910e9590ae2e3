"""Labels that lack attributes of the model, or have others: what is judged, what is told, what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aimonk_hf import AimonkModel, AttributeDataset, evaluate
from aimonk_hf.cli.main import main
from aimonk_hf.data.labels import Labels, write_labels
from aimonk_hf.errors import AimonkError
from aimonk_hf.storage import read_json

ATTRIBUTES = ["sleeves", "stripes", "collar", "belt"]


def chosen(data: Path, names: list[str], folder: Path) -> list[str]:
    """Write a table with those columns, and return the flags that name it; a new name gets labels of its own."""
    labels, new = AttributeDataset.from_folder(data).labels, np.arange(60) % 2
    columns = [labels.values[:, ATTRIBUTES.index(name)] if name in ATTRIBUTES else new for name in names]
    write_labels(folder / "own.csv", Labels(labels.images, names, np.stack(columns, axis=1).astype(np.float32)))
    return ["--data-dir", str(data), "--labels", str(folder / "own.csv"), "--images-dir", str(data / "images")]


@pytest.mark.usefixtures("real_plots")
@pytest.mark.parametrize("by_flag", [False, True], ids=["in the file", "--attributes"])
def test_the_attributes_that_both_have_are_judged_and_the_others_named(
    by_flag: bool, folder: Path, tiny_model: AimonkModel, sample: Path, tmp_path: Path, caplog
) -> None:
    whole = evaluate(tiny_model, AttributeDataset.from_folder(sample))
    flags = chosen(sample, ["belt", "sash", "sleeves", "tie"], tmp_path)
    if by_flag:
        flags = ["--data-dir", str(sample), "--attributes", "belt,sleeves"]
    command = ["evaluate", "--model", str(folder), *flags, "--output", str(tmp_path / "report")]
    assert main(command) == 0
    report = read_json(tmp_path / "report" / "metrics.json")
    assert report["attributes"] == ["sleeves", "belt"]
    assert (report["n_images"], report["per_attribute"]["belt"]["threshold"]) == (60, 0.6)
    for name in report["attributes"]:
        for figure in ("n_positive", "threshold", "f1", "average_precision", "auroc"):
            assert report["per_attribute"][name][figure] == whole["per_attribute"][name][figure]
    with Image.open(tmp_path / "report" / "precision_recall.png") as plot:
        assert plot.width > 100
    source = sample / "labels.csv" if by_flag else tmp_path / "own.csv"
    told = [f"{source} has no labels of stripes, collar: judged on the other 2"]
    told += [f"{source} has labels that the model does not know, left out: sash, tie"] * (not by_flag)
    assert caplog.messages == told


def test_labels_of_no_attribute_of_the_model_are_refused(tiny_model: AimonkModel, sample: Path, tmp_path: Path) -> None:
    chosen(sample, ["sash", "tie"], tmp_path)
    dataset = AttributeDataset.from_folder(sample, tmp_path / "own.csv", sample / "images")
    with pytest.raises(AimonkError, match=r"own.csv has no attribute 'sleeves'; the labels have sash, tie"):
        evaluate(tiny_model, dataset)


def test_tune_leaves_out_more_attributes_by_name_and_needs_all_of_the_model(
    folder: Path, sample: Path, tmp_path: Path, capsys, caplog
) -> None:
    command = ["tune", "--model", str(folder), "--output", str(tmp_path / "tuned")]
    assert main([*command, *chosen(sample, [*ATTRIBUTES, "sash"], tmp_path)]) == 0
    assert f"{tmp_path / 'own.csv'} has labels that the model does not know, left out: sash" in caplog.messages
    more = read_json(tmp_path / "tuned" / "config.json")["thresholds"]
    assert main([*command, "--data-dir", str(sample)]) == 0
    assert read_json(tmp_path / "tuned" / "config.json")["thresholds"] == more
    assert main([*command, *chosen(sample, ATTRIBUTES[:3], tmp_path)]) == 2
    assert "own.csv has no attribute 'belt'" in capsys.readouterr().err
