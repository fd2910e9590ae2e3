"""Plots of a report: curves with the chosen thresholds, reliability, confusion counts, histograms, worst mistakes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from aimonk_hf.data.images import read_image
from aimonk_hf.errors import ImageError
from aimonk_hf.evaluation.calibration import expected_calibration_error, reliability
from aimonk_hf.evaluation.metrics import Floats, count_decisions
from aimonk_hf.evaluation.report import Judged
from aimonk_hf.storage import atomic_path

Style = dict[str, Any]
Draw = Callable[[Axes, Floats, Floats, float], None]

# Okabe and Ito's colours, told apart with any kind of colour vision
BLUE, ORANGE, GREY, PALE = "#0072B2", "#D55E00", "#999999", "#9ecae1"
_MOST_MISTAKES = 24
# Beyond this the figures would outgrow a screen or a page: the attributes with the most positives are shown.
_MOST_PANELS = 64


def write_report_plots(judged: Judged, thresholds: dict[str, float], folder: Path) -> list[Path]:
    """Write the plots of scores and labels [N, K] into `folder` and return their paths."""
    figures = {name: _panels(judged, thresholds, *panel, _DRAW[name]) for name, panel in _PANELS.items()}
    figures |= {"confusion": _confusion(judged), "co_occurrence": _co_occurrence(judged)}
    figures["worst_mistakes"] = _worst_mistakes(judged)
    paths = [folder / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        save_figure(figure, path)
    return paths


def save_figure(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Write a figure atomically, whatever backend the program has chosen."""
    FigureCanvasAgg(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi)


def shorten(text: str, length: int, keep_end: bool = False) -> str:
    """Return a name for a figure: at most so long, without mathematics and bytes that are no text."""
    text = text.encode("utf-8", "replace").decode()
    if len(text) > length:
        text = "…" + text[1 - length :] if keep_end else text[: length - 1] + "…"
    return text.replace("$", r"\$")


def _panels(judged: Judged, thresholds: dict[str, float], title: str, x_label: str, y_label: str, draw: Draw) -> Figure:
    """Draw one small panel per attribute."""
    names = judged.report["attributes"]
    order = np.arange(len(names))
    if len(names) > _MOST_PANELS:
        order = np.sort(np.argsort(-(judged.labels == 1).sum(axis=0), kind="stable")[:_MOST_PANELS])
        title += f" (the {_MOST_PANELS} attributes with the most positives)"
    columns = len(order) if len(order) <= 4 else min(8, int(np.ceil(np.sqrt(len(order) * 1.5))))
    rows = -(-len(order) // columns)
    side = 2.8 if columns <= 4 else 2.0
    width, height = max(columns * side, 5.0) + 0.7, rows * (side + 0.1) + 1.0
    figure = Figure(figsize=(width, height))
    grid = figure.subplots(rows, columns, squeeze=False)
    # placed by hand: the automatic layout takes most of a minute for 40 panels
    figure.subplots_adjust(0.65 / width, 0.55 / height, 1 - 0.1 / width, 1 - 0.7 / height, wspace=0.28, hspace=0.38)
    for axes in grid.flat[len(order) :]:
        axes.set_axis_off()
    for k, axes in zip(order, grid.flat, strict=False):
        observed = ~np.isnan(judged.labels[:, k])
        truth, scores = judged.labels[observed, k], judged.scores[observed, k]
        axes.set_title(shorten(names[k], 20), fontsize=9)
        axes.tick_params(labelsize=7, length=2)
        axes.spines[["top", "right"]].set_visible(False)
        if 0 < truth.sum() < len(truth):
            draw(axes, truth, scores, thresholds[names[k]])
        else:
            note: Style = {"ha": "center", "va": "center", "fontsize": 8, "color": GREY, "transform": axes.transAxes}
            axes.text(0.5, 0.5, "one kind of\nlabel only", **note)
            axes.set(xticks=[], yticks=[])
    figure.suptitle(title, fontsize=11, y=1 - 0.12 / height, va="top")
    figure.supxlabel(x_label, fontsize=9, y=0.08 / height)
    figure.supylabel(y_label, fontsize=9, x=0.08 / width)
    return figure


def _draw_precision_recall(axes: Axes, truth: Floats, scores: Floats, threshold: float) -> None:
    from sklearn.metrics import average_precision_score, precision_recall_curve

    precision, recall, _ = precision_recall_curve(truth, scores)
    axes.plot(recall, precision, color=BLUE, linewidth=1.3, drawstyle="steps-post")
    axes.axhline(truth.mean(), color=GREY, linestyle="--", linewidth=1, alpha=0.7)
    if (decided := scores >= threshold).any():
        place = truth[decided].sum() / truth.sum(), truth[decided].mean()
        axes.plot(*place, "o", color=ORANGE, markersize=5, clip_on=False)
    _unit_square(axes, f"AP {average_precision_score(truth, scores):.2f}", 0.05, 0.05)


def _draw_roc(axes: Axes, truth: Floats, scores: Floats, threshold: float) -> None:
    from sklearn.metrics import roc_auc_score, roc_curve

    false_rate, true_rate, _ = roc_curve(truth, scores)
    axes.plot(false_rate, true_rate, color=BLUE, linewidth=1.3)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, alpha=0.7)
    decided = scores >= threshold
    axes.plot(decided[truth == 0].mean(), decided[truth == 1].mean(), "o", color=ORANGE, markersize=5, clip_on=False)
    _unit_square(axes, f"AUROC {roc_auc_score(truth, scores):.2f}", 0.97, 0.05)


