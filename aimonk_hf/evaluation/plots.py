"""Pictures of a report: curves with the chosen thresholds, reliability, confusion counts, score histograms, co-occurrence, worst mistakes."""

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
from numpy.typing import NDArray

from aimonk_hf.data.images import read_image
from aimonk_hf.errors import ImageError
from aimonk_hf.evaluation.calibration import reliability
from aimonk_hf.evaluation.metrics import count_decisions
from aimonk_hf.evaluation.report import Judged
from aimonk_hf.storage import atomic_path

Floats = NDArray[np.floating[Any]]
Draw = Callable[[Axes, Floats, Floats, float], None]

# Okabe and Ito's colours, told apart with any kind of colour vision
_POSITIVE, _NEGATIVE, _MISSING, _GREY = "#0072B2", "#D55E00", "#999999", "#bbbbbb"
_MOST_MISTAKES = 24
_COLUMNS = 8
# Beyond this the figures would grow past what a screen or a page holds: the attributes with the most positives are shown.
_MOST_PANELS = 64


def write_report_plots(judged: Judged, thresholds: dict[str, float], folder: Path) -> list[Path]:
    """Write the plots of scores and labels [N, K] into `folder` and return their paths."""
    written = []
    for name, title, axis_labels, draw in (
        (
            "precision_recall",
            "precision and recall; dot: the chosen threshold, dashes: prevalence",
            ("recall", "precision"),
            _draw_precision_recall,
        ),
        (
            "roc",
            "ROC curves; dot: the chosen threshold, dashes: chance",
            ("false positive rate", "true positive rate"),
            _draw_roc,
        ),
        (
            "reliability",
            "reliability: share of positives by score; size of the dots: images",
            ("score", "share of positives"),
            _draw_reliability,
        ),
        (
            "score_histograms",
            "scores of the images labelled 0 and 1, as shares of each; line: threshold",
            ("score", "share of the images so labelled"),
            _draw_histogram,
        ),
    ):
        written.append(_panels(judged, thresholds, folder / f"{name}.png", title, axis_labels, draw))
    written.append(_confusion(judged, folder / "confusion.png"))
    written.append(_co_occurrence(judged, folder / "co_occurrence.png"))
    written.append(_worst_mistakes(judged, thresholds, folder / "worst_mistakes.png"))
    return written


def _panels(
    judged: Judged, thresholds: dict[str, float], path: Path, title: str, axis_labels: tuple[str, str], draw: Draw
) -> Path:
    """Draw one small panel per attribute."""
    names = judged.report["attributes"]
    order = np.arange(len(names))
    if len(names) > _MOST_PANELS:
        order = np.sort(np.argsort(-(judged.labels == 1).sum(axis=0), kind="stable")[:_MOST_PANELS])
        title += f" (the {_MOST_PANELS} attributes with the most positives)"
    columns = len(order) if len(order) <= 4 else min(_COLUMNS, int(np.ceil(np.sqrt(len(order) * 1.5))))
    rows = -(-len(order) // columns)
    side = 2.8 if columns <= 4 else 2.0
    width, height = columns * side + 0.7, rows * (side + 0.1) + 1.0
    figure = Figure(
        figsize=(width, height)
    )  # placed by hand: the automatic layout takes most of a minute for 40 panels
    grid = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(0.65 / width, 0.55 / height, 1 - 0.1 / width, 1 - 0.7 / height, wspace=0.28, hspace=0.38)
    for place, axes in enumerate(grid.flat):
        if place >= len(order):
            axes.set_axis_off()
            continue
        k = int(order[place])
        observed = ~np.isnan(judged.labels[:, k])
        truth, scores = judged.labels[observed, k], judged.scores[observed, k]
        axes.set_title(_short(names[k], 20), fontsize=9)
        axes.tick_params(labelsize=7, length=2)
        axes.spines[["top", "right"]].set_visible(False)
        if (truth == 1).any() and (truth == 0).any():
            draw(axes, truth, scores, thresholds[names[k]])
        else:
            axes.text(
                0.5,
                0.5,
                "one kind of\nlabel only",
                ha="center",
                va="center",
                fontsize=8,
                color=_MISSING,
                transform=axes.transAxes,
            )
            axes.set_xticks([])
            axes.set_yticks([])
    figure.suptitle(title, fontsize=11, y=1 - 0.12 / height, va="top")
    figure.supxlabel(axis_labels[0], fontsize=9, y=0.08 / height)
    figure.supylabel(axis_labels[1], fontsize=9, x=0.08 / width)
    return _save(figure, path)


def _draw_precision_recall(axes: Axes, truth: Floats, scores: Floats, threshold: float) -> None:
    from sklearn.metrics import average_precision_score, precision_recall_curve

    precision, recall, _ = precision_recall_curve(truth, scores)
    axes.plot(recall, precision, color=_POSITIVE, linewidth=1.3, drawstyle="steps-post")
    axes.axhline(truth.mean(), color=_GREY, linestyle="--", linewidth=1)
    decided = scores >= threshold
    if decided.any():
        axes.plot(
            (decided & (truth == 1)).sum() / truth.sum(),
            truth[decided].mean(),
            "o",
            color=_NEGATIVE,
            markersize=5,
            clip_on=False,
        )
    _unit_square(axes, f"AP {average_precision_score(truth, scores):.2f}", "lower left")


def _draw_roc(axes: Axes, truth: Floats, scores: Floats, threshold: float) -> None:
    from sklearn.metrics import roc_auc_score, roc_curve

    false_rate, true_rate, _ = roc_curve(truth, scores)
    axes.plot(false_rate, true_rate, color=_POSITIVE, linewidth=1.3)
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1)
    decided = scores >= threshold
    axes.plot(decided[truth == 0].mean(), decided[truth == 1].mean(), "o", color=_NEGATIVE, markersize=5, clip_on=False)
    _unit_square(axes, f"AUROC {roc_auc_score(truth, scores):.2f}", "lower right")


