"""The second tab: many files or a zip; and the endpoint /predict_batch."""

import html
import tempfile
from pathlib import Path
from typing import Any

import gradio as gr

from aimonk_hf.app.batch import Row, gallery_items, score_batch, table_header, table_rows, write_csv
from aimonk_hf.app.served import Served
from aimonk_hf.app.sessions import ApiSessions
from aimonk_hf.errors import AimonkError

EVERY = "all pictures"
MAX_SHOWN = 200  # pictures in the gallery; table and CSV hold all


def build_batch_tab(served: Served, thresholds: gr.State, sessions: ApiSessions) -> None:
    """Lay out the tab and bind its events; decisions follow this visitor's `thresholds`."""
    attributes = list(served.stored)
    with gr.Tab("Batch", id="batch") as tab:
        rows: gr.State = gr.State([])
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=280):
                files = gr.File(
                    label="Pictures, or a zip of pictures", file_count="multiple", height=180, elem_id="files"
                )
                run = gr.Button("Score the files", variant="primary", elem_id="run")
                chosen = gr.Dropdown([EVERY, *attributes], value=EVERY, label="Show pictures with", elem_id="filter")
                table_file = gr.DownloadButton("Download CSV", interactive=False, elem_id="csv")
            with gr.Column(scale=2, min_width=300):
                report = gr.HTML("<p>Thresholds are those of the Predict tab.</p>", elem_id="report")
                gallery = gr.Gallery(
                    label="Pictures",
                    columns=4,
                    fit_columns=False,
                    height=420,
                    interactive=False,
                    buttons=[],
                    elem_id="gallery",
                )
        table = gr.Dataframe(
            headers=table_header(attributes), label="Table", interactive=False, max_height=420, elem_id="table"
        )
        _add_endpoint(served, sessions)
    shown = [gallery, table, table_file]

    def score(
        sent: Any, moved: dict[str, float] | None, attribute: str, progress: gr.Progress = gr.Progress()
    ) -> tuple[Any, ...]:
        try:
            thumbnails = Path(tempfile.mkdtemp(dir=served.limits.folder))
            scored = score_batch(
                served, sent, thumbnails, lambda done, total: progress((done, total), "scoring", unit="pictures")
            )
        except AimonkError as error:
            return (
                [],
                f'<p class="problem" role="alert">{html.escape(str(error))}.</p>',
                [],
                _cells(served, [], None),
                gr.update(interactive=False),
            )
        # gradio removes what it has shown; these may be filtered out
        sessions.page.upload_file_set.update(row.thumbnail for row in scored if row.thumbnail)
        return scored, _report(scored), *view(scored, moved, attribute)

    def view(scored: list[Row], moved: dict[str, float] | None, attribute: str) -> tuple[Any, ...]:
        """Decide from the kept scores with the thresholds as they are now."""
        decided = moved or served.stored
        items = gallery_items(scored, decided, None if attribute == EVERY else attribute)
        path = write_csv(scored, decided, served.limits.folder) if scored else None
        return items[:MAX_SHOWN], _cells(served, scored, decided), gr.update(value=path, interactive=path is not None)

    private: dict[str, Any] = {"api_visibility": "private", "preprocess": False}
    run.click(
        score,
        [files, thresholds, chosen],
        [rows, report, *shown],
        show_progress_on=report,
        concurrency_limit=2,
        **private,
    )
    chosen.input(view, [rows, thresholds, chosen], shown, show_progress="hidden", **private)
    tab.select(view, [rows, thresholds, chosen], shown, show_progress="hidden", **private)


def _add_endpoint(served: Served, sessions: ApiSessions) -> None:
    """Offer /predict_batch: files in, the table and the CSV file out, by the stored thresholds."""
    files = gr.File(label="files", file_count="multiple", visible=False)
    outputs = [
        gr.Dataframe(label="table", headers=table_header(list(served.stored)), visible=False),
        gr.File(label="csv", visible=False),
    ]

    def predict_batch(request: gr.Request, *, files: Any) -> tuple[Any, str]:
        sessions.note(request)
        try:
            rows = score_batch(served, files)
        except AimonkError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return _cells(served, rows, served.stored), write_csv(rows, served.stored, served.limits.folder)

    gr.Button(visible=False).click(
        predict_batch,
        inputs_kwargs={"files": files},
        outputs=outputs,
        api_name="predict_batch",
        api_description="Score pictures, or zips of pictures. Returns a table, whose last columns say what was done to a picture "
        "and why it has no scores, and a CSV file.",
        preprocess=False,
        concurrency_limit=2,
    )


def _cells(served: Served, rows: list[Row], thresholds: dict[str, float] | None) -> dict[str, Any]:
    header = table_header(list(served.stored))
    return {"headers": header, "data": table_rows(rows, thresholds or served.stored) or [[""] * len(header)]}


def _report(rows: list[Row]) -> str:
    bad = [row for row in rows if row.scores is None]
    text = (
        f"<p><b>{len(rows) - len(bad)} of {len(rows)} pictures scored.</b> Thresholds are those of the Predict tab.</p>"
    )
    if len(rows) - len(bad) > MAX_SHOWN:
        text += f"<p>The gallery shows at most {MAX_SHOWN} pictures; the table and the CSV file hold all.</p>"
    text += _listed("Left out:", [(row.image, row.error) for row in bad])
    return text + _listed("Read with a change:", [(row.image, row.notes) for row in rows if row.notes])


def _listed(title: str, sentences: list[tuple[str, str]]) -> str:
    items = "".join(f"<li><b>{html.escape(name)}</b>: {html.escape(sentence)}</li>" for name, sentence in sentences)
    return f'<div class="failures"><p>{title}</p><ul>{items}</ul></div>' if items else ""
