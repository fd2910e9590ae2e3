"""The package as it is installed: what wheel and sdist hold, and the wheel at work away from the checkout."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import aimonk_hf

ROOT = Path(__file__).parents[1]
# Where the tests run without PYTHONPATH the wheel's own environment must be the only one that has the package.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
DATA_FILES = (
    *("model_card.md", "py.typed", "app/labelling.html", "app/static/page.css", "app/static/panel.js"),
    *("app/sample_model/config.json", "app/sample_model/model.safetensors", "app/sample_model/onnx/model.onnx"),
    *("training/presets/default.toml", "training/presets/published/"),
)


def run(*command: object, folder: Path) -> str:
    words = list(map(str, command))
    done = subprocess.run(words, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the sdist and the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-d", folder, folder=ROOT)
    return folder


def test_the_wheel_holds_the_library_with_its_data_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    tracked = run("git", "ls-files", "aimonk_hf", folder=ROOT).split("\n")[:-1] if (ROOT / ".git").exists() else []
    assert {name for name in names if ".dist-info/" not in name} >= {*tracked, "aimonk_hf/model_card.md"}
    for name in DATA_FILES:
        assert any(f"aimonk_hf/{name}" in found for found in names), name
    assert {name.split("/")[0] for name in names} == {"aimonk_hf", f"aimonk_hf-{aimonk_hf.__version__}.dist-info"}
    assert not [name for name in names if name.endswith((".pyc", ".tmp")) or "test" in Path(name).name]
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "Requires-Python: >=3.11" in metadata
    assert wheel.stat().st_size < 2_000_000


def test_the_sdist_builds_the_same_wheel(built: Path, tmp_path: Path) -> None:
    (sdist,), (wheel,) = built.glob("*.tar.gz"), built.glob("*.whl")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    assert {"tests", "docs", "README.md", "SECURITY.md"} <= {path.name for path in source.iterdir()}
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "again", folder=source)
    assert (tmp_path / "again" / wheel.name).read_bytes() == wheel.read_bytes()


def test_the_wheel_predicts_in_an_environment_of_its_own(built: Path, sample: Path, tmp_path: Path) -> None:
    pytest.importorskip("pip", reason="an environment of uv has none")
    (wheel,) = built.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", "own", folder=tmp_path)
    python = tmp_path / "own/bin/python"
    (packages,) = tmp_path.glob("own/lib/python*/site-packages")
    # the dependencies are those of this environment; its own .pth files, and with them the checkout, are not read
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, folder=tmp_path)
    where = run(python, "-c", "import aimonk_hf; print(aimonk_hf.__file__)", folder=tmp_path).strip()
    assert Path(where) == packages / "aimonk_hf/__init__.py"
    command = tmp_path / "own/bin/aimonk-hf"
    assert run(command, "--version", folder=tmp_path) == f"aimonk-hf {aimonk_hf.__version__}\n"
    assert "default" in run(command, "recipes", folder=tmp_path)
    image, model = sample / "images/garment_0000.png", packages / "aimonk_hf/app/sample_model"
    told = json.loads(run(command, "predict", image, "--model", model, "--format", "json", folder=tmp_path))
    expected = aimonk_hf.AimonkPredictor.from_pretrained(ROOT / "aimonk_hf/app/sample_model").predict(image)
    assert told["scores"] == pytest.approx(expected.scores, abs=1e-5)
    assert told["attributes"] == expected.attributes
