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


def front_matter(folder: Path) -> dict:
    return yaml.safe_load((folder / "README.md").read_text().split("---")[1])


def test_the_written_folder(model_folder: Path, tmp_path: Path, capsys):
    assert main(["push-space", "--model", str(model_folder), "--output", str(tmp_path / "space")]) == 0
    space = tmp_path / "space"
    assert f"written:   {space}" in capsys.readouterr().out
    assert {path.name for path in space.iterdir()} == {
        "app.py",
        "aimonk_hf",
        "model",
        "model_card.md",
        "requirements.txt",
        "README.md",
    }
    assert {path.name for path in (space / "model").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert not list(space.rglob("__pycache__"))
    front = front_matter(space)
    assert (front["sdk"], front["app_file"], front["title"]) == ("gradio", "app.py", "Image attributes: garments")
    assert "torch" in (space / "requirements.txt").read_text()
    assert "model_card.md" not in {path.name for path in (space / "aimonk_hf").iterdir()}
    assert main(["push-space", "--model", str(model_folder), "--output", str(space)]) == 2
    assert "is not empty: name a new folder for the Space" in capsys.readouterr().err
    assert main(["push-space", "--model", str(model_folder)]) == 2
    assert "needs --repo-id USER/NAME to upload the Space, or --output DIR" in capsys.readouterr().err
    assert main(["push-space", "--model", str(space), "--output", str(tmp_path / "other")]) == 2
    assert "is no model: it has no config.json" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def isolated(code: list[str], folder: Path, **variables: str) -> subprocess.Popen[str]:
    """Start Python in `folder` with the installed packages but without site-packages' links to this repository."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    packages = sysconfig.get_paths()["purelib"]
    settings = {
        "PYTHONPATH": packages,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
    }
    return subprocess.Popen(
        [sys.executable, "-S", *code],
        cwd=folder,
        env=kept | settings | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_it_starts_from_its_folder_alone(model_folder: Path, tiny_model: AimonkModel, sample: Path, tmp_path: Path):
    space = tmp_path / "space"
    assert main(["push-space", "--model", str(model_folder), "--output", str(space)]) == 0
    outside, _ = isolated(["-c", "import aimonk_hf.cli.main"], tmp_path).communicate()
    assert "No module named 'aimonk_hf" in outside
    where, _ = isolated(["-c", "import aimonk_hf; print(aimonk_hf.__file__)"], space).communicate()
    assert where.strip() == str(space / "aimonk_hf" / "__init__.py")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = isolated(
        ["app.py"], space, SPACE_ID="user/space", GRADIO_SERVER_NAME="127.0.0.1", GRADIO_SERVER_PORT=str(port)
    )
    try:
        wait_for(port, app)
        picture = min((sample / "images").iterdir())
        answer = Client(f"http://127.0.0.1:{port}", verbose=False).predict(handle_file(picture), api_name="/predict")
    finally:
        app.terminate()
        output, _ = app.communicate(timeout=30)
    expected = tiny_model.predict(picture)
    text = str(answer)
    for name, score in expected.scores.items():
        assert name in text, output[-2000:]
        assert f"{score:.3f}"[:4] in text


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
    command = [
        "push-space",
        "--model",
        "user/garments",
        "--repo-id",
        "user/page",
        "--title",
        'Garments: "all" of them',
        "--private",
    ]
    assert main(command) == 0
    repo = hub.repos["space", "user/page"]
    assert f"pushed:    {hub.url}/spaces/user/page/commit/{repo.branches['main']}" in capsys.readouterr().out
    assert repo.private
    assert repo.messages == ["initial commit", "Upload space"]
    files = repo.files()
    assert {path.split("/")[0] for path in files} == {
        *(".gitattributes", "app.py", "aimonk_hf", "model_card.md", "requirements.txt", "README.md")
    }
    assert "aimonk_hf/app/__init__.py" in files
    front = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert front["models"] == ["user/garments"]
    assert front["title"] == 'Garments: "all" of them'
    assert b"'AIMONK_MODEL', 'user/garments'" in files["app.py"].replace(b'"', b"'")

    repo.commit("main", files | {"aimonk_hf/old_module.py": b"", "notes.txt": b"mine"}, "an older Space")
    assert main(command) == 0
    assert set(repo.files()) == {*files, "notes.txt"}  # the old module has gone, other people's files stay
    capsys.readouterr()
    assert main(command) == 0
    assert "unchanged: " in capsys.readouterr().out
    assert len(repo.messages) == 4


def test_an_installed_package_writes_the_same_space(model_folder: Path, tmp_path: Path, monkeypatch):
    installed = tmp_path / "site-packages" / "aimonk_hf"
    shutil.copytree(spaces._PACKAGE, installed)
    shutil.copy(spaces._PACKAGE.parent / "model_card.md", installed)  # as the wheel has it
    monkeypatch.setattr(spaces, "_PACKAGE", installed)
    spaces.write_space(tmp_path / "space", str(model_folder))
    assert (tmp_path / "space" / "aimonk_hf" / "model_card.md").is_file()
    needed = {re.split("[<>=[]", line)[0] for line in (tmp_path / "space" / "requirements.txt").read_text().split()}
    assert {"torch", "timm", "gradio"} <= needed
    assert not {"pytest", "wandb", "ruff", "onnx"} & needed
