"""Plots of a report: curves with the chosen thresholds, reliability, histograms, worst mistakes."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from aimonk_hf.data.images import read_image, shown_name
from aimonk_hf.errors import ImageError
from aimonk_hf.evaluation.calibration import expected_calibration_error, reliability
from aimonk_hf.evaluation.metrics import Floats
from aimonk_hf.evaluation.report import Judged
from aimonk_hf.evaluation.resampling import ALPHA
from aimonk_hf.storage import atomic_path

Style = dict[str, Any]

# Okabe and Ito's colours, told apart with any kind of colour vision
BLUE, ORANGE, GREY, PALE = "#0072B2", "#D55E00", "#999999", "#9ecae1"
_DASHES: Style = {"color": GREY, "linestyle": "--", "linewidth": 1, "alpha": 0.7}
_DOT: Style = {"color": ORANGE, "markersize": 5, "clip_on": False}
_MOST_MISTAKES = 24
# Beyond this the figures would outgrow a screen or a page: the attributes with the most positives are shown.
_MOST_PANELS = 64


class Tile(NamedTuple):
    """An image with one or two lines below it."""

    path: Path
    told: str
    colour: str


class Panels(NamedTuple):
    """A figure of one small panel per attribute; `draw` takes observed labels and scores [N] and the threshold."""

    title: str
    x_label: str
    y_label: str
    draw: Callable[[Axes, Floats, Floats, float], None]


def write_report_plots(judged: Judged, thresholds: dict[str, float], folder: Path) -> list[Path]:
    """Write the plots of scores and labels [N, K] into `folder` and return their paths."""
    figures = {name: _draw_panels(judged, thresholds, panels) for name, panels in _PANELS.items()}
    mistakes = _worst_mistakes(judged)
    told = "worst mistakes: present but missed (blue), absent but found (orange)" if mistakes else "no mistakes"
    figures["worst_mistakes"] = draw_images({told: mistakes})
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")
    return [folder / f"{name}.png" for name in figures]


def save_figure(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Write a figure atomically, whatever backend the program has chosen."""
    FigureCanvasAgg(figure)
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # names in scripts that the font lacks
        figure.savefig(temporary, dpi=dpi)


def shorten(text: str, length: int, keep_end: bool = False) -> str:
    """Return a name for a figure: on one line, at most so long, without mathematics and bytes that are no text."""
    text = shown_name(text)
    if len(text) > length:
        text = "…" + text[1 - length :] if keep_end else text[: length - 1] + "…"
    return text.replace("$", r"\$")