def _draw_reliability(axes: Axes, truth: Floats, scores: Floats, threshold: float) -> None:
    mean_score, share, size = reliability(truth, scores)
    filled = size > 0
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1)
    axes.plot(mean_score[filled], share[filled], color=_POSITIVE, linewidth=1)
    axes.scatter(
        mean_score[filled],
        share[filled],
        s=6 + 60 * np.sqrt(size[filled] / size.sum()),
        color=_POSITIVE,
        clip_on=False,
        zorder=3,
    )
    error = np.abs(mean_score - share)[filled] @ size[filled] / size.sum()
    _unit_square(axes, f"ECE {error:.3f}", "upper left")


def _draw_histogram(axes: Axes, truth: Floats, scores: Floats, threshold: float) -> None:
    bins = list(np.linspace(0, 1, 21))
    for value, colour in ((0, _NEGATIVE), (1, _POSITIVE)):
        own = scores[truth == value]
        shares = np.full(len(own), 1 / len(own))
        axes.hist(
            own,
            bins=bins,
            weights=shares,
            color=colour,
            alpha=0.45,
            histtype="stepfilled",
            label=f"{value}: {len(own)}",
        )
        axes.hist(own, bins=bins, weights=shares, color=colour, histtype="step", linewidth=1.2)
    axes.axvline(threshold, color="black", linewidth=1.2)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.legend(fontsize=7, framealpha=0.7, edgecolor="none", loc="best", handlelength=1)


def _unit_square(axes: Axes, note: str, corner: str) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
    axes.set_yticks([0, 0.5, 1], ["0", ".5", "1"])
    vertical, horizontal = corner.split()
    x, y = {"left": 0.05, "right": 0.97}[horizontal], {"lower": 0.05, "upper": 0.93}[vertical]
    axes.text(
        *(x, y, note),
        fontsize=8,
        ha=horizontal,
        va={"lower": "bottom", "upper": "top"}[vertical],
        transform=axes.transAxes,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1},
    )


