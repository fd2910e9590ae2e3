"""The Space's folder, started where nothing of this repository can be imported, and pushed to a loopback Hub."""

import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import yaml
from gradio_client import Client, handle_file
from hub_support import hub
from loopback_hub import LoopbackHub

from aimonk_hf import AimonkModel
from aimonk_hf.app import space as spaces
from aimonk_hf.cli.main import main

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


def test_it_starts_from_its_folder_alone(model_folder: Path, tiny_model: AimonkModel, sample: Path, tmp_path: Path):
    space = tmp_path / "space"
    assert main(["push-space", "--model", str(model_folder), "--output", str(space)]) == 0
    outside, _ = isolated(["-c", "import aimonk_hf.cli.main"], tmp_path).communicate()
    assert "No module named 'aimonk_hf" in outside
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = {"SPACE_ID": "user/space", "GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
    app = isolated(["app.py"], space, **served)
    try:
        wait_for(port, app)
        image = min((sample / "images").iterdir())
        answer = Client(f"http://127.0.0.1:{port}", verbose=False).predict(handle_file(image), api_name="/predict")
    finally:
        app.terminate()
        output, _ = app.communicate(timeout=30)
    for name, score in tiny_model.predict(image).scores.items():
        assert name in str(answer), output[-2000:]
        assert f"{score:.3f}"[:4] in str(answer)


def wait_for(port: int, app: subprocess.Popen[str]) -> None:
    """Wait until the port answers; an app that ends before says why."""
    for _ in range(600):
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
    assert not {"pytest", "wandb", "ruff", "onnx"} & needed
