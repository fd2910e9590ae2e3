"""The app under load, beside the bare model in the same process: requests a second, threshold moves, start-up, memory.

    python benchmarks/app_load.py [--model FOLDER] [--requests 200] [--clients 16] [--memory-requests 1000] [--json
        FILE]

Without --model a mobilenetv2_100 with random weights is served (speed does not depend on the weights). Clients are
threads of one other process, which speak plain HTTP as curl would, once to /v1/predict and once to gradio's /predict
(upload, call, answer); they share the machine's cores with the app.
"""

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

from prediction_speed import draw, write_model

ROOT = Path(__file__).parents[1]
ROUNDS = 5
WAYS = {"/v1/predict": 0.7, "gradio's /predict": 0.4}  # interfaces, and the wanted share of the bare model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--memory-requests", type=int, default=1000)
    parser.add_argument("--way", choices=WAYS, default="/v1/predict", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--as-client", nargs=3, metavar=("URL", "PICTURES", "COUNT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_client:
        url, folder, count = options.as_client
        print(json.dumps(run_clients(url, sorted(Path(folder).iterdir()), int(count), options.clients, options.way)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        model = options.model or write_model(Path(temporary) / "model", "mobilenetv2_100")
        images = draw(Path(temporary) / "images", options.requests)
        found: dict[str, Any] = {"start_up_seconds": start_up(model)}
        print(f"start-up:         {found['start_up_seconds']:.1f} s until the page answers")
        found |= measure(model, images, options)
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items()}
        options.json.write_text(json.dumps({"settings": settings, **found}, indent=2) + "\n")


def start_up(model: Path) -> float:
    import httpx

    started = time.perf_counter()
    app = subprocess.Popen(
        [sys.executable, str(ROOT / "app.py"), "--model", str(model), "--port", "7899"], stdout=subprocess.DEVNULL
    )
    try:
        while time.perf_counter() - started < 120:
            try:
                if httpx.get("http://127.0.0.1:7899").status_code == 200:
                    return time.perf_counter() - started
            except httpx.TransportError:
                time.sleep(0.05)
        raise SystemExit("the app did not start within two minutes")
    finally:
        app.terminate()
        app.wait()


def measure(model: Path, images: list[Path], options: argparse.Namespace) -> dict[str, Any]:
    """Print the figures of a served model, and return them."""
    from aimonk_hf.app.page import build_page
    from aimonk_hf.app.serve import app_folder, launch, load_served

    with app_folder():
        served = load_served(str(model))
        page = build_page(served, [])
        url = launch(page, "127.0.0.1", None, wait=False)
        bare_seconds(served.scorer.model, images[:32])
        clients(url, images, 2 * options.clients, options)  # both are warm now
        found = measure_load(url, served, images, options)
        moves = threshold_moves(page, url, served, 100)
        print(
            f"threshold moves:  {statistics.median(moves) * 1000:.1f} ms median over HTTP, "
            f"{max(moves) * 1000:.0f} ms at most (wanted: 50)"
        )
        found |= {"threshold_move_seconds": moves, "memory_mb": measure_memory(url, images, options)}
        page.close()
        served.scorer.close()
    return found


def measure_load(url: str, served: Any, images: list[Path], options: argparse.Namespace) -> dict[str, Any]:
    """Take turns of the bare model and the app's two interfaces in short rounds, because other work comes and goes."""
    bare: list[float] = []
    loads: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        bare.append(bare_seconds(served.scorer.model, images))
        for way in WAYS:
            n_images, n_batches = served.scorer.n_images, served.scorer.n_batches
            load = clients(url, images, options.requests, options, way)
            load["per_batch"] = (served.scorer.n_images - n_images) / (served.scorer.n_batches - n_batches)
            loads[way].append(load)
    per_second = len(images) * ROUNDS / sum(bare)
    print(f"bare model:       {per_second:.1f} images a second, decoding included, batches of 16")
    return {"bare_pictures_per_second": per_second} | {way: summary(way, loads[way], bare, options) for way in WAYS}


def summary(way: str, loads: list[dict[str, Any]], bare: list[float], options: argparse.Namespace) -> dict[str, Any]:
    """Print the figures of one interface, and return them."""
    seconds = [load["seconds"] for load in loads]
    times = sorted(chain.from_iterable(load["times"] for load in loads))
    ratios = sorted(alone / app for alone, app in zip(bare, seconds, strict=True))
    rate, late = options.requests * ROUNDS / sum(seconds), times[int(0.95 * (len(times) - 1))]
    per_batch = statistics.mean(load["per_batch"] for load in loads)
    print(
        f"{way + ':':<17} {rate:.1f} requests a second by {options.clients} clients, {per_batch:.1f} images a batch\n"
        f"                  {statistics.median(times) * 1000:.0f} ms median, {late * 1000:.0f} ms p95\n"
        f"                  {statistics.median(ratios):.2f} of the bare model (wanted: {WAYS[way]:.2f}), "
        f"{ratios[0]:.2f} to {ratios[-1]:.2f} in {ROUNDS} rounds"
    )
    return {
        "requests_per_second": rate,
        "pictures_per_batch": per_batch,
        "median_seconds": statistics.median(times),
        "p95_seconds": late,
        "ratio_to_bare": statistics.median(ratios),
        "ratios": ratios,
    }


def measure_memory(url: str, images: list[Path], options: argparse.Namespace) -> list[float]:
    """Return the megabytes of this process, which serves, before the requests and after each quarter of them."""
    import psutil

    process = psutil.Process()
    memory = [process.memory_info().rss / 1e6]
    for _ in range(4):
        clients(url, images, options.memory_requests // 4, options)
        memory.append(process.memory_info().rss / 1e6)
    print(
        f"memory:           {' -> '.join(f'{value:.0f}' for value in memory)} MB "
        f"over {options.memory_requests} requests"
    )
    return memory


def bare_seconds(model: Any, images: list[Path]) -> float:
    started = time.perf_counter()
    model.predict(images, batch_size=16)
    return time.perf_counter() - started


def threshold_moves(page: Any, url: str, served: Any, count: int) -> list[float]:
    """Return the seconds of requests like those that the page sends while a mark is moved."""
    import httpx

    decide = next(fn for fn in page.fns.values() if fn.name == "decide")
    thresholds = list(served.stored.values())
    times = []
    with httpx.Client() as http:
        for move in range(count):
            body = {
                "data": [None],
                "fn_index": decide._id,
                "session_hash": "bench",
                "event_data": {"thresholds": thresholds, "moves": move},
            }
            started = time.perf_counter()
            http.post(f"{url}gradio_api/run/predict", json=body).raise_for_status()
            times.append(time.perf_counter() - started)
    return times


def clients(
    url: str, images: list[Path], count: int, options: argparse.Namespace, way: str = "/v1/predict"
) -> dict[str, Any]:
    """Run the clients in a process of their own and return what they measured."""
    command = [
        sys.executable,
        __file__,
        "--clients",
        str(options.clients),
        "--way",
        way,
        "--as-client",
        url,
        str(images[0].parent),
        str(count),
    ]
    answer: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return answer


def run_clients(url: str, images: list[Path], count: int, n_clients: int, way: str) -> dict[str, Any]:
    """Share `count` predictions among threads; return the seconds that all took, and those of each."""
    address = url.split("//")[1].rstrip("/")

    def one_client(numbers: range) -> list[float]:
        connection = http.client.HTTPConnection(address, timeout=300)
        times = []
        for number in numbers:
            started = time.perf_counter()
            (plain_predict if way == "/v1/predict" else predict)(connection, images[number % len(images)])
            times.append(time.perf_counter() - started)
        connection.close()
        return times

    started = time.perf_counter()
    with ThreadPoolExecutor(n_clients) as pool:
        shares = pool.map(one_client, [range(first, count, n_clients) for first in range(n_clients)])
        times = list(chain.from_iterable(shares))
    return {"seconds": time.perf_counter() - started, "times": times}


def plain_predict(connection: http.client.HTTPConnection, image: Path) -> None:
    """Send an image and read its prediction."""
    if b'"scores"' not in ask(connection, "POST", "/v1/predict", image.read_bytes(), "image/jpeg"):
        raise SystemExit("a prediction failed")


def predict(connection: http.client.HTTPConnection, image: Path) -> None:
    """Upload an image, ask for its prediction, and wait for the answer."""
    edge = "edge-of-the-parts"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="{image.name}"\r\n'
    head += "Content-Type: image/jpeg\r\n\r\n"
    form = head.encode() + image.read_bytes() + f"\r\n--{edge}--\r\n".encode()
    place = json.loads(ask(connection, "POST", "/gradio_api/upload", form, f"multipart/form-data; boundary={edge}"))[0]
    body = json.dumps({"image": {"path": place, "meta": {"_type": "gradio.FileData"}}}).encode()
    event = json.loads(ask(connection, "POST", "/gradio_api/call/v2/predict", body, "application/json"))["event_id"]
    answer = ask(connection, "GET", f"/gradio_api/call/predict/{event}", None, "text/plain")
    if b"event: complete" not in answer:
        raise SystemExit(f"a prediction failed: {answer[:300]!r}")


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None, kind: str) -> bytes:
    connection.request(method, path, body, {"Content-Type": kind})
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
        raise SystemExit(f"{path} answered {response.status}: {content[:300]!r}")
    return content


if __name__ == "__main__":
    main()
