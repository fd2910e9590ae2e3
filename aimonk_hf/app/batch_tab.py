"""Build the second tab: many files or a zip, their table, CSV file and gallery."""

import html
import re
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from aimonk_hf.app.gradio_internals import event_value
from aimonk_hf.app.predict_tab import HIDDEN, PredictTab, panel_value, scripted
from aimonk_hf.app.scoring import Served
from aimonk_hf.app.uploads import Upload, decoded, expand_uploads, in_words, sentence
from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.predict_files import csv_cells
from aimonk_hf.modeling.prediction import Prediction
from aimonk_hf.storage import score_columns, write_csv

_PROGRESS = gr.Progress()
WORKERS = 8  # images on their way at a time, so that the network gets whole batches


@dataclass
class Row:
    """Hold an image's scores or the reason why there are none, the notes on it, and the path of a small JPEG."""

    image: str
    scores: dict[str, float] | None = None
    error: str = ""
    notes: str = ""
    thumbnail: Path | None = None

    def shown(self) -> dict[str, Any]:
        """Return the row as JSON for the page, its scores in the model's order."""
        scores = None if self.scores is None else list(self.scores.values())
        return vars(self) | {"scores": scores, "thumbnail": self.thumbnail and str(self.thumbnail)}


@dataclass
class Batch:
    """Hold a visitor's files as they were sent, their rows, and whether the visitor wants no more of them."""

    files: Any = None
    rows: list[Row] = field(default_factory=list)
    is_stopped: bool = False


def score_batch(
    served: Served, files: Any, thumbnails: Path | None = None, progress: Callable[[int, int, str], Any] | None = None
) -> list[Row]:
    """Score every image of the files sent, in their order, until `progress` returns something true.

    `progress` takes the number of images done, that of all, and the name of the next one. Raises `AimonkError` as
    `expand_uploads` does.
    """

    def score(numbered: tuple[int, Upload]) -> Row:
        number, upload = numbered
        thumbnail = thumbnails and thumbnails / f"{number:04d}.jpg"
        try:
            pixels, notes = served.read(upload, thumbnail)
            return Row(upload.name, served.scorer.score(pixels), notes=notes, thumbnail=thumbnail)
        except AimonkError as error:
            return Row(upload.name, error=sentence(error))

    rows: list[Row] = []
    with ExitStack() as archives, ThreadPoolExecutor(WORKERS) as pool:
        uploads = expand_uploads(files, served.limits, archives)
        scored = pool.map(score, enumerate(uploads))
        for upload in uploads:
            if progress and progress(len(rows), len(uploads), upload.name):
                pool.shutdown(wait=True, cancel_futures=True)
                break
            rows.append(next(scored))
    return rows


def table_value(rows: list[Row], thresholds: dict[str, float]) -> dict[str, Any]:
    """Return the table: the columns of the CSV file, and what was done to each image."""
    names = list(thresholds)
    header = ["image", "attributes", *score_columns(names), "notes", "error"]
    data = []
    for row in rows:
        prediction = None if row.scores is None else Prediction(row.scores, thresholds)
        data.append([*csv_cells(row.image, prediction, names), row.notes, row.error])
    return {"headers": header, "data": data or [[""] * len(header)]}


def write_table(table: dict[str, Any], folder: Path) -> str:
    """Write a table as `aimonk-hf predict --format csv` does, without the notes, into a new folder; return its path."""
    path = Path(tempfile.mkdtemp(dir=folder)) / "predictions.csv"
    header, *lines = ([*cells[:-2], cells[-1]] for cells in (table["headers"], *table["data"]))
    write_csv(path, header, lines)
    return str(path)


