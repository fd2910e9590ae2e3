"""Draw the race's table and plot, from runs: name, planned epochs, whether it was cut, and a row per measurement."""

from pathlib import Path
from typing import Any

from aimonk_hf.console import table

GREY, BLUE, OTHERS = "#7f8c8d", "#2563eb", ("#d97706", "#059669")


def summarise(run: dict[str, Any], plain_rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a run's line of the table: its end, beside the end of the plain loop and its mAP."""
    mark, last = plain_rows[-1], run["rows"][-1]
    in_time = [row["mAP"] for row in run["rows"] if row["seconds"] <= mark["seconds"]]
    reached = [row["seconds"] for row in run["rows"] if row["mAP"] >= mark["mAP"]]
    training = run.get("training_seconds", last["seconds"])  # a loop's clock runs while it trains
    return {
        "name": run["name"],
        "epochs": last["epochs"],
        "planned_epochs": run["planned_epochs"],
        "cut": run["cut"],
        "seconds": last["seconds"],
        "share": last["seconds"] / mark["seconds"],
        "training_seconds": training,
        "training_share": training / mark["seconds"],
        "mAP": last["mAP"],
        "above": last["mAP"] - mark["mAP"],
        "mAP_in_its_time": in_time[-1] if in_time else None,
        "seconds_to_its_mAP": reached[0] if reached else None,
        "peak_memory_mb": last["peak_memory_mb"],
    }


def print_table(lines: list[dict[str, Any]]) -> None:
    header = [
        "",
        "epochs",
        "wall clock",
        "share of the plain loop's",
        "training alone",
        "its share",
        "mAP",
        "above it",
        "in its time",
    ]
    header += ["time to its mAP", "peak memory"]
    print(table(header, [cells(line) for line in lines]))


def cells(line: dict[str, Any]) -> list[str]:
    in_time, reached = line["mAP_in_its_time"], line["seconds_to_its_mAP"]
    return [
        line["name"],
        f"{line['epochs']} of {line['planned_epochs']}, cut" if line["cut"] else str(line["epochs"]),
        f"{line['seconds']:.0f} s",
        share_of_it(line["share"]),
        f"{line['training_seconds']:.0f} s",
        share_of_it(line["training_share"]),
        f"{line['mAP']:.3f}",
        f"{line['above']:+.3f}",
        "none yet" if in_time is None else f"{in_time:.3f}",
        "not reached" if reached is None else f"{reached:.0f} s",
        f"{line['peak_memory_mb']:.0f} MB",
    ]


def share_of_it(share: float) -> str:
    return f"1/{1 / share:.1f}" if share < 0.95 else f"{share:.2f}"


def draw(plain: dict[str, Any], peers: list[dict[str, Any]], recipes: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.6), layout="constrained")
    for run, color in zip((plain, *peers), (GREY, *OTHERS), strict=False):
        label = f"{run['name']}, after each epoch" + ", cut" * run["cut"]
        axes.plot(
            [row["seconds"] / 60 for row in run["rows"]],
            [row["mAP"] for row in run["rows"]],
            "o-",
            color=color,
            label=label,
        )
    ends = [run["rows"][-1] for run in recipes]
    axes.plot(
        [row["seconds"] / 60 for row in ends],
        [row["mAP"] for row in ends],
        "s",
        color=BLUE,
        label="recipes, whole runs",
    )
    for run, row in zip(recipes, ends, strict=True):
        axes.annotate(run["name"], (row["seconds"] / 60, row["mAP"]), (6, -4), textcoords="offset points", fontsize=9)
    axes.axhline(plain["rows"][-1]["mAP"], color=GREY, linewidth=0.8, linestyle=":")
    axes.set(xlabel="minutes", ylabel="mAP on images that chose nothing", xlim=(0, None))
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
