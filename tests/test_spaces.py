"""The Space's folder, started where nothing of this repository can be imported, and pushed to a loopback Hub."""

import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
import psutil
import pytest
import yaml
from app_support import HTTP, call, result, upload
from hub_support import hub
from loopback_hub import LoopbackHub
from PIL import Image

from aimonk_hf import AimonkModel
from aimonk_hf.app import space as spaces
from aimonk_hf.app.serve import app_folder, launch, open_page
from aimonk_hf.cli.main import main
from aimonk_hf.modeling.onnx_export import export_folder

__all__ = ["hub"]


@pytest.fixture(scope="module")
def model_folder(tiny_model: AimonkModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "garments"
    tiny_model.save_pretrained(folder)
    (folder / "split.csv").write_text("image,part\n")
    return folder


def front_matter(readme: bytes) -> dict:
    return yaml.safe_load(readme.decode().split("---")[1])


def test_the_written_folder(model_folder: Path, tmp_path: Path, capsys):
    space, command = tmp_path / "space", ["push-space", "--model", str(model_folder)]
    assert main([*command, "--output", str(space)]) == 0
    assert f"written:   {space}" in capsys.readouterr().out
    names = {"app.py", "aimonk_hf", "model", "model_card.md", "requirements.txt", "README.md"}
    assert {path.name for path in space.iterdir()} == names
    assert {path.name for path in (space / "model").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert not list(space.rglob("__pycache__"))
    front = front_matter((space / "README.md").read_bytes())
    assert (front["sdk"], front["app_file"], front["title"]) == ("gradio", "app.py", "Image attributes: garments")
    assert "torch" in (space / "requirements.txt").read_text()
    for flags, message in (
        ([*command, "--output", str(space)], "is not empty: name a new folder for the Space"),
        (command, "needs --repo-id USER/NAME to upload the Space, or --output DIR"),
        (["push-space", "--model", str(space), "--output", str(tmp_path / "b")], "is no model: it has no config.json"),
    ):
        assert main(flags) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def isolated(code: list[str], folder: Path, **variables: str) -> subprocess.Popen[str]:
    """Start Python in `folder` with the installed packages but without site-packages' links to this repository."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": sysconfig.get_paths()["purelib"]}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, "-S", *code], cwd=folder, env=kept | settings | variables, **pipes)


@pytest.fixture(scope="module")
def started(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """Start a Space; yield its address and the process's number."""
    place = tmp_path_factory.mktemp("started")
    assert main(["push-space", "--model", str(model_folder), "--output", str(place / "space")]) == 0
    with served(["app.py"], place / "space", place) as found:
        yield found


@contextmanager
def served(code: list[str], space: Path, place: Path) -> Iterator[tuple[str, int]]:
    """Serve a Space; yield its address and the process's number."""
    (place / "tmp").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    listening = {"SPACE_ID": "user/space", "GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
    app = isolated(code, space, TMPDIR=str(place / "tmp"), **listening)
    try:
        wait_for(port, app)
        yield f"http://127.0.0.1:{port}", app.pid
    finally:
        app.terminate()
        output, _ = app.communicate(timeout=30)
    assert app.returncode == 0, output[-2000:]
    assert not list((place / "tmp").glob("aimonk_app_*")), "the visitors' files stay"


# Runs app.py where only the packages named in requirements.txt can be imported.
LIGHT = """
import importlib.util, runpy, sys
heavy = "torch timm torchvision accelerate safetensors scipy sklearn pytorch_grad_cam onnx onnxscript".split()
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in heavy:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
installed = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name in heavy else installed(name)
sys.argv = ["app.py"]
runpy.run_path("app.py", run_name="__main__")
"""


def test_a_model_with_an_onnx_file_is_served_without_torch(tiny_model: AimonkModel, sample: Path, tmp_path: Path):
    export_folder(tiny_model, tmp_path / "model")
    space = tmp_path / "space"
    assert main(["push-space", "--model", str(tmp_path / "model"), "--output", str(space)]) == 0
    needed = (space / "requirements.txt").read_text()
    assert "onnxruntime" in needed
    assert "torch" not in needed
    docker = Path(__file__).parents[1] / "examples" / "docker" / "requirements.txt"
    assert needed == "".join(line for line in docker.read_text().splitlines(True) if not line.startswith("#"))
    files = {path.relative_to(space / "model").as_posix() for path in (space / "model").rglob("*") if path.is_file()}
    assert files == {"config.json", "README.md", "onnx/model.onnx"}
    paths = sorted((sample / "images").iterdir())[:2]
    with served(["-c", LIGHT], space, tmp_path) as (url, _):
        scores, present = result(call(url, "predict", {"image": upload(url, paths[0]), "belt": 1.0, "collar": 0.0}))
        assert scores == pytest.approx(tiny_model.predict(paths[0]).scores, abs=1e-4)
        assert "collar" in present
        assert "belt" not in present
        table, _ = result(call(url, "predict_batch", {"files": [upload(url, path) for path in paths]}))
        assert [row[-1] for row in table["data"]] == ["", ""]
    main_module = "import aimonk_hf.app.heatmap, aimonk_hf.app.scoring as s, sys, numpy as np\n"
    main_module += "from aimonk_hf import AimonkPredictor\n"
    main_module += "scorer = s.Scorer(AimonkPredictor.from_pretrained('model'))\n"
    main_module += "heat = aimonk_hf.app.heatmap.heat_map(scorer, np.zeros((64, 64, 3), np.uint8), 'belt')\n"
    main_module += "print(heat.shape, 'torch' in sys.modules)"
    light = LIGHT.replace('runpy.run_path("app.py", run_name="__main__")', main_module)
    output, _ = isolated(["-c", light], space).communicate(timeout=60)
    assert output.strip().endswith("(64, 64) False"), output[-2000:]


def test_it_starts_from_its_folder_alone(
    started: tuple[str, int], tiny_model: AimonkModel, sample: Path, tmp_path: Path
):
    outside, _ = isolated(["-c", "import aimonk_hf.cli.main"], tmp_path).communicate()
    assert "No module named 'aimonk_hf" in outside
    image = min((sample / "images").iterdir())
    scores, _ = result(call(started[0], "predict", {"image": upload(started[0], image)}))
    assert scores == pytest.approx(tiny_model.predict(image).scores, abs=1e-5)


def test_zerogpu_starts_where_the_page_is_launched_and_the_gate_stands_before_it(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    launched, original = [], gr.Blocks.launch

    def one_launch(*arguments, **options):  # as the package `spaces` does, to start ZeroGPU
        launched.append(options)
        gr.Blocks.launch = original
        return gr.Blocks.launch(*arguments, **options)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"SPACE_ID": "a/b", "GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(gr.Blocks, "launch", one_launch)
    with app_folder() as folder:
        page = open_page(str(model_folder), folder, max_file_size=1)
        try:
            url = launch(page, "", None, max_file_size=1, wait=False).rstrip("/")
            assert (len(launched), url) == (1, f"http://127.0.0.1:{port}")
            facts = HTTP.get(f"{url}/v1/model", headers={"Host": "a-b.hf.space"})
            assert (facts.status_code, facts.headers["x-content-type-options"]) == (200, "nosniff")
            assert HTTP.get(f"{url}/gradio_api/proxy=http://127.0.0.1:1/").status_code == 404
            for address in ("v1/predict", "gradio_api/upload"):
                assert HTTP.post(f"{url}/{address}", content=bytes(21_000_000)).status_code == 413
        finally:
            page.close()


def test_the_memory_of_large_images_is_given_back(started: tuple[str, int], tmp_path: Path):
    (url, pid), path = started, tmp_path / "large.png"
    Image.new("RGB", (5000, 5000), (9, 99, 199)).save(path)
    sent = {"image": upload(url, path)}
    result(call(url, "predict", sent))
    before = psutil.Process(pid).memory_info().rss
    with ThreadPoolExecutor(16) as pool:
        assert len([result(answer) for answer in pool.map(lambda _: call(url, "predict", sent), range(16))]) == 16
    assert psutil.Process(pid).memory_info().rss - before < 300e6, "each of the images takes 100 MB decoded"


def wait_for(port: int, app: subprocess.Popen[str]) -> None:
    """Wait until the port answers; an app that ends before says why."""
    for _ in range(3000):
        assert app.poll() is None, app.communicate()[0][-3000:]
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("the Space did not start")


def test_a_space_is_pushed_in_one_commit_and_its_model_named(hub: LoopbackHub, tiny_model: AimonkModel, capsys):
    tiny_model.push_to_hub("user/garments")
    command = ["push-space", "--model", "user/garments", "--repo-id", "user/page", "--title", 'The "all" of it']
    assert main([*command, "--private"]) == 0
    repo = hub.repos["space", "user/page"]
    assert f"pushed:    {hub.url}/spaces/user/page/commit/{repo.branches['main']}" in capsys.readouterr().out
    assert repo.private
    assert repo.messages == ["initial commit", "Upload space"]
    files = repo.files()
    names = {".gitattributes", "app.py", "aimonk_hf", "model_card.md", "requirements.txt", "README.md"}
    assert {path.split("/")[0] for path in files} == names
    assert "aimonk_hf/app/__init__.py" in files
    front = front_matter(files["README.md"])
    assert (front["models"], front["title"]) == (["user/garments"], 'The "all" of it')
    assert b"'AIMONK_MODEL', 'user/garments'" in files["app.py"].replace(b'"', b"'")

    repo.commit("main", files | {"aimonk_hf/old_module.py": b"", "notes.txt": b"mine"}, "an older Space")
    for told in ("pushed: ", "unchanged: "):
        assert main([*command, "--private"]) == 0
        assert told in capsys.readouterr().out
        assert set(repo.files()) == {*files, "notes.txt"}, "the old module has gone, other people's files stay"


def test_an_installed_package_writes_the_same_space(model_folder: Path, tmp_path: Path, monkeypatch):
    installed = tmp_path / "site-packages" / "aimonk_hf"
    shutil.copytree(spaces._PACKAGE, installed)
    shutil.copy(spaces._PACKAGE.parent / "model_card.md", installed)  # as the wheel has it
    monkeypatch.setattr(spaces, "_PACKAGE", installed)
    spaces.write_space(tmp_path / "space", str(model_folder))
    assert (tmp_path / "space" / "aimonk_hf" / "model_card.md").is_file()
    needed = {re.split("[<>=[]", line)[0] for line in (tmp_path / "space" / "requirements.txt").read_text().split()}
    assert needed >= {"torch", "timm", "gradio"}
    assert not {"pytest", "wandb", "ruff", "pyarrow"} & needed
