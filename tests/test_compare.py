"""Paired comparison of models: known answers, coverage, false alarms, seeds, and what the command refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aimonk_hf import AimonkModel, AttributeDataset, compare
from aimonk_hf.cli.main import main
from aimonk_hf.data.dataset import content_hash
from aimonk_hf.data.sample_data import write_sample_data
from aimonk_hf.errors import AimonkError
from aimonk_hf.evaluation.comparison import GivenScores, Side, compare_sides
from aimonk_hf.evaluation.metrics import average_precision
from aimonk_hf.evaluation.split_file import write_parts

NAMES = ["a", "b", "c"]


def draw(random: np.random.Generator, n_images: int = 120) -> np.ndarray:
    labels = (random.random((n_images, 3)) < (0.2, 0.4, 0.6)).astype(float)
    labels[random.random(labels.shape) < 0.1] = np.nan
    return labels


def side(name: str, labels: np.ndarray, strengths: list[float], random: np.random.Generator, seeds: int = 1) -> Side:
    scores = [
        1 / (1 + np.exp(-(np.nan_to_num(labels) * strengths + random.normal(size=labels.shape)))) for _ in range(seeds)
    ]
    return Side(name, [(one, one >= 0.5) for one in scores])


def test_differences_are_those_of_the_metrics_and_equal_models_differ_by_nothing() -> None:
    random = np.random.default_rng(0)
    labels = draw(random)
    weak, strong = side("weak", labels, [0, 1, 1], random), side("strong", labels, [3, 1, 1], random)
    found = compare_sides(labels, NAMES, weak, strong, n_resamples=200, n_permutations=199)
    expected = average_precision(labels, strong.runs[0][0]) - average_precision(labels, weak.runs[0][0])
    rows = [found["per_attribute"][name]["average_precision"] for name in NAMES]
    assert [row["difference"] for row in rows] == pytest.approx(expected)
    assert found["macro"]["average_precision"]["difference"] == pytest.approx(expected.mean())
    assert rows[0]["ci95"][0] > 0
    assert rows[0]["p_value"] == 0.005
    assert found["verdict"].startswith("strong is better than weak by ")
    assert "better on 1 of 3 attributes; no evidence on the rest" in found["verdict"]

    same = compare_sides(labels, NAMES, weak, Side("twin", weak.runs), n_resamples=50, n_permutations=99)
    with pytest.raises(AimonkError, match="All images are copies of each other or one group"):
        compare_sides(labels, NAMES, weak, strong, np.zeros(len(labels), int))
    assert same["macro"]["average_precision"] | {"baseline": 0, "other": 0} == {
        **{"baseline": 0, "other": 0, "difference": 0.0, "ci95": [0.0, 0.0], "p_value": 1.0}
    }
    assert same["verdict"].startswith("No evidence that twin and weak differ: mAP +0.000 (+0.000 to +0.000)")


def test_intervals_cover_and_equal_models_are_seldom_told_apart() -> None:
    """Of equally good models: 95% of intervals hold 0, in 5% of draws one attribute or more is "different"."""
    random = np.random.default_rng(1)
    covered, alarms = 0, 0
    for number in range(60):
        labels = draw(random)
        first, second = (side(name, labels, [1, 1, 1], random) for name in ("first", "second"))
        found = compare_sides(labels, NAMES, first, second, n_resamples=200, n_permutations=199, seed=number)
        low, high = found["macro"]["average_precision"]["ci95"]
        covered += low <= 0 <= high
        alarms += any(row["average_precision"]["p_value"] <= 0.05 for row in found["per_attribute"].values())
    assert covered >= 53  # of which the chance is .98 at 95%
    assert alarms <= 7  # .98 at 5%


def test_seeds_of_a_side_are_averaged_and_widen_its_interval() -> None:
    random = np.random.default_rng(2)
    labels = draw(random, 300)
    weak = side("weak", labels, [1, 1, 1], random, seeds=1)
    strong = side("strong", labels, [1.6, 1.6, 1.6], random, seeds=3)
    found = compare_sides(labels, NAMES, weak, strong, n_resamples=300, n_permutations=199)
    mean = np.mean([average_precision(labels, scores) for scores, _ in strong.runs])
    assert found["macro"]["average_precision"]["other"] == pytest.approx(mean)
    unlike = Side("unlike", [strong.runs[0], weak.runs[0]])
    wide, narrow = (
        np.ptp(compare_sides(labels, NAMES, weak, one, n_resamples=300, n_permutations=99)["macro"]["auroc"]["ci95"])
        for one in (unlike, Side("one", strong.runs[:1]))
    )
    assert wide > narrow, "seeds that differ leave more in doubt"


def test_copies_are_resampled_and_exchanged_together() -> None:
    random = np.random.default_rng(3)
    labels = draw(random, 40)
    first, second = side("first", labels, [1, 1, 1], random), side("second", labels, [1.8, 1.8, 1.8], random)
    often = [one.part(np.repeat(np.arange(40), 10)) for one in (first, second)]
    alone = compare_sides(labels, NAMES, first, second, n_resamples=300, n_permutations=199)["macro"]["auroc"]
    many = np.repeat(labels, 10, axis=0)
    together = compare_sides(many, NAMES, *often, np.repeat(np.arange(40), 10), 300, 199)["macro"]["auroc"]
    apart = compare_sides(many, NAMES, *often, None, 300, 199)["macro"]["auroc"]
    assert np.ptp(together["ci95"]) == pytest.approx(np.ptp(alone["ci95"]), rel=0.15)
    assert np.ptp(apart["ci95"]) < 0.5 * np.ptp(together["ci95"])


@pytest.fixture
def data(tmp_path: Path) -> AttributeDataset:
    return AttributeDataset.from_folder(write_sample_data(tmp_path / "data", n_images=80, seed=5))


def model(attributes: list[str], seed: int = 0) -> AimonkModel:
    torch.manual_seed(seed)
    return AimonkModel.from_timm("test_resnet", attributes, pretrained=False, image_size=32).eval()


def test_only_images_that_no_model_has_seen_and_common_attributes_are_compared(
    data: AttributeDataset, tmp_path: Path
) -> None:
    one, other = model(["sleeves", "collar", "belt"]), model(["collar", "sleeves"], 1)
    for number, own in enumerate((one, other)):
        folder = tmp_path / f"m{number}"
        own.save_pretrained(folder)
        own.folder = folder
    hashes = [content_hash(path) for path in data.paths]
    parts = ["train"] * 20 + ["report"] * 60
    write_parts(tmp_path / "m0" / "split.csv", zip(data.labels.images, parts, hashes, strict=True))
    found = compare({"one": [one], "other": [other]}, data)
    assert found["n_images"] == 60
    assert set(found["comparisons"][0]["per_attribute"]) <= {"sleeves", "collar"}
    assert found["notes"] == [
        f"other: unknown whether it has seen the images ({tmp_path / 'm1'} has no split.csv).",
        "Left out, because not all have them: belt, stripes.",
    ]
    with pytest.raises(AimonkError, match="--part report: other has no such part"):
        compare({"one": [one], "other": [other]}, data, "report")
    write_parts(tmp_path / "m1" / "split.csv", zip(data.labels.images, ["train"] * 80, hashes, strict=True))
    with pytest.raises(AimonkError, match="Of 80 images 0 are unseen by every model, 20 are needed: train both"):
        compare({"one": [one], "other": [other]}, data)


def test_images_that_one_side_has_not_scored_are_left_out_by_number(data: AttributeDataset) -> None:
    scores = np.random.default_rng(0).random((80, 4))
    gaps = scores.copy()
    gaps[:5] = np.nan
    sides = {"a.csv": [GivenScores(data.attributes, scores)], "b.csv": [GivenScores(data.attributes, gaps)]}
    found = compare(sides, data)
    assert found["n_images"] == 75
    assert "5 images are left out, because one side has no scores of them." in found["notes"]
    with pytest.raises(AimonkError, match=r"a\.csv has scores of 80 images, the dataset 12"):
        compare(sides, data.select(range(60, 72)))
    with pytest.raises(AimonkError, match="12 images are too few to compare models: 20 are needed"):
        compare({name: [GivenScores(data.attributes, scores[:12])] for name in sides}, data.select(range(12)))
    with pytest.raises(AimonkError, match="no attribute in common"):
        compare({"a.csv": sides["a.csv"], "m": [model(["hat"])]}, data)


@pytest.mark.usefixtures("real_plots")
def test_the_command_prints_writes_and_refuses(data: AttributeDataset, tmp_path: Path, capsys) -> None:
    for number in range(2):
        model(data.attributes, number).save_pretrained(tmp_path / f"m{number}")
    folder = ["--data-dir", str(tmp_path / "data")]
    first, second = str(tmp_path / "m0"), str(tmp_path / "m1")
    assert main(["compare", first, f"{second},{first}", *folder, "--output", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "80 images" in told
    assert f"{second},{first}" in told
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["comparisons"][0]["verdict"] in told
    with Image.open(tmp_path / "out" / "compare_1.png") as plot:
        assert min(plot.size) > 200
    assert main(["compare", first, *folder]) == 2
    assert "compare needs two models or more" in capsys.readouterr().err
    assert main(["compare", first, first, *folder]) == 2
    assert "A model is named twice" in capsys.readouterr().err
