"""Build the second tab: many files or a zip, their table, CSV file and gallery."""

import html
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from aimonk_hf.app.scoring import Served
from aimonk_hf.app.uploads import Upload, expand_uploads, sentence
from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.predict_files import csv_cells
from aimonk_hf.modeling.prediction import Prediction
from aimonk_hf.storage import score_columns, write_csv

EVERY = "all images"
MAX_SHOWN = 200  # images in the gallery; table and CSV hold all
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


def score_batch(
    served: Served, files: Any, thumbnails: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> list[Row]:
    """Score every image of the files sent, in their order; raises `AimonkError` as `expand_uploads` does."""

    def score(numbered: tuple[int, Upload]) -> Row:
        number, upload = numbered
        thumbnail = thumbnails and thumbnails / f"{number:04d}.jpg"
        try:
            pixels, notes = served.read(upload, thumbnail)
            return Row(upload.name, served.scorer.score(pixels), notes=notes, thumbnail=thumbnail)
        except AimonkError as error:
            return Row(upload.name, error=sentence(error))

    rows = []
    with ExitStack() as archives, ThreadPoolExecutor(WORKERS) as pool:
        uploads = expand_uploads(files, served.limits, archives)
        for row in pool.map(score, enumerate(uploads)):
            rows.append(row)
            if progress:
                progress(len(rows), len(uploads))
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


def gallery_items(rows: list[Row], thresholds: dict[str, float], attribute: str = EVERY) -> list[tuple[str, str]]:
    """Return thumbnails with captions, those with `attribute` present where one is named."""
    items = []
    for row in rows:
        if row.scores is not None and row.thumbnail is not None and row.thumbnail.exists():  # old files are removed
            present = Prediction(row.scores, thresholds).attributes
            if attribute == EVERY or attribute in present:
                items.append((str(row.thumbnail), f"{Path(row.image).name}: {', '.join(present) or 'none'}"))
    return items[:MAX_SHOWN]


def build_batch_tab(served: Served, thresholds: gr.State) -> None:
    """Lay out the tab and bind its events; decisions follow this visitor's `thresholds`."""
    with gr.Tab("Batch", id="batch") as tab:
        rows: gr.State = gr.State([])
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=280):
                label = "Images, or a zip of images"
                files = gr.File(label=label, file_count="multiple", height=180, elem_id="files")
                run = gr.Button("Score the files", variant="primary", elem_id="run")
                choices = [EVERY, *served.stored]
                chosen = gr.Dropdown(choices, value=EVERY, label="Show images with", elem_id="filter")
                table_file = gr.DownloadButton("Download CSV", interactive=False, elem_id="csv")
            with gr.Column(scale=2, min_width=300):
                report = gr.HTML("<p>Thresholds are those of the Predict tab.</p>", elem_id="report")
                fixed: dict[str, Any] = {"interactive": False, "height": 420, "buttons": []}
                gallery = gr.Gallery(label="Images", columns=4, fit_columns=False, elem_id="gallery", **fixed)
        headers = table_value([], served.stored)["headers"]
        table = gr.Dataframe(headers=headers, label="Table", interactive=False, max_height=420, elem_id="table")

    def score(
        sent: Any, moved: dict[str, float] | None, attribute: str, progress: gr.Progress = _PROGRESS
    ) -> tuple[Any, ...]:
        def tell(done: int, total: int) -> None:
            progress((done, total), "scoring", unit="images")

        try:
            scored = score_batch(served, sent, Path(tempfile.mkdtemp(dir=served.limits.folder)), tell)
            told = _report(scored)
        except AimonkError as error:
            scored, told = [], f'<p class="problem" role="alert">{html.escape(sentence(error))}</p>'
        return scored, told, *view(scored, moved, attribute)

    def view(scored: list[Row], moved: dict[str, float] | None, attribute: str) -> tuple[Any, ...]:
        decided = moved or served.stored  # with the thresholds as they are now
        table = table_value(scored, decided)
        path = write_table(table, served.limits.folder) if scored else None
        return gallery_items(scored, decided, attribute), table, gr.update(value=path, interactive=bool(scored))

    private: dict[str, Any] = {"api_visibility": "private", "preprocess": False}
    shown = [gallery, table, table_file]
    outputs = [rows, report, *shown]
    run.click(score, [files, thresholds, chosen], outputs, show_progress_on=report, concurrency_limit=2, **private)
    chosen.input(view, [rows, thresholds, chosen], shown, show_progress="hidden", **private)
    tab.select(view, [rows, thresholds, chosen], shown, show_progress="hidden", **private)


def _report(rows: list[Row]) -> str:
    n_good = sum(row.scores is not None for row in rows)
    text = f"<p><b>{n_good} of {len(rows)} images scored.</b> Thresholds are those of the Predict tab.</p>"
    if n_good > MAX_SHOWN:
        text += f"<p>The gallery shows at most {MAX_SHOWN} images; the table and the CSV file hold all.</p>"
    text += _listed("Left out:", [(row.image, row.error) for row in rows if row.error])
    return text + _listed("Read with a change:", [(row.image, row.notes) for row in rows if row.notes])


def _listed(title: str, sentences: list[tuple[str, str]]) -> str:
    items = "".join(f"<li><b>{html.escape(name)}</b>: {html.escape(told)}</li>" for name, told in sentences)
    return f'<div class="failures"><p>{title}</p><ul>{items}</ul></div>' if items else ""
