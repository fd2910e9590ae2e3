"""The quickstart notebook runs from top to bottom, and a prediction shows itself."""

import base64
import io
import re
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient
from PIL import Image

from aimonk_hf.modeling.prediction import Prediction

NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"


def shown_picture(html: str) -> Image.Image:
    found = re.search(r'src="data:image/jpeg;base64,([^"]+)"', html)
    assert found
    return Image.open(io.BytesIO(base64.b64decode(found[1])))


@pytest.mark.parametrize("kind", ["path", "image", "array", "bytes"])
def test_a_prediction_shows_its_picture_bars_and_thresholds(kind: str, picture: Image.Image, tmp_path: Path):
    large = picture.resize((1200, 900))
    large.save(tmp_path / "a.png")
    sources = {"image": large, "array": np.asarray(large), "bytes": (tmp_path / "a.png").read_bytes()}
    scores, thresholds = {"collar": 0.75, "belt": 0.25}, {"collar": 0.5, "belt": 0.625}
    name = str(tmp_path / "a.png") if kind == "path" else None
    html = Prediction(scores, thresholds, name, sources.get(kind))._repr_html_()
    assert shown_picture(html).size == (240, 180)
    assert "width:75.0%" in html
    assert "width:25.0%" in html
    assert "left:62.5%" in html
    assert "present: collar" in html
    assert html.count("<tr") == 2


def test_names_in_html_are_escaped_and_a_lost_picture_is_left_out(tmp_path: Path):
    attack = "<script>alert('&')</script>"
    html = Prediction({attack: 0.9}, {attack: 0.5}, str(tmp_path / "<b>gone</b>.png"))._repr_html_()
    assert "<script" not in html
    assert "<b>" not in html
    assert "<img" not in html
    assert "&lt;script&gt;" in html


@pytest.mark.parametrize("missing", [True, False])
def test_the_first_cell_installs_only_where_the_package_is_missing(missing: bool, monkeypatch) -> None:
    shell = InteractiveShell.instance()
    asked: list[str] = []
    monkeypatch.setattr(shell, "run_line_magic", lambda name, line, *_, **__: asked.append(f"{name} {line}"))
    if missing:
        monkeypatch.setitem(sys.modules, "aimonk_hf", None)
    cell = nbformat.read(NOTEBOOK, as_version=4).cells[1].source
    assert shell.run_cell(cell).success
    assert asked == ['pip install --quiet "{PACKAGE}" transformers'] * missing
    assert shell.user_ns["PACKAGE"].startswith("aimonk_hf @ git+https://")


@pytest.mark.soak
def test_the_quickstart_runs(tmp_path: Path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit the notebook without outputs"
    for cell, long, short in ((3, "n_images=200", "n_images=40"), (6, "epochs=6", "epochs=1")):
        assert long in notebook.cells[cell].source
        notebook.cells[cell].source = notebook.cells[cell].source.replace(long, short)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    rich = [output.data["text/html"] for output in shown if "text/html" in output.get("data", {})]
    assert len(rich) == 1
    assert shown_picture(rich[0]).size == (128, 128)
    text = "".join(output.get("text", "") for output in shown)
    assert re.findall(r"([a-z]+) +AUROC \d\.\d+  F1", text) == ["sleeves", "stripes", "collar", "belt"]
    assert not list(tmp_path.iterdir())
