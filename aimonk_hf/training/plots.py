"""Plots of a run: the loss curve and sample predictions."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from PIL import Image

from aimonk_hf.data.dataset import AttributeDataset
from aimonk_hf.data.images import read_image
from aimonk_hf.errors import ImageError
from aimonk_hf.evaluation.plots import BLUE, GREY, ORANGE, PALE, Style, save_figure, shorten
from aimonk_hf.modeling.prediction import Prediction

_SMOOTH = "#08519c"
_MOST_ATTRIBUTES = 12


def plot_loss_curve(
    losses: list[float],
    validation: list[tuple[int, float]],
    path: Path,
    title: str,
    stage_starts: Sequence[int] = (),
    kept: int | None = None,
) -> None:
    """Draw the training loss of every iteration, raw and smoothed, and the validation loss (iteration, loss) per epoch.

    `stage_starts` are the iterations before which a later stage begins; `kept` is the place in `validation` of the
    epoch that was kept, where it is not simply the last.
    """
    from scipy.ndimage import gaussian_filter1d

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    iterations = np.arange(1, len(losses) + 1)
    axes.plot(iterations, losses, color=PALE, linewidth=0.8, label="training loss, each iteration")
    # smoothed on both sides, so that it does not lag behind the validation loss; by stage, since a stage's first losses
    # say nothing of the one before
    for start, end in pairwise([0, *stage_starts, len(losses)] if losses else []):
        smoothed = gaussian_filter1d(losses[start:end], max(len(losses) / 40, 1), mode="nearest")
        label = "" if start else "training loss, smoothed"
        axes.plot(iterations[start:end], smoothed, color=_SMOOTH, linewidth=2, label=label)
    if validation:
        marks: Style = {"color": ORANGE, "marker": "o", "markersize": 4, "linewidth": 1.5}
        axes.plot(*zip(*validation, strict=True), **marks, label="validation loss, each epoch")
    for start in stage_starts:
        label = "a new stage begins" if start == stage_starts[0] else ""
        axes.axvline(start + 0.5, color="0.4", linewidth=1, linestyle="--", label=label)
    if kept is not None:
        ring: Style = {"color": ORANGE, "markersize": 11, "fillstyle": "none"}
        axes.plot(*validation[kept], "o", **ring, label="the epoch that is kept")
    if losses:
        shown = [*np.percentile(losses, [0, 99]), *(loss for _, loss in validation)]
        axes.set_ylim(max(0, min(shown) * 0.9), max(shown) * 1.05)
    axes.set(xlabel="iteration_number", ylabel="training_loss", title=title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save_figure(figure, path, dpi=120)


def plot_predictions(dataset: AttributeDataset, predictions: list[Prediction | None], path: Path) -> None:
    """Draw images [N] beside a bar per attribute: its length the score, its colour whether the label agrees.

    With many attributes each image shows those whose score is highest above, or least below, the threshold.
    """
    shown = [(row, prediction) for row, prediction in enumerate(predictions) if prediction is not None]
    columns = min(4, max(1, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    n_bars = min(_MOST_ATTRIBUTES, len(dataset.attributes))
    figure = Figure(figsize=(4.3 * columns, rows * max(2.1, 0.24 * n_bars + 0.75) + 0.5), layout="constrained")
    grid = figure.add_gridspec(rows, columns * 2, width_ratios=[1, 0.9] * columns)
    for place, (row, prediction) in enumerate(shown):
        axes = figure.add_subplot(grid[2 * place])
        try:
            axes.imshow(read_image(dataset.path(row)))
        except ImageError:  # the file has gone since it was scored
            axes.imshow(Image.new("RGB", (64, 64), "lightgrey"))
        axes.set_title(shorten(dataset.labels.images[row], 26, keep_end=True), fontsize=8)
        axes.set_axis_off()
        truth = dict(zip(dataset.attributes, dataset.labels.values[row], strict=True))
        _draw_bars(figure.add_subplot(grid[2 * place + 1]), prediction, truth)
    told = {"decided as labelled": BLUE, "decided against the label": ORANGE, "label missing (NA)": GREY}
    handles: list[Any] = [Patch(color=colour, label=label) for label, colour in told.items()]
    mark: Style = {"color": "black", "marker": "|", "markersize": 12, "markeredgewidth": 2, "linestyle": "none"}
    handles.append(Line2D([], [], label="threshold", **mark))
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    save_figure(figure, path, dpi=120)


def _draw_bars(axes: Axes, prediction: Prediction, truth: dict[str, Any]) -> None:
    by_margin = sorted(prediction.scores, key=lambda name: prediction.thresholds[name] - prediction.scores[name])
    names = [name for name in prediction.scores if name in by_margin[:_MOST_ATTRIBUTES]]
    for place, name in enumerate(names):
        score, threshold, label = prediction.scores[name], prediction.thresholds[name], truth[name]
        colour = GREY if np.isnan(label) else BLUE if (score >= threshold) == (label == 1) else ORANGE
        axes.barh(place, 1, color="#f0f0f0", height=0.7)
        axes.barh(place, score, color=colour, height=0.7)
        axes.vlines(threshold, place - 0.45, place + 0.45, color="black", linewidth=1.5)
        told = "NA" if np.isnan(label) else str(int(label))
        axes.text(1.03, place, told, va="center", fontsize=8, color=colour, weight="bold")
    axes.set_yticks(range(len(names)), [shorten(name, 18, keep_end=True) for name in names], fontsize=8)
    axes.set(xlim=(0, 1), ylim=(len(names) - 0.4, -0.6))
    axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"], fontsize=7)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
