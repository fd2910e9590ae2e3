from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from aimonk_hf import AttributeDataset
from aimonk_hf.data.labels import Labels
from aimonk_hf.modeling.prediction import Prediction
from aimonk_hf.training import plots

pytestmark = pytest.mark.usefixtures("real_plots")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is saved."""
    figures: list[Figure] = []
    real = plots.save_figure
    monkeypatch.setattr(
        plots, "save_figure", lambda figure, *rest, **more: (figures.append(figure), real(figure, *rest, **more))
    )
    return figures


def test_the_loss_curve_has_the_assignments_labels(tmp_path: Path, drawn: list[Figure]) -> None:
    labels = ("iteration_number", "training_loss", "Aimonk_multilabel_problem")
    plots.plot_loss_curve([3.0, 2.0, 1.0, 0.5], [(2, 2.5), (4, 1.0)], tmp_path / "a.png", labels[2])
    (axes,) = drawn[0].axes
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == labels
    raw, smooth, validation = axes.lines
    assert raw.get_xydata().tolist() == [[1, 3.0], [2, 2.0], [3, 1.0], [4, 0.5]]
    assert smooth.get_ydata().max() < 3
    assert validation.get_xydata().tolist() == [[2, 2.5], [4, 1.0]]
    assert Image.open(tmp_path / "a.png").size[0] > 800


def test_stages_and_the_kept_epoch_are_marked(tmp_path: Path, drawn: list[Figure]) -> None:
    plots.plot_loss_curve([3.0, 2.0, 1.0, 0.5], [(2, 1.5), (4, 1.8)], tmp_path / "a.png", "t", stage_starts=[2], kept=0)
    _, first, second, *_, stage, kept = drawn[0].axes[0].lines
    assert first.get_xdata().tolist() == [1, 2]
    assert second.get_xdata().tolist() == [3, 4]
    # the smoothed loss of a stage knows nothing of the other's
    assert first.get_ydata().min() >= 2 > 1 >= second.get_ydata().max()
    assert list(stage.get_xdata()) == [2.5, 2.5]
    assert kept.get_xydata().tolist() == [[2, 1.5]]
    told = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert told[-2:] == ["a new stage begins", "the epoch that is kept"]


@pytest.mark.parametrize("losses", [[], [1.0], [1.0, 0.5]])
def test_short_curves_can_be_drawn(tmp_path: Path, losses: list[float]) -> None:
    plots.plot_loss_curve(losses, [], tmp_path / "a.png", "t")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_bars_are_coloured_by_agreement_and_gaps_are_grey(
    tmp_path: Path, drawn: list[Figure], picture: Image.Image
) -> None:
    picture.save(tmp_path / "a $1$ <b>.png")
    names = ["right", "wrong", "gap"]
    dataset = AttributeDataset(Labels(["a $1$ <b>.png"], names, np.float32([[1, 1, np.nan]])), tmp_path)
    prediction = Prediction({"right": 0.9, "wrong": 0.2, "gap": 0.7}, dict.fromkeys(names, 0.5))
    plots.plot_predictions(dataset, [prediction, None], tmp_path / "p.png")
    bars = drawn[0].axes[1]
    assert len({patch.get_facecolor() for patch in bars.patches[1::2]}) == 3
    assert [text.get_text() for text in bars.texts] == ["1", "1", "NA"]


def test_many_attributes_show_the_most_telling(tmp_path: Path, drawn: list[Figure], picture: Image.Image) -> None:
    picture.save(tmp_path / "a.png")
    names = [f"attribute_{number}" for number in range(40)]
    dataset = AttributeDataset(Labels(["a.png"], names, np.zeros((1, 40), np.float32)), tmp_path)
    scores = {name: 0.9 if number == 33 else number / 100 for number, name in enumerate(names)}
    plots.plot_predictions(dataset, [Prediction(scores, dict.fromkeys(names, 0.5))], tmp_path / "p.png")
    shown = [label.get_text() for label in drawn[0].axes[1].get_yticklabels()]
    assert len(shown) == 12
    assert "attribute_33" in shown
