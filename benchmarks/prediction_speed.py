"""Prediction beside its limits and beside transformers: a folder of images, and one image.

    python benchmarks/prediction_speed.py [--model FOLDER] [--images FOLDER] [--count 256] [--rounds 5] [--parts
        folder,latency] [--json FILE]

Without --model a mobilenetv2_100 with random weights is read: speed does not depend on the weights, but the score
changes in bf16 do, so name a trained model for those. Without --images drawn photographs are read (600 x 800 pixels,
about 100 kB). Every contestant of the folder part has a process of its own and takes its turn in every round, while the
others wait. Medians over rounds are shown, and ratios are taken within each round. The bare forwards have their pixels
in memory: onnxruntime and OpenVINO (where it is installed) in batches of 8, torch in batches of 32 as a script does, or
of 8, channels_last, with freed memory kept. bf16 is left out where the processor has no instructions for it: it takes
many times as long there. All exact readers must agree within 1e-4 in every score.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from decode_cache import draw_images
from readers import WAYS, Contestant, Scores, timm_by_hand

TOLERANCE = 1e-4
PARTS = ("folder", "latency")
OURS, PIPELINE, BARE = "aimonk_hf", "transformers pipeline", "bare onnxruntime"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="model folder; without it random weights")
    parser.add_argument("--architecture", default="mobilenetv2_100", help="timm name of the random network")
    parser.add_argument("--images", type=Path, help="folder of images; without it drawn ones")
    parser.add_argument("--count", type=int, default=256, help="images that are read at most")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--workers", type=int, help="threads that decode; by default the library's choice")
    parser.add_argument("--repeats", type=int, default=20, help="predictions of one image in each round")
    parser.add_argument(
        "--start-method",
        choices=("spawn", "fork"),
        default="spawn",
        help="fork starts sooner, for a trial; times share memory",
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    parts = options.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}: name some of {','.join(PARTS)}")
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error")
    found: dict[str, Any] = {"settings": {key: str(value) for key, value in vars(options).items()}}
    with tempfile.TemporaryDirectory() as temporary:
        model = options.model or write_model(Path(temporary) / "model", options.architecture)
        paths = find_images(options.images, options.count) or draw(Path(temporary) / "images", options.count)
        measures = {"folder": measure_folder, "latency": measure_latency}
        for part in parts:
            found[part] = measures[part](model, paths, options)
            print()
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def write_model(folder: Path, architecture: str) -> Path:
    import torch

    from aimonk_hf import AimonkModel
    from aimonk_hf.modeling.onnx_export import export_folder

    torch.manual_seed(0)
    model = AimonkModel.from_timm(architecture, ["sleeves", "stripes", "collar", "belt"], pretrained=False)
    torch.nn.init.normal_(model.timm_model.get_classifier().weight, std=0.02)  # scores between 0 and 1, not at them
    export_folder(model, folder)
    return folder


def find_images(folder: Path | None, count: int) -> list[Path]:
    from aimonk_hf.modeling.predict_files import ImageFiles

    return list(islice(ImageFiles([folder]), count)) if folder else []


def draw(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    return draw_images(folder, count)


# A folder of images


def measure_folder(model: Path, paths: list[Path], options: argparse.Namespace) -> dict[str, Any]:
    contestants = choose_contestants(options)
    context = multiprocessing.get_context(options.start_method)
    ends, processes = {}, {}
    rates: dict[str, list[float]] = {}
    scores: dict[str, Scores] = {}
    for one in contestants:
        ends[one.name], theirs = context.Pipe()
        processes[one.name] = context.Process(target=serve, args=(one, theirs, model, paths), daemon=True)
        processes[one.name].start()
        theirs.close()  # so that its death ends our waiting
        _, scores[one.name] = ask(ends[one.name], one.name)  # also warms it up
        rates[one.name] = []
    for _ in range(options.rounds):
        for name, end in ends.items():
            rate, _ = ask(end, name)
            rates[name].append(rate)
    for name, end in ends.items():
        end.send(False)
        processes[name].join()
    rows = [describe(one, rates, scores) for one in contestants]
    print_folder(rows, len(paths), options.rounds)
    if wrong := [row["name"] for row in rows if row["exact"] and row["largest_change"] > TOLERANCE]:
        raise SystemExit(f"these scores differ by more than {TOLERANCE} from those of {OURS}: {', '.join(wrong)}")
    return {"n_images": len(paths), "contestants": rows}


def choose_contestants(options: argparse.Namespace) -> list[Contestant]:
    workers = options.workers
    contestants = [
        Contestant(OURS, "library", workers=workers),
        Contestant("aimonk_hf, torch", "library", backend="torch", workers=workers),
        Contestant("aimonk_hf, torch in bf16", "library", backend="torch", precision="bf16", workers=workers),
        Contestant(BARE, "bare onnx", 8),
        Contestant("bare OpenVINO", "bare openvino", 8),
        Contestant("bare torch", "bare"),
        Contestant("bare torch, channels_last", "bare", 8, layout="channels_last", keep_memory=True),
        Contestant("bare torch in bf16", "bare", 8, layout="channels_last", precision="bf16", keep_memory=True),
        Contestant(PIPELINE, "pipeline"),
    ]
    if find_spec("openvino") is None:
        contestants = [one for one in contestants if one.way != "bare openvino"]
    return [one for one in contestants if one.exact or computes_bf16()]


def computes_bf16() -> bool:
    """Whether the processor has instructions for it."""
    import torch

    processor = torch.cpu.get_capabilities()
    return any(processor.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def ask(end: Connection, name: str) -> tuple[float, Scores]:
    end.send(True)
    try:
        answer: tuple[float, Scores] = end.recv()
    except EOFError:
        raise SystemExit(f"the contestant {name!r} has ended: its own message says why") from None
    return answer


def serve(one: Contestant, pipe: Connection, model: Path, paths: list[Path]) -> None:
    """In a process of its own: score all images as often as asked, and send images a second and scores [N, K]."""
    score = WAYS[one.way](one, model, paths)
    while pipe.recv():
        start = time.perf_counter()
        scores = score()
        pipe.send((len(paths) / (time.perf_counter() - start), scores))


def describe(one: Contestant, rates: dict[str, list[float]], scores: dict[str, Scores]) -> dict[str, Any]:
    change = np.abs(scores[one.name] - scores[OURS])
    own = rates[one.name]

    def ratio(other: str) -> float:
        return statistics.median(mine / theirs for mine, theirs in zip(own, rates[other], strict=True))

    return {
        "name": one.name,
        "exact": one.exact,
        "images_per_second": statistics.median(own),
        "ratio_to_bare": ratio(BARE),
        "ratio_to_pipeline": ratio(PIPELINE),
        "largest_change": float(change.max()),
        "mean_change": float(change.mean()),
        "rounds": own,
    }


def print_folder(rows: list[dict[str, Any]], n_images: int, rounds: int) -> None:
    from aimonk_hf.console import table

    header = ["", "images/s", "range", f"to the {BARE}", "to the pipeline", "largest score change", "mean"]
    cells = [
        [
            row["name"],
            f"{row['images_per_second']:.1f}",
            f"{min(row['rounds']):.1f}-{max(row['rounds']):.1f}",
            f"{row['ratio_to_bare']:.2f}x",
            f"{row['ratio_to_pipeline']:.2f}x",
            f"{row['largest_change']:.1e}",
            f"{row['mean_change']:.1e}",
        ]
        for row in rows
    ]
    print(
        f"a folder of {n_images} images, {rounds} rounds (wanted: {OURS} 0.85x of the {BARE}, 5 to 6x of the pipeline)"
    )
    print(table(header, cells))


# One image


def measure_latency(model: Path, paths: list[Path], options: argparse.Namespace) -> dict[str, Any]:
    """`predictor.predict(path)` and the same by timm take turns in this process."""
    from aimonk_hf import AimonkPredictor

    ours = AimonkPredictor.from_pretrained(model)
    by_hand = timm_by_hand(model)
    own_scores, other_scores = list(ours.predict(paths[0]).scores.values()), by_hand(paths[0])
    change = float(np.abs(np.array(own_scores) - other_scores).max())
    if change > TOLERANCE:
        raise SystemExit(f"predictor.predict and timm by hand differ by {change:.1e} in a score")
    times: dict[str, list[list[float]]] = {"predictor.predict": [], "by hand": []}
    for _ in range(options.rounds):
        for own in times.values():
            own.append([])
        for number in range(options.repeats):
            path = paths[number % len(paths)]
            times["predictor.predict"][-1].append(seconds(partial(ours.predict, path)))
            times["by hand"][-1].append(seconds(partial(by_hand, path)))
    medians = {name: [statistics.median(each) for each in rounds] for name, rounds in times.items()}
    late = {name: float(np.quantile(np.concatenate(rounds), 0.95)) for name, rounds in times.items()}
    ratio = statistics.median(
        own / other for own, other in zip(medians["predictor.predict"], medians["by hand"], strict=True)
    )
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "median_ms": 1000 * statistics.median(medians[name]),
            "p95_ms": 1000 * late[name],
            "rounds": medians[name],
        }
        for name in times
    ]
    from aimonk_hf.console import table

    print(f"one image, {options.rounds} rounds of {options.repeats} (wanted: 0.60x)")
    print(
        table(
            ["", "median", "p95"],
            [[row["name"], f"{row['median_ms']:.1f} ms", f"{row['p95_ms']:.1f} ms"] for row in rows],
        )
    )
    print(f"predictor.predict takes {ratio:.2f}x as long as by hand; largest score change {change:.1e}")
    return {"contestants": rows, "ratio": ratio, "largest_change": change}


def seconds(act: Callable[[], Any]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
