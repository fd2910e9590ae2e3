"""Pictures of a run."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image

from aimonk_hf.data.images import read_image
from aimonk_hf.errors import ImageError
from aimonk_hf.modeling.prediction import Prediction
from aimonk_hf.storage import atomic_path

if TYPE_CHECKING:
    from aimonk_hf.data.dataset import AttributeDataset

# Okabe and Ito's colours, told apart with any kind of colour vision
_TRUE, _FALSE, _UNKNOWN = "#0072B2", "#D55E00", "#999999"
_RAW, _SMOOTH, _VALIDATION = "#9ecae1", "#08519c", "#D55E00"
_MOST_ATTRIBUTES = 12


def plot_loss_curve(
    losses: list[float],
    validation: list[tuple[int, float]],
    path: Path,
    title: str,
    stage_starts: Sequence[int] = (),
    kept: int | None = None,
) -> None:
    """Draw the training loss of every iteration, raw and smoothed, and the validation loss (iteration, loss) of every
    epoch.

    `stage_starts` are the iterations before which a later stage begins; `kept` is the place in `validation` of the
    epoch that was kept, where it is not simply the last.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    iterations = np.arange(1, len(losses) + 1)
    axes.plot(iterations, losses, color=_RAW, linewidth=0.8, label="training loss, each iteration")
    # a stage's first losses say nothing of the one before
    for number, (start, end) in enumerate(pairwise([0, *stage_starts, len(losses)])):
        label = None if number else "training loss, smoothed"
        axes.plot(
            iterations[start:end], _smoothed(losses[start:end], len(losses)), color=_SMOOTH, linewidth=2, label=label
        )
    if validation:
        axes.plot(
            *zip(*validation, strict=True),
            color=_VALIDATION,
            marker="o",
            markersize=4,
            linewidth=1.5,
            label="validation loss, each epoch",
        )
    for number, start in enumerate(stage_starts):
        axes.axvline(
            start + 0.5, color="0.4", linewidth=1, linestyle="--", label=None if number else "a new stage begins"
        )
    if kept is not None:
        axes.plot(
            *validation[kept],
            color=_VALIDATION,
            marker="o",
            markersize=11,
            fillstyle="none",
            linestyle="none",
            label="the epoch that is kept",
        )
    if losses:
        shown = [*np.percentile(losses, [0, 99]), *(loss for _, loss in validation)]
        axes.set_ylim(max(0, min(shown) * 0.9), max(shown) * 1.05)
    axes.set_xlabel("iteration_number")
    axes.set_ylabel("training_loss")
    axes.set_title(title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    _save(figure, path)


def plot_predictions(dataset: "AttributeDataset", predictions: list[Prediction | None], path: Path) -> None:
    """Draw images [N] beside a bar per attribute: its length the score, a mark the threshold, its colour whether the
    label agrees.

    With many attributes each image shows those whose score comes nearest to, or goes farthest beyond, the threshold.
    """
    shown = [(row, prediction) for row, prediction in enumerate(predictions) if prediction is not None]
    columns = min(4, max(1, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    n_bars = min(_MOST_ATTRIBUTES, len(dataset.attributes))
    figure = Figure(figsize=(4.3 * columns, rows * max(2.1, 0.24 * n_bars + 0.75) + 0.5), layout="constrained")
    grid = figure.add_gridspec(rows, columns * 2, width_ratios=[1, 0.9] * columns)
    for place, (row, prediction) in enumerate(shown):
        line, column = divmod(place, columns)
        picture = figure.add_subplot(grid[line, 2 * column])
        picture.imshow(_picture(dataset.paths[row]))
        picture.set_title(_short(dataset.labels.images[row], 26), fontsize=8)
        picture.set_axis_off()
        _draw_bars(
            figure.add_subplot(grid[line, 2 * column + 1]),
            prediction,
            dict(zip(dataset.attributes, dataset.labels.values[row], strict=True)),
        )
    figure.legend(
        handles=[
            Patch(color=_TRUE, label="decided as labelled"),
            Patch(color=_FALSE, label="decided against the label"),
            Patch(color=_UNKNOWN, label="label missing (NA)"),
            Line2D(
                [], [], color="black", marker="|", markersize=12, markeredgewidth=2, linestyle="none", label="threshold"
            ),
        ],
        loc="outside upper center",
        ncols=4,
        frameon=False,
        fontsize=9,
    )
    _save(figure, path)


def _picture(path: Path) -> Image.Image:
    """Return the picture, or a grey one where the file has gone since it was scored."""
    try:
        return read_image(path)
    except ImageError:
        return Image.new("RGB", (64, 64), "lightgrey")


def _draw_bars(axes: Axes, prediction: Prediction, truth: dict[str, Any]) -> None:
    names = _most_telling(prediction)
    for place, name in enumerate(names):
        score, threshold, label = prediction.scores[name], prediction.thresholds[name], truth[name]
        colour = _UNKNOWN if np.isnan(label) else _TRUE if (score >= threshold) == (label == 1) else _FALSE
        axes.barh(place, 1, color="#f0f0f0", height=0.7)
        axes.barh(place, score, color=colour, height=0.7)
        axes.vlines(threshold, place - 0.45, place + 0.45, color="black", linewidth=1.5)
        axes.text(
            1.03,
            place,
            "NA" if np.isnan(label) else str(int(label)),
            va="center",
            fontsize=8,
            color=colour,
            weight="bold",
        )
    axes.set_yticks(range(len(names)), [_short(name, 18) for name in names], fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"], fontsize=7)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _most_telling(prediction: Prediction) -> list[str]:
    """Return the attributes to show, in the model's order."""
    names = list(prediction.scores)
    by_margin = sorted(names, key=lambda name: prediction.thresholds[name] - prediction.scores[name])
    chosen = set(by_margin[:_MOST_ATTRIBUTES])
    return [name for name in names if name in chosen]


def _smoothed(losses: list[float], n_iterations: int) -> NDArray[np.float64]:
    """Average on both sides over about a twentieth of the run of so many iterations, so that the curve does not lag
    behind the validation loss.
    """
    from scipy.ndimage import gaussian_filter1d

    return (
        gaussian_filter1d(np.asarray(losses, dtype=float), max(n_iterations / 40, 1), mode="nearest")
        if losses
        else np.empty(0)
    )


def _short(text: str, length: int) -> str:
    text = text.encode("utf-8", "replace").decode().replace("$", r"\$")
    return text if len(text) <= length else "…" + text[1 - length :]


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
