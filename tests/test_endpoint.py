"""An Inference Endpoint of a pushed repository: loaded and called as huggingface-inference-toolkit does."""

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub
from PIL import Image

from aimonk_hf import AimonkModel
from aimonk_hf.cli.main import main
from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.endpoint import EndpointHandler

# As `check_and_register_custom_pipeline_from_directory` and `predict` of the toolkit, which need its container.
TOOLKIT = """
import base64, importlib.util, json, sys
model_dir, image = sys.argv[1:]
spec = importlib.util.spec_from_file_location("handler.EndpointHandler", model_dir + "/handler.py")
sys.path.insert(0, model_dir)
module = importlib.util.module_from_spec(spec)
sys.modules["handler.EndpointHandler"] = module
spec.loader.exec_module(module)
handler = module.EndpointHandler(model_dir)
import aimonk_hf
body = {"inputs": base64.b64encode(open(image, "rb").read()).decode(), "parameters": {"thresholds": 0.25}}
print(json.dumps([aimonk_hf.__file__, handler(body)]))
"""


def test_a_pushed_repository_answers_by_itself(
    hub: LoopbackHub, tiny_model: AimonkModel, picture: Image.Image, tmp_path: Path
) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    push = ["push", "--model", str(tmp_path / "model"), "--repo-id", "user/endpoint"]
    assert main([*push, "--handler"]) == 0
    files = hub.repos["model", "user/endpoint"].files()
    assert {"handler.py", "requirements.txt", "aimonk_hf/__init__.py", "config.json", "model.safetensors"} <= set(files)
    assert not [name for name in files if "sample_model" in name or "__pycache__" in name]
    listed = files["requirements.txt"].decode().splitlines()
    assert any(line.startswith("timm>=") for line in listed)
    assert not any("gradio" in line for line in listed)
    for name, content in files.items():
        (tmp_path / "repository" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "repository" / name).write_bytes(content)
    picture.save(tmp_path / "a.png")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", TOOLKIT, str(tmp_path / "repository"), str(tmp_path / "a.png")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    where, rows = json.loads(done.stdout.splitlines()[-1])
    assert Path(where) == tmp_path / "repository/aimonk_hf/__init__.py"
    expected = tiny_model.predict(picture)
    assert {row["label"]: row["score"] for row in rows} == pytest.approx(expected.scores, abs=1e-5)
    assert {row["label"] for row in rows if row["present"]} == {n for n, s in expected.scores.items() if s >= 0.25}
    repository = hub.repos["model", "user/endpoint"]
    repository.commit("main", files | {"aimonk_hf/gone.py": b"", "notes.txt": b""}, "an earlier version")
    assert main([*push, "--handler"]) == 0
    assert set(repository.files()) == {*files, "notes.txt"}


@pytest.fixture(scope="module")
def handler(tiny_model: AimonkModel, tmp_path_factory: pytest.TempPathFactory) -> EndpointHandler:
    tiny_model.save_pretrained(folder := tmp_path_factory.mktemp("m") / "model")
    return EndpointHandler(str(folder))


def test_images_come_as_the_toolkit_hands_them_on(
    handler: EndpointHandler, tiny_model: AimonkModel, picture: Image.Image
) -> None:
    picture.save(buffer := io.BytesIO(), "PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    expected = tiny_model.predict(picture)
    for inputs in (picture, buffer.getvalue(), text, f"data:image/png;base64,{text}"):
        rows = handler({"inputs": inputs})
        assert {row["label"]: row["score"] for row in rows} == pytest.approx(expected.scores, abs=1e-5)
        assert [row["score"] for row in rows] == sorted(expected.scores.values(), reverse=True)
        assert sorted(row["label"] for row in rows if row["present"]) == sorted(expected.attributes)
        assert {row["label"]: row["threshold"] for row in rows} == tiny_model.config.thresholds
    chosen = handler({"inputs": picture, "parameters": {"thresholds": {"belt": 0.0}, "top_k": 2}})
    assert len(chosen) == 2
    assert [row["present"] for row in chosen if row["label"] == "belt"] in ([True], [])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "`inputs` must be an image file in base64, or the body of a request of type image"),
        ({"inputs": "/etc/passwd"}, "not an image|must be an image file in base64"),
        ({"inputs": ["a"]}, "`inputs` must be an image file in base64"),
        ({"inputs": base64.b64encode(b"no image").decode()}, "not an image file"),
        ({"inputs": b"", "parameters": {"threshold": 0.5}}, "has no threshold: it takes thresholds and top_k"),
        ({"inputs": Image.new("RGB", (9, 9)), "parameters": {"thresholds": {"hat": 1}}}, "unknown attributes: hat"),
    ],
)
def test_other_bodies_are_refused_in_a_sentence(body: dict, message: str, handler: EndpointHandler) -> None:
    with pytest.raises(AimonkError, match=message):
        handler(body)