def draw_images(sections: dict[str, list[Tile]]) -> Figure:
    """Draw images in rows below the titles of their sections."""
    columns = 8
    lines = {title: max(1, -(-len(tiles) // columns)) for title, tiles in sections.items()}
    width, height = columns * 1.5 + 0.2, sum(lines.values()) * 2.0 + len(sections) * 0.4
    figure, top = Figure(figsize=(width, height)), height
    for title, tiles in sections.items():
        figure.text(0.1 / width, (top - 0.1) / height, title, fontsize=11, va="top")
        top -= 0.4
        for place, tile in enumerate(tiles):
            line, column = divmod(place, columns)
            left, bottom = 0.1 + column * 1.5, top - line * 2.0 - 1.4
            axes = figure.add_axes((left / width, bottom / height, 1.4 / width, 1.4 / height))
            axes.set_axis_off()
            try:
                image = read_image(tile.path)
                image.thumbnail((300, 300))
                axes.imshow(image)
            except ImageError as error:
                axes.text(0.5, 0.5, shorten(str(error), 30), ha="center", fontsize=7)
            told = [shorten(tile.path.name, 26, keep_end=True), *(shorten(text, 26) for text in tile.told.split("\n"))]
            below = (left + 0.7) / width, (bottom - 0.03) / height
            figure.text(*below, "\n".join(told), ha="center", va="top", fontsize=7, color=tile.colour)
        top -= lines[title] * 2.0
    return figure


def _draw_panels(judged: Judged, thresholds: dict[str, float], panels: Panels) -> Figure:
    names, title = judged.report["attributes"], panels.title
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
            panels.draw(axes, truth, scores, thresholds[names[k]])
        else:
            axes.text(0.5, 0.5, "one kind of\nlabel only", ha="center", va="center", fontsize=8, color=GREY)
            axes.set(xticks=[], yticks=[])
    figure.suptitle(title, fontsize=11, y=1 - 0.12 / height, va="top")
    figure.supxlabel(panels.x_label, fontsize=9, y=0.08 / height)
    figure.supylabel(panels.y_label, fontsize=9, x=0.08 / width)
    return figure


def _draw_precision_recall(axes: Axes, truth: Floats, scores: Floats, threshold: float) -> None:
    from sklearn.metrics import average_precision_score, precision_recall_curve

    precision, recall, _ = precision_recall_curve(truth, scores)
    axes.plot(recall, precision, color=BLUE, linewidth=1.3, drawstyle="steps-post")
    axes.axhline(truth.mean(), **_DASHES)
    if (decided := scores >= threshold).any():
        axes.plot(truth[decided].sum() / truth.sum(), truth[decided].mean(), "o", **_DOT)
    _unit_square(axes, f"AP {average_precision_score(truth, scores):.2f}")


def _draw_roc(axes: Axes, truth: Floats, scores: Floats, threshold: float) -> None:
    from sklearn.metrics import roc_auc_score, roc_curve

    false_rate, true_rate, _ = roc_curve(truth, scores)
    axes.plot(false_rate, true_rate, color=BLUE, linewidth=1.3)
    axes.plot([0, 1], [0, 1], **_DASHES)
    decided = scores >= threshold
    axes.plot(decided[truth == 0].mean(), decided[truth == 1].mean(), "o", **_DOT)
    _unit_square(axes, f"AUROC {roc_auc_score(truth, scores):.2f}")


def _draw_reliability(axes: Axes, truth: Floats, scores: Floats, threshold: float) -> None:
    mean_score, share, size = reliability(truth, scores)
    axes.plot([0, 1], [0, 1], **_DASHES)
    filled = size > 0  # so that empty bins do not break the line
    axes.plot(mean_score[filled], share[filled], color=BLUE, linewidth=1)
    axes.scatter(mean_score, share, s=6 + 60 * np.sqrt(size / size.sum()), color=BLUE, clip_on=False, zorder=3)
    _unit_square(axes, f"ECE {expected_calibration_error(truth[:, None], scores[:, None])[0]:.3f}")


def _draw_histogram(axes: Axes, truth: Floats, scores: Floats, threshold: float) -> None:
    for value, colour in ((0, ORANGE), (1, BLUE)):
        own = scores[truth == value]
        bars: Style = {"bins": 20, "range": (0, 1), "weights": np.full(len(own), 1 / len(own)), "color": colour}
        axes.hist(own, alpha=0.45, histtype="stepfilled", label=f"{value}: {len(own)}", **bars)
    axes.axvline(threshold, color="black", linewidth=1.2)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.legend(fontsize=7, framealpha=0.7, edgecolor="none", loc="best", handlelength=1)


_DOT_AND_DASHES = "dot: the chosen threshold, dashes: "
_PANELS = {
    "precision_recall": Panels(
        f"precision and recall; {_DOT_AND_DASHES}prevalence", "recall", "precision", _draw_precision_recall
    ),
    "roc": Panels(f"ROC curves; {_DOT_AND_DASHES}chance", "false positive rate", "true positive rate", _draw_roc),
    "reliability": Panels(
        "share of positives by score; size of the dots: images", "score", "share of positives", _draw_reliability
    ),
    "score_histograms": Panels(
        "scores of images labelled 0 and 1, as shares; line: threshold", "score", "share of images", _draw_histogram
    ),
}


def _unit_square(axes: Axes, note: str) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
    axes.set_yticks([0, 0.5, 1], ["0", ".5", "1"])
    axes.legend([], title=note, title_fontsize=8, framealpha=0.7, edgecolor="none", borderpad=0.1, loc="best")


def _worst_mistakes(judged: Judged) -> list[Tile]:
    """Return the images whose scores contradict their labels most; no attribute takes the places of the others."""
    names = judged.report["attributes"]
    right = (judged.decisions == (judged.labels == 1)) | np.isnan(judged.labels)
    margin = np.where(right, -np.inf, np.abs(judged.labels - judged.scores))
    rank = np.argsort(np.argsort(-margin, axis=0, kind="stable"), axis=0)
    margin[rank >= max(3, _MOST_MISTAKES // len(names))] = -np.inf
    order = np.argsort(-margin, axis=None, kind="stable")[: min(_MOST_MISTAKES, np.isfinite(margin).sum())]
    tiles = []
    for row, k in np.stack(np.unravel_index(order, margin.shape), axis=1).tolist():
        label = int(judged.labels[row, k])
        told = f"{names[k]}\nlabelled {label}, score {judged.scores[row, k]:.2f}"
        tiles.append(Tile(judged.paths[row], told, BLUE if label else ORANGE))
    return tiles


def plot_differences(found: dict[str, Any], path: Path) -> None:
    """Write a forest plot of the differences in average precision, with intervals, of an entry of `compare`."""
    rows = [("mAP", found["macro"]["average_precision"])]
    own = found["per_attribute"].items()
    rows += sorted(((name, row["average_precision"]) for name, row in own), key=lambda item: -item[1]["difference"])
    figure = Figure(figsize=(7.5, 1.5 + 0.26 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for place, (_, row) in enumerate(rows):
        colour = (BLUE if row["difference"] > 0 else ORANGE) if row["p_value"] <= ALPHA else GREY
        axes.plot(row["ci95"], [place, place], color=colour, linewidth=2 if place else 3)
        axes.plot(row["difference"], place, "D" if not place else "o", color=colour, markersize=7 if not place else 5)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.axhline(0.5, **_DASHES)
    axes.set_yticks(range(len(rows)), [shorten(name, 32) for name, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"difference in average precision, with its 95% interval; coloured: corrected p at most {ALPHA}")
    other, base = (shorten(found[side], 40, keep_end=True) for side in ("other", "baseline"))
    axes.set_title(f"{other} against {base}, {found['n_images']} images", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def plot_learning_curve(found: dict[str, Any], path: Path) -> None:
    """Write mAP by number of training images with its forecast, and what more images bring to each attribute."""
    rows = [(name, own) for name, own in found["per_attribute"].items() if "gain" in own]
    rows.sort(key=lambda item: -item[1]["gain"])
    figure = Figure(figsize=(11, max(4.0, 1.4 + 0.24 * len(rows))), layout="constrained")
    left, right = figure.subplots(1, 2)
    numbers, macro, more = np.array(found["numbers"]), found["macro"], found["more"]
    if "gain" in macro:
        limit, scale, exponent = macro["curve"]
        along = np.linspace(numbers[0], numbers[-1] + more, 100)
        left.plot(along, limit - scale * (along / 100) ** -exponent, "--", color=GREY, label="a - b n^-c")
        left.errorbar(numbers, macro["average_precision"], macro["deviation"], fmt="o", color=BLUE, label="measured")
        forecast = macro["average_precision"][-1] + macro["gain"]
        error = np.abs(np.subtract(macro["gain_ci95"], macro["gain"]))[:, None]
        left.errorbar(numbers[-1] + more, forecast, error, fmt="D", color=ORANGE, label=f"{more} more")
        left.legend(frameon=False, loc="lower right")
    left.set_xlabel("training images")
    left.set_ylabel("mAP of the probe")
    for place, (_, own) in enumerate(rows):
        colour = BLUE if own["limited_by"] == "number" else GREY
        right.plot(own["gain_ci95"], [place, place], color=colour, linewidth=2)
        right.plot(own["gain"], place, "o", color=colour, markersize=5)
    right.axvline(0, color="black", linewidth=0.8)
    right.set_yticks(range(len(rows)), [shorten(name, 28) for name, _ in rows])
    right.set_ylim(len(rows) - 0.5, -0.5)
    right.set_xlabel(f"gain in average precision by {more} more images (blue: clear)")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
