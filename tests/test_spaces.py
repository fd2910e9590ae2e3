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
from types import SimpleNamespace

import gradio as gr
import huggingface_hub.constants
import numpy as np
import psutil
import pytest
import requests
import yaml
from app_support import HTTP, call, model_folder, result, upload
from card_rules import card_errors
from loopback_hub import WRITER, LoopbackHub
from PIL import Image

from aimonk_hf import AimonkModel
from aimonk_hf.app import space as spaces
from aimonk_hf.app.heatmap import heat_map
from aimonk_hf.app.scoring import Scorer, on_gpu
from aimonk_hf.app.serve import app_folder, launch, open_page
from aimonk_hf.cli.main import main
from aimonk_hf.data.sample_data import PREVALENCE
from aimonk_hf.modeling.devices import resolve_device
from aimonk_hf.modeling.hub import is_public, push_model_folder
from aimonk_hf.modeling.onnx_export import export_folder

__all__ = ["model_folder"]  # a fixture


def front_matter(readme: bytes) -> dict:
    return yaml.safe_load(readme.decode().split("---")[1])


def test_the_written_folder(model_folder: Path, tmp_path: Path, capsys):
    (model_folder / "split.csv").write_text("image,part\n")
    space, command = tmp_path / "space", ["push-space", "--model", str(model_folder)]
    assert main([*command, "--output", str(space)]) == 0
    assert f"written:   {space}" in capsys.readouterr().out
    names = {"app.py", "aimonk_hf", "model", "model_card.md", "requirements.txt", "README.md"}
    assert {path.name for path in space.iterdir()} == names
    assert {path.name for path in (space / "model").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert not list(space.rglob("__pycache__"))
    front = front_matter((space / "README.md").read_bytes())
    assert (front["sdk"], front["app_file"], front["title"]) == ("gradio", "app.py", "Image attributes: garments")
    assert (front["python_version"], "preload_from_hub" in front) == ("3.12.12", False)
    assert "torch>=2.9,<2.14" in (space / "requirements.txt").read_text().splitlines()
    for flags, message in (
        ([*command, "--output", str(space)], "is not empty: name a new folder for the Space"),
        (command, "needs --repo-id USER/NAME to upload the Space, or --output DIR"),
        ([*command[:2], str(space), "--output", str(tmp_path / "b")], "is not a model: it has no config.json"),
    ):
        assert main(flags) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_examples_travel_along_without_what_else_their_files_hold(model_folder: Path, tmp_path: Path) -> None:
    model = shutil.copytree(model_folder, tmp_path / "model")
    (model / "examples").mkdir()
    photograph = Image.new("RGB", (3000, 2000), "red")
    photograph.getexif()[0x010F] = "a camera"
    photograph.save(model / "examples" / "dress.jpg", exif=photograph.getexif())
    (model / "examples" / "notes.txt").write_text("mine")
    (model / "examples" / "broken.jpg").write_text("no image")
    spaces.write_space(tmp_path / "space", str(model))
    (example,) = (tmp_path / "space/model/examples").iterdir()
    with Image.open(example) as image:
        assert (image.size, dict(image.getexif())) == ((1024, 683), {})
    shutil.rmtree(model / "examples")
    spaces.write_space(tmp_path / "none", str(model))
    assert not (tmp_path / "none/model/examples").exists()


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


@pytest.mark.soak
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


def test_a_space_of_a_hub_model_preloads_its_files_unless_it_is_private(
    hub: LoopbackHub, tiny_model: AimonkModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_folder(tiny_model, tmp_path / "model")
    push_model_folder(tmp_path / "model", "user/light")
    tiny_model.push_to_hub("user/heavy")
    tiny_model.push_to_hub("user/secret", private=True)
    for name, files in (
        ("light", "config.json,onnx/model.onnx"),
        ("heavy", "config.json,model.safetensors,README.md"),
        ("secret", None),
    ):
        spaces.write_space(tmp_path / name, f"user/{name}")
        readme = (tmp_path / name / "README.md").read_text()
        front = front_matter(readme.encode())
        assert card_errors("space", readme) == []
        assert (front["models"], front.get("preload_from_hub")) == (
            [f"user/{name}"],
            [f"user/{name} {files}"] if files else None,
        )
    assert "torch" not in (tmp_path / "light/requirements.txt").read_text()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert not is_public("user/light"), "offline nobody knows"


def test_hardware_secrets_and_variables_are_set_before_the_files(
    hub: LoopbackHub, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("MY_SECRET", "do-not-tell")
    command = ["push-space", "--model", str(model_folder), "--repo-id", "user/page"]
    flags = "--hardware zero-a10g --secret MY_SECRET --secret HF_TOKEN --variable LANGUAGE=en --variable EMPTY="
    assert main([*command, "--output", str(tmp_path / "space"), *flags.split()]) == 0
    repo, told = hub.repos["space", "user/page"], "".join(capsys.readouterr())
    assert repo.settings["secrets"] == {"MY_SECRET": "do-not-tell", "HF_TOKEN": WRITER}
    assert (repo.settings["variables"], repo.hardware) == ({"LANGUAGE": "en", "EMPTY": ""}, "zero-a10g")
    posts = [path for method, path in hub.requests if method == "POST"]
    settings = [posts.index(f"/api/spaces/user/page/{one}") for one in ("secrets", "variables", "hardware")]
    assert max(settings) < posts.index("/api/spaces/user/page/commit/main")
    written = b"".join(path.read_bytes() for path in (tmp_path / "space").rglob("*") if path.is_file())
    for secret in ("do-not-tell", WRITER):
        assert secret not in told
        assert secret.encode() not in written
    assert repo.files()["requirements.txt"].decode().splitlines()[-1] == "spaces"
    assert "model/model.safetensors" in repo.files()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--hardware t4-smal", "--hardware t4-smal is not hardware of Spaces (did you mean t4-small"),
        ("--hardware quantum", "--hardware quantum is not hardware of Spaces: choose one of cpu-basic, cpu-upgrade"),
        ("--hardware zero-a10g --backend onnx", "--hardware zero-a10g computes with torch: leave out --backend onnx"),
        ("--secret NOT_THERE", "--secret NOT_THERE: the environment has no NOT_THERE; export it first"),
        ("--secret KEY=do-not-tell", "--secret KEY takes the name of an environment variable"),
        ("--variable A-B=1", "--variable A-B takes the name of an environment variable"),
        ("--variable LANGUAGE", "--variable LANGUAGE has no value: --variable LANGUAGE=VALUE"),
        ("--variable HF_TOKEN=do-not-tell", "--variable HF_TOKEN would be public: export HF_TOKEN, and pass --secret"),
        ("--secret HOME --variable HOME=do-not-tell", "--variable HOME would be public"),
    ],
)
def test_settings_that_no_space_can_have_are_refused_before_anything_is_made(
    flags: str, message: str, hub: LoopbackHub, model_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["push-space", "--model", str(model_folder), "--repo-id", "user/page", *flags.split()]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "do-not-tell" not in told
    assert not hub.repos


def test_the_hub_s_refusal_of_a_setting_is_one_line(
    hub: LoopbackHub, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["push-space", "--model", str(model_folder)]
    assert main([*command, "--repo-id", "user/page", "--hardware", "a100-large"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "Cannot change the settings of user/page on the Hub: " in told
    assert "You must have a credit card on file" in told
    assert main([*command, "--output", str(tmp_path / "space"), "--variable", "LANGUAGE=en"]) == 2
    assert "--secret and --variable are of a Space on the Hub: give --repo-id USER/NAME" in capsys.readouterr().err


@pytest.mark.soak
def test_this_repository_duplicated_as_a_space_shows_the_sample_model(tmp_path: Path) -> None:
    root, space = Path(__file__).parents[1], tmp_path / "space"
    front = front_matter((root / "README.md").read_bytes())
    assert "torch>=2.9,<2.14" in (root / "requirements.txt").read_text().splitlines()
    shutil.copytree(root / "aimonk_hf", space / "aimonk_hf", ignore=shutil.ignore_patterns("__pycache__"))
    for name in (front["app_file"], "model_card.md"):
        shutil.copy(root / name, space)
    with served([front["app_file"]], space, tmp_path) as (url, _):
        page = requests.get(f"{url}/v1/model", timeout=30).json()
        assert page["attributes"] == list(PREVALENCE)
        assert "This is a small sample model" in requests.get(f"{url}/config", timeout=30).text


def test_off_zero_gpu_the_decorator_of_spaces_changes_nothing(tiny_model: AimonkModel, monkeypatch) -> None:
    import spaces as real

    def compute(pixels: object) -> object:
        return pixels

    assert real.GPU(compute) is compute
    assert on_gpu(compute) is compute
    assert Scorer(tiny_model)._compute.__func__ is Scorer._logits
    called = []
    fake = SimpleNamespace(GPU=lambda task: lambda *given: called.append(task) or task(*given))
    monkeypatch.setitem(sys.modules, "spaces", fake)
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert resolve_device("auto") == "cuda"
    scorer, pixels = Scorer(tiny_model), np.zeros((64, 64, 3), np.uint8)
    assert scorer.score(pixels) == pytest.approx(Scorer(tiny_model).score(pixels))
    heat_map(scorer, pixels, "belt")
    assert [task.__name__ for task in called] == ["_logits", "_logits", "_gradient_map"]


# Starts the page as ZeroGPU does, with the real `spaces`, a device API on this machine and no GPU.
ZERO_GPU = """
import http.server, os, threading
asked = []
class Api(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked.append(self.path.split("?")[0])
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(b'{"idle": false, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": "t"}')
    do_GET = do_POST
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ.update(SPACES_ZERO_GPU="true", SPACES_ZERO_DEVICE_API_URL=f"http://127.0.0.1:{server.server_address[1]}")

import numpy as np
from aimonk_hf.app.scoring import Scorer
from aimonk_hf import AimonkPredictor
import gradio as gr

scorer = Scorer(AimonkPredictor.from_pretrained("model"))
print(scorer.model.computing_line)
with gr.Blocks() as page:
    gr.Markdown("a page")
page.launch(prevent_thread_lock=True, quiet=True)
print(asked)
try:
    scorer.score(np.zeros((64, 64, 3), np.uint8))
except Exception as error:
    print(error)
print(asked, flush=True)
os._exit(0)
"""


@pytest.mark.soak
def test_on_zero_gpu_the_model_is_on_the_device_before_the_page_starts(model_folder: Path, tmp_path: Path) -> None:
    space = tmp_path / "space"
    spaces.write_space(space, str(model_folder), hardware="zero-a10g")
    settings = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    output, _ = isolated(["-c", ZERO_GPU], space, **settings).communicate(timeout=120)
    assert "Computing on cuda:0 by torch in float32." in output
    assert "['/startup-report']" in output, "weights packed, functions that want a GPU known"
    assert "The network failed on this batch (" in output, "there is no GPU here"
    assert "'/schedule', '/allow'" in output