def build_batch_tab(served: Served, predict: PredictTab, tabs: gr.Tabs) -> None:
    """Lay out the tab and bind its events; decisions follow this visitor's thresholds, which Predict shows too."""
    with gr.Tab("Batch", id="batch") as tab:
        kept: gr.State = gr.State(Batch())
        with gr.Row(equal_height=False):
            label = "Images, or a zip of images"
            files = gr.File(label=label, file_count="multiple", height=130, elem_id="files", scale=5, min_width=280)
            with gr.Row(elem_id="batch-buttons", scale=3):
                run = gr.Button("Score the files", variant="primary", elem_id="run", min_width=130)
                stop = gr.Button("Stop", interactive=False, elem_id="stop", min_width=80)
        report = gr.HTML("<p>Thresholds are those of the Predict tab.</p>", elem_id="report")
        results = scripted("batch", None, "Results")

    def score(
        sent: Any, moved: dict[str, float] | None, batch: Batch, progress: gr.Progress = _PROGRESS
    ) -> tuple[Any, ...]:
        def tell(done: int, total: int, name: str) -> bool:
            shown = name if len(name) <= 40 else f"{name[:20]}…{name[-19:]}"
            progress(done / total, f"{done + 1} of {total}: {shown}")
            return batch.is_stopped

        batch.is_stopped, batch.files, batch.rows = False, sent, []
        try:
            batch.rows = score_batch(served, sent, Path(tempfile.mkdtemp(dir=served.limits.folder)), tell)
            told = _report(batch)
        except AimonkError as error:
            told = f'<p class="problem" role="alert">{html.escape(sentence(error))}</p>'
        value = {"rows": [row.shown() for row in batch.rows], "names": list(served.stored)}
        return value | {"thresholds": numbers(moved)}, told, gr.update(interactive=False)

    def numbers(moved: dict[str, float] | None) -> list[float]:
        return list((moved or served.stored).values())

    def move(scores: dict[str, float] | None, event: gr.EventData) -> tuple[Any, Any]:
        with in_words():
            moved = served.thresholds(event_value(event, "thresholds"))
        return moved, panel_value(served, scores, moved) | {"kind": "set"}

    def write(batch: Batch, event: gr.EventData) -> dict[str, str]:
        numbers = event_value(event, "numbers")
        with in_words():
            decided = served.thresholds(event_value(event, "thresholds"))
            if not isinstance(numbers, list) or len(numbers) > len(batch.rows):
                raise AimonkError("These images are not in the batch: score the files again")
            rows = [_item(batch.rows, number) for number in numbers]
            return {"csv": write_table(table_value(rows, decided), served.limits.folder)}

    def open_in_predict(batch: Batch, event: gr.EventData) -> tuple[Any, Any]:
        with in_words():
            return _image_file(served, batch, event_value(event, "number")), gr.Tabs(selected="predict")

    started = run.click(lambda: gr.update(interactive=True), None, stop, queue=False, **HIDDEN)
    shown_on = HIDDEN | {"show_progress": "full", "show_progress_on": report}
    started.then(score, [files, predict.thresholds, kept], [results, report, stop], concurrency_limit=2, **shown_on)
    stop.click(lambda batch: setattr(batch, "is_stopped", True), kept, queue=False, **HIDDEN)
    results.input(move, predict.scores, [predict.thresholds, predict.panel], queue=False, **HIDDEN)
    results.submit(write, kept, results, **HIDDEN)
    results.select(open_in_predict, kept, [predict.image, tabs], **HIDDEN)
    tab.select(lambda moved: {"thresholds": numbers(moved)}, predict.thresholds, results, **HIDDEN)


def _item(items: list[Any], number: Any) -> Any:
    if not isinstance(number, int) or not 0 <= number < len(items):
        raise AimonkError("This image is not in the batch: score the files again")
    return items[number]


def _image_file(served: Served, batch: Batch, number: Any) -> str:
    """Return the path of an image of the batch: the upload itself, or what an entry of an archive shows."""
    with ExitStack() as archives:
        upload: Upload = _item(expand_uploads(batch.files, served.limits, archives), number)
        if isinstance(source := upload.read(), str):
            return source
        with decoded(upload, served.limits) as (image, _):
            name = re.sub(r"[^\w .-]", "_", Path(upload.name).stem)[:60]
            path = Path(tempfile.mkdtemp(dir=served.limits.folder)) / f"{name}.png"
            image.save(path, compress_level=1)
    return str(path)


def _report(batch: Batch) -> str:
    rows, stopped = batch.rows, " You stopped the rest." if batch.is_stopped else ""
    n_good = sum(row.scores is not None for row in rows)
    text = f"<p><b>{n_good} of {len(rows)} images scored.</b>{stopped} Thresholds are those of the Predict tab.</p>"
    text += _listed("Left out:", [(row.image, row.error) for row in rows if row.error])
    return text + _listed("Read with a change:", [(row.image, row.notes) for row in rows if row.notes])


def _listed(title: str, sentences: list[tuple[str, str]]) -> str:
    items = "".join(f"<li><b>{html.escape(name)}</b>: {html.escape(told)}</li>" for name, told in sentences)
    is_open = " open" if len(sentences) < 4 else ""
    return f'<details class="failures"{is_open}><summary>{title}</summary><ul>{items}</ul></details>' if items else ""