def _confusion(judged: Judged, path: Path) -> Path:
    """Draw the confusion counts of each attribute as a bar of shares, with the numbers in it."""
    names = judged.report["attributes"]
    counts = count_decisions(judged.labels, judged.decisions)
    parts = [
        ("found", counts.true_positive, _POSITIVE, "white"),
        ("missed", counts.false_negative, "#9ecae1", "black"),
        ("false alarm", counts.false_positive, _NEGATIVE, "white"),
        ("rightly absent", counts.true_negative, "#e8e8e8", "black"),
    ]
    total = np.maximum(sum(values for _, values, _, _ in parts), 1)
    figure = Figure(figsize=(9, 0.26 * len(names) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    left = np.zeros(len(names))
    for label, values, colour, ink in parts:
        share = values / total
        axes.barh(np.arange(len(names)), share, left=left, color=colour, label=label, height=0.8)
        for place in np.flatnonzero(share > 0.035):
            axes.text(
                left[place] + share[place] / 2,
                float(place),
                str(values[place]),
                ha="center",
                va="center",
                fontsize=7,
                color=ink,
            )
        left += share
    axes.set_yticks(range(len(names)), [_short(name, 28) for name in names], fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the images with a label; numbers are images", fontsize=9)
    axes.spines[:].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return _save(figure, path)


def _co_occurrence(judged: Judged, path: Path) -> Path:
    """Draw how often one attribute is present where another is: in the labels, and in the decisions on the same cells."""
    names = judged.report["attributes"]
    positive, observed = (judged.labels == 1).astype(float), (~np.isnan(judged.labels)).astype(float)
    decided = judged.decisions.astype(float) * observed
    tables = [_conditional(values, observed) for values in (positive, decided)]
    side = max(3.4, 0.19 * len(names) + 1.6)
    figure = Figure(figsize=(2 * side + 1.2, side + (0.9 if len(names) <= 24 else 0.4)), layout="constrained")
    grid = figure.subplots(1, 2)
    size = 8 if len(names) <= 24 else 6
    scale = ScalarMappable(Normalize(0, 1), cmap="Blues")
    for axes, table, title in zip(grid, tables, ("labels", "decisions"), strict=True):
        axes.imshow(np.ma.masked_invalid(table), norm=scale.norm, cmap=scale.cmap, interpolation="nearest")
        axes.set_facecolor("#dddddd")
        axes.set_title(title, fontsize=10)
        axes.set_xticks(range(len(names)), [_short(name, 18) for name in names], rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), [_short(name, 18) for name in names], fontsize=size)
        axes.tick_params(length=0)
        if len(names) <= 8:
            for row, column in np.argwhere(~np.isnan(table)):
                ink = "white" if table[row, column] > 0.6 else "black"
                axes.text(column, row, f"{table[row, column]:.2f}", ha="center", va="center", fontsize=8, color=ink)
    figure.colorbar(scale, ax=grid, shrink=0.7, label="share")
    figure.suptitle("of the images with the row's attribute, the share that has the column's (grey: none)", fontsize=10)
    return _save(figure, path)


def _conditional(present: Floats, observed: Floats) -> Floats:
    both, given = present.T @ present, present.T @ observed
    return np.divide(both, given, out=np.full(both.shape, np.nan), where=given > 0)


def _worst_mistakes(judged: Judged, thresholds: dict[str, float], path: Path) -> Path:
    """Draw the images whose scores contradict their labels most, at most three per attribute while others have any."""
    names = judged.report["attributes"]
    wrong = np.where(np.isnan(judged.labels), -np.inf, np.abs(judged.labels - judged.scores))
    wrong[judged.decisions == (judged.labels == 1)] = -np.inf
    chosen = _spread(wrong, min(_MOST_MISTAKES, int(np.isfinite(wrong).sum())))
    columns = 6
    rows = max(1, -(-len(chosen) // columns))
    figure = Figure(figsize=(columns * 2.1, rows * 2.55 + 0.5), layout="constrained")
    for place, (row, k) in enumerate(chosen):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.set_axis_off()
        try:
            picture = read_image(judged.paths[row])
            picture.thumbnail((300, 300))
            axes.imshow(np.asarray(picture))
        except ImageError as error:
            axes.text(0.5, 0.5, _short(str(error), 30), ha="center", fontsize=7)
        label = int(judged.labels[row, k])
        told = f"labelled {label}, score {judged.scores[row, k]:.2f}"
        axes.set_title(f"{_short(names[k], 24)}\n{told}", fontsize=8, color=_POSITIVE if label else _NEGATIVE)
        axes.text(
            0.5,
            -0.02,
            _short(judged.paths[row].name, 26),
            ha="center",
            va="top",
            fontsize=6,
            color=_MISSING,
            transform=axes.transAxes,
        )
    figure.suptitle(
        "worst mistakes: present but missed (blue), absent but found (orange)" if chosen else "no mistakes", fontsize=11
    )
    return _save(figure, path)


def _spread(wrong: Floats, n: int) -> list[tuple[int, int]]:
    """Return the n worst (row, attribute), three per attribute first."""
    order = [
        (int(row), int(k)) for row, k in zip(*np.unravel_index(np.argsort(-wrong, axis=None), wrong.shape), strict=True)
    ]
    order = [place for place in order if np.isfinite(wrong[place])]
    taken: dict[int, int] = {}
    first: list[tuple[int, int]] = []
    for place in order:
        taken[place[1]] = taken.get(place[1], 0) + 1
        if taken[place[1]] <= 3:
            first.append(place)
    return sorted((first + [place for place in order if place not in set(first)])[:n], key=lambda place: -wrong[place])


def _short(text: str, length: int) -> str:
    text = text.encode("utf-8", "replace").decode().replace("$", r"\$")
    return text if len(text) <= length else text[: length - 1] + "…"


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return path
