"""A package that is missing is named, with the command that installs it, where it is first needed."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from aimonk_hf.cli.main import main
from aimonk_hf.data.images import check_image

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Modules that come with a package of another name.
COMES_WITH = {"PIL": "pillow", "sklearn": "scikit-learn", "pytorch_grad_cam": "grad-cam", "yaml": "pyyaml"}
COMES_WITH |= {"fsspec": "datasets"} | dict.fromkeys(("starlette", "fastapi", "uvicorn", "anyio", "pydantic"), "gradio")


IMAGE, EXPORT = "IMAGE --model MODEL", "export --model MODEL --output NEW"
TRAIN = "train --data-dir DATA --output-dir NEW --recipe demo"
CASES = [
    ("gradio", "app --model MODEL", "The app needs gradio: pip install 'aimonk_hf[app]'"),
    ("gradio", "label --data-dir DATA", "The app needs gradio: pip install 'aimonk_hf[app]'"),
    ("gradio", "push-space --model MODEL --output NEW", "The app needs gradio: pip install 'aimonk_hf[app]'"),
    ("pillow_heif", "predict HEIC --model MODEL --backend torch", "save it as JPEG, or pip install pillow-heif"),
    ("pyarrow", "audit --data-dir DATA --labels PARQUET", "PARQUET needs pyarrow: pip install 'aimonk_hf[parquet]'"),
    ("pyarrow", f"predict {IMAGE} --format parquet --output NEW", "needs pyarrow: pip install 'aimonk_hf[parquet]'"),
    ("openpyxl", "import EXCEL --output NEW", "EXCEL needs openpyxl: pip install 'aimonk_hf[excel]', or save it as"),
    ("datasets", "import hf://datasets/a/b --output NEW", "need datasets: pip install 'aimonk_hf[datasets]'"),
    ("onnx", EXPORT, "need onnx, which is not installed: pip install onnx"),
    ("onnxscript", EXPORT, "ONNX files need onnxscript, which is not installed: pip install onnxscript"),
    ("onnxruntime", f"predict {IMAGE} --backend onnx", "but onnxruntime is not installed: pip install onnxruntime"),
    ("torch", f"predict {IMAGE} --backend torch", "torch is not installed: pip install torch, or choose --backend"),
    ("torch", f"predict {IMAGE} --device cuda", "--device cuda needs torch, which is not installed: pip install torch"),
    ("sklearn", "evaluate --data-dir DATA --model MODEL", "needs sklearn, which is not installed: pip install scikit"),
    ("wandb", f"{TRAIN} --log-with wandb", "The tracker wandb is not installed: pip install 'aimonk_hf[wandb]'"),
    ("trackio", f"{TRAIN} --log-with trackio", "tracker trackio is not installed: pip install 'aimonk_hf[trackio]'"),
]


@pytest.mark.parametrize(("missing", "command", "sentence"), CASES, ids=lambda value: value.split(" --")[0])
def test_a_missing_package_is_named_with_its_command(
    missing: str, command: str, sentence: str, folder: Path, few: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    (folder / "onnx").mkdir()
    (folder / "onnx/model.onnx").touch()
    check_image(few / "images/garment_0000.png")  # registers pillow-heif for the tests after this one
    for name in list(sys.modules):
        if name.partition(".")[0] == missing or (missing == "gradio" and name.startswith("aimonk_hf.app")):
            monkeypatch.delitem(sys.modules, name)
    if missing == "torch":  # what is imported already stays
        monkeypatch.undo()
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    places = {"HEIC": tmp_path / "a.heic", "PARQUET": tmp_path / "a.parquet", "EXCEL": tmp_path / "a.xlsx"}
    for name, content in (("HEIC", b"\0\0\0\x18ftypheic" + bytes(40)), ("PARQUET", b"PAR1"), ("EXCEL", b"PK\3\4")):
        places[name].write_bytes(content)
    places |= {"MODEL": folder, "DATA": few, "IMAGE": few / "images/garment_0000.png", "NEW": tmp_path / "new"}
    status = main([str(places.get(word, word)) for word in command.split()])
    told = capsys.readouterr().err
    assert re.sub("PARQUET|EXCEL", lambda found: str(places[found[0]]), sentence) in told
    assert "Traceback" not in told
    assert status == (1 if missing == "pillow_heif" else 2)


def test_every_import_is_of_the_package_or_of_a_case_above() -> None:
    found = set()
    for path in (ROOT / "aimonk_hf").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    found -= {*sys.stdlib_module_names, "aimonk_hf"}
    needed = {re.split("[<>=]", line)[0] for line in PROJECT["dependencies"]}
    cases = {COMES_WITH.get(missing, missing) for missing, *_ in CASES}
    elsewhere = {"grad-cam", "spaces"}  # test_app_heatmap and test_spaces
    assert {COMES_WITH.get(name, name) for name in found} <= needed | cases | elsewhere


def test_every_extra_that_a_message_names_exists() -> None:
    text = "".join(path.read_text() for path in (ROOT / "aimonk_hf").rglob("*.py"))
    assert set(re.findall(r"aimonk_hf\[(\w+)\]", text)) <= set(PROJECT["optional-dependencies"])


def test_the_example_of_ray_names_its_extra() -> None:
    code = "import runpy, sys; sys.modules['ray'] = None; runpy.run_path('examples/ray_predict.py')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "This example needs Ray: pip install 'aimonk_hf[ray]'\n")