def _draw_reliability(axes: Axes, truth: Floats, scores: Floats, threshold: float) -> None:
    mean_score, share, size = reliability(truth, scores)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, alpha=0.7)
    filled = size > 0  # so that empty bins do not break the line
    axes.plot(mean_score[filled], share[filled], color=BLUE, linewidth=1)
    axes.scatter(mean_score, share, s=6 + 60 * np.sqrt(size / size.sum()), color=BLUE, clip_on=False, zorder=3)
    error = expected_calibration_error(truth[:, None], scores[:, None])[0]
    _unit_square(axes, f"ECE {error:.3f}", 0.05, 0.93)


def _draw_histogram(axes: Axes, truth: Floats, scores: Floats, threshold: float) -> None:
    for value, colour in ((0, ORANGE), (1, BLUE)):
        own = scores[truth == value]
        bars: Style = {"bins": 20, "range": (0, 1), "weights": np.full(len(own), 1 / len(own)), "color": colour}
        axes.hist(own, alpha=0.45, histtype="stepfilled", label=f"{value}: {len(own)}", **bars)
        axes.hist(own, histtype="step", linewidth=1.2, **bars)
    axes.axvline(threshold, color="black", linewidth=1.2)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.legend(fontsize=7, framealpha=0.7, edgecolor="none", loc="best", handlelength=1)


# title, x label, y label
_PANELS = {
    "precision_recall": ("precision and recall; dot: the chosen threshold, dashes: prevalence", "recall", "precision"),
    "roc": ("ROC curves; dot: the chosen threshold, dashes: chance", "false positive rate", "true positive rate"),
    "reliability": ("share of positives by score; size of the dots: images", "score", "share of positives"),
    "score_histograms": ("scores of images labelled 0 and 1, as shares; line: threshold", "score", "share of images"),
}
_DRAW = dict(zip(_PANELS, (_draw_precision_recall, _draw_roc, _draw_reliability, _draw_histogram), strict=True))


def _unit_square(axes: Axes, note: str, x: float, y: float) -> None:
    ticks: Style = {"ticks": [0, 0.5, 1], "labels": ["0", ".5", "1"]}
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.set_xticks(**ticks)
    axes.set_yticks(**ticks)
    side: Style = {"ha": "left" if x < 0.5 else "right", "va": "bottom" if y < 0.5 else "top"}
    box: Style = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1}
    axes.text(x, y, note, fontsize=8, transform=axes.transAxes, bbox=box, **side)


