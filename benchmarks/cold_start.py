"""Time a fresh process up to its first answer: the command, transformers' pipeline, timm by hand, and the import.

    python benchmarks/cold_start.py [--model FOLDER] [--image FILE] [--rounds 5] [--json FILE]

The processes take turns; medians over rounds are shown, and ratios are taken within each round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from prediction_speed import PIPELINE, draw, write_model

OURS = "aimonk-hf predict"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="model folder; without it a mobilenetv2_100 with random weights")
    parser.add_argument("--image", type=Path, help="without it a drawn one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error")
    with tempfile.TemporaryDirectory() as temporary:
        # elsewhere, because the peak of a process begins with the memory of the one that starts it
        with ProcessPoolExecutor(1, get_context("spawn")) as elsewhere:
            place = Path(temporary)
            model = options.model or elsewhere.submit(write_model, place / "model", "mobilenetv2_100").result()
            image = options.image or elsewhere.submit(draw, place / "images", 1).result()[0]
        found = measure(model, image, options.rounds)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


PIPELINE_SCRIPT = """
import sys
from transformers import pipeline
print(pipeline("image-classification", sys.argv[2], top_k=1000)(sys.argv[1]))
"""
TIMM_SCRIPT = """
import sys
import timm, torch
from PIL import Image
network = timm.create_model("local-dir:" + sys.argv[2], pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
with torch.inference_mode():
    print(network(transform(Image.open(sys.argv[1]).convert("RGB"))[None]).sigmoid())
"""


def start_commands(model: str, image: str) -> dict[str, list[str]]:
    return {
        OURS: ["-m", "aimonk_hf", "predict", image, "--model", model],
        PIPELINE: ["-c", PIPELINE_SCRIPT, image, model],
        "timm by hand": ["-c", TIMM_SCRIPT, image, model],
        "import aimonk_hf": ["-c", "import aimonk_hf"],
        "python -c pass": ["-c", "pass"],
    }


def measure(model: Path, image: Path, rounds: int) -> dict[str, Any]:
    """Time whole processes, from their start to their end; an answer is printed on the way."""
    python = sys.executable
    commands = {name: [python, *rest] for name, rest in start_commands(str(model), str(image)).items()}
    for command in commands.values():
        run(command)  # brings the files into memory
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            found[name].append(run(command)[:2])
    times = {name: [seconds for seconds, _ in rows] for name, rows in found.items()}
    memory = {name: statistics.median(megabytes for _, megabytes in rows) for name, rows in found.items()}
    ratio = statistics.median(own / other for own, other in zip(times[OURS], times[PIPELINE], strict=True))
    added = statistics.median(
        own - empty for own, empty in zip(times["import aimonk_hf"], times["python -c pass"], strict=True)
    )
    imported = import_seconds(python, rounds)
    from aimonk_hf.console import table

    print(f"a fresh process, {rounds} rounds (wanted: 0.15x of the pipeline and 1/6 of its memory)")
    rows = [
        [name, f"{statistics.median(t):.3f}", f"{min(t):.3f}-{max(t):.3f}", f"{memory[name]:.0f} MB"]
        for name, t in times.items()
    ]
    print(table(["", "seconds", "range", "peak memory"], rows))
    share = memory[OURS] / memory[PIPELINE]
    print(f"{OURS} takes {ratio:.2f}x as long as the pipeline, and {share:.2f} of its memory")
    print(f"import aimonk_hf adds {added:.3f} s to an empty process; python -X importtime says {imported:.3f} s")
    return {
        "seconds": times,
        "megabytes": memory,
        "ratio_to_pipeline": ratio,
        "memory_ratio_to_pipeline": share,
        "import_seconds": added,
        "importtime_seconds": imported,
    }


def run(command: list[str]) -> tuple[float, float, str]:
    """Return the seconds and the peak megabytes of a process, and what it wrote on stderr."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        written = errors.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:4])} failed: {written.strip()[-500:]}")
    return seconds, usage.ru_maxrss / 1024, written


def import_seconds(python: str, rounds: int) -> float:
    """Return the median of what `python -X importtime` says of `import aimonk_hf`, with all that it imports."""
    return statistics.median(
        cumulative / 1e6
        for _ in range(rounds)
        for name, cumulative in import_times(run([python, "-X", "importtime", "-c", "import aimonk_hf"])[2])
        if name == "aimonk_hf"
    )


def import_times(text: str) -> Iterator[tuple[str, int]]:
    """Yield each module with its microseconds, those of its own imports included."""
    for line in text.splitlines():
        cells = line.removeprefix("import time:").split("|")
        if len(cells) == 3 and cells[1].strip().isdigit():
            yield cells[2].strip(), int(cells[1])


if __name__ == "__main__":
    main()