def _confusion(judged: Judged) -> Figure:
    """Draw the confusion counts of each attribute as a bar of shares, with the numbers in it."""
    names = judged.report["attributes"]
    counts = count_decisions(judged.labels, judged.decisions)
    parts = [
        ("found", counts.true_positive, BLUE, "white"),
        ("missed", counts.false_negative, PALE, "black"),
        ("false alarm", counts.false_positive, ORANGE, "white"),
        ("rightly absent", counts.true_negative, "#e8e8e8", "black"),
    ]
    total = np.maximum(counts.positives + counts.negatives, 1)
    figure = Figure(figsize=(9, 0.26 * len(names) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    left = np.zeros(len(names))
    for label, values, colour, ink in parts:
        share = values / total
        bars = axes.barh(np.arange(len(names)), share, left=left, color=colour, label=label, height=0.8)
        shown = [str(value) if wide else "" for value, wide in zip(values, share > 0.035, strict=True)]
        axes.bar_label(bars, shown, label_type="center", fontsize=7, color=ink)
        left += share
    axes.set_yticks(range(len(names)), [shorten(name, 28) for name in names], fontsize=8)
    axes.set(xlim=(0, 1), ylim=(len(names) - 0.4, -0.6))
    axes.set_xlabel("share of the images with a label; numbers are images", fontsize=9)
    axes.spines[:].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return figure


def _co_occurrence(judged: Judged) -> Figure:
    """Draw how often one attribute is present where another is, in the labels and in the decisions beside them."""
    names = judged.report["attributes"]
    short = [shorten(name, 18) for name in names]
    observed = (~np.isnan(judged.labels)).astype(float)
    side = max(3.4, 0.19 * len(names) + 1.6)
    figure = Figure(figsize=(2 * side + 1.2, side + (0.9 if len(names) <= 24 else 0.4)), layout="constrained")
    grid = figure.subplots(1, 2)
    size = 8 if len(names) <= 24 else 6
    scale = ScalarMappable(Normalize(0, 1), cmap="Blues")
    tables = {"labels": (judged.labels == 1).astype(float), "decisions": judged.decisions * observed}
    for axes, (title, present) in zip(grid, tables.items(), strict=True):
        both, given = present.T @ present, present.T @ observed
        table = np.divide(both, given, out=np.full(both.shape, np.nan), where=given > 0)
        axes.imshow(np.ma.masked_invalid(table), norm=scale.norm, cmap=scale.cmap, interpolation="nearest")
        axes.set_facecolor("#dddddd")
        axes.set_title(title, fontsize=10)
        axes.set_xticks(range(len(names)), short, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), short, fontsize=size)
        axes.tick_params(length=0)
        for row, column in np.argwhere(~np.isnan(table)) if len(names) <= 8 else ():
            ink = "white" if table[row, column] > 0.6 else "black"
            axes.text(column, row, f"{table[row, column]:.2f}", ha="center", va="center", fontsize=8, color=ink)
    figure.colorbar(scale, ax=grid, shrink=0.7, label="share")
    figure.suptitle("of the images with the row's attribute, the share that has the column's (grey: none)", fontsize=10)
    return figure


def _worst_mistakes(judged: Judged) -> Figure:
    """Draw the images whose scores contradict their labels most; no attribute takes the places of the others."""
    names, columns = judged.report["attributes"], 6
    right = (judged.decisions == (judged.labels == 1)) | np.isnan(judged.labels)
    margin = np.where(right, -np.inf, np.abs(judged.labels - judged.scores))
    rank = np.argsort(np.argsort(-margin, axis=0, kind="stable"), axis=0)
    margin[rank >= max(3, _MOST_MISTAKES // len(names))] = -np.inf
    order = np.argsort(-margin, axis=None, kind="stable")[: min(_MOST_MISTAKES, np.isfinite(margin).sum())]
    chosen = np.stack(np.unravel_index(order, margin.shape), axis=1).tolist()
    rows = max(1, -(-len(chosen) // columns))
    figure = Figure(figsize=(columns * 2.1, rows * 2.55 + 0.5), layout="constrained")
    for place, (row, k) in enumerate(chosen, start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.set_axis_off()
        try:
            image = read_image(judged.paths[row])
            image.thumbnail((300, 300))
            axes.imshow(image)
        except ImageError as error:
            axes.text(0.5, 0.5, shorten(str(error), 30), ha="center", fontsize=7)
        label = int(judged.labels[row, k])
        told = f"{shorten(names[k], 24)}\nlabelled {label}, score {judged.scores[row, k]:.2f}"
        axes.set_title(told, fontsize=8, color=BLUE if label else ORANGE)
        below: Style = {"ha": "center", "va": "top", "fontsize": 6, "color": GREY, "transform": axes.transAxes}
        axes.text(0.5, -0.02, shorten(judged.paths[row].name, 26), **below)
    title = "worst mistakes: present but missed (blue), absent but found (orange)"
    figure.suptitle(title if chosen else "no mistakes", fontsize=11)
    return figure
