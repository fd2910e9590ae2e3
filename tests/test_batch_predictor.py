"""Columns of images through BatchPredictor, as Ray Data, datasets and Spark call it."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from aimonk_hf import AimonkModel, BatchPredictor
from aimonk_hf.errors import AimonkError


def test_every_row_gets_scores_attributes_and_error(folder: Path, tiny_model: AimonkModel, sample: Path):
    paths = sorted((sample / "images").iterdir())[:3]
    images = [str(paths[0]), "none.png", str(paths[2])]
    batch = {"image": np.array(images), "collar": [1, 2, 3]}
    predictor = pickle.loads(pickle.dumps(BatchPredictor(folder, thresholds=0.5)))
    found = predictor(batch)
    assert list(found) == ["collar", "image", "sleeves", "stripes", "score:collar", "belt", "attributes", "error"]
    assert {len(values) for values in found.values()} == {3}
    assert (found["collar"], list(found["image"])) == ([1, 2, 3], images)
    assert found["error"] == ["", "no such file", ""]
    assert found["attributes"][1] == []
    assert np.isnan(found["belt"][1])
    expected = tiny_model.predict(paths[2], thresholds=0.5)
    assert found["belt"][2] == pytest.approx(expected.scores["belt"], abs=1e-5)
    assert found["attributes"][2] == expected.attributes
    assert pickle.loads(pickle.dumps(predictor))._predictor is None, "weights do not travel"


@pytest.mark.parametrize("kind", ["bytes", "array", "image", "undecoded"])
def test_images_of_every_kind_of_cell(kind: str, folder: Path, sample: Path):
    path = sorted((sample / "images").iterdir())[0]
    cell = {
        "bytes": path.read_bytes(),
        "array": np.array(Image.open(path).convert("RGB")),
        "image": Image.open(path),
        "undecoded": {"bytes": path.read_bytes(), "path": None},
    }[kind]
    predictor = BatchPredictor(str(folder), column="photo", backend="torch")
    found, expected = predictor({"photo": [cell]}), predictor({"photo": [str(path)]})
    assert "photo" not in found, "images are not passed on"
    assert found["sleeves"] == expected["sleeves"]
    assert predictor({"photo": []})["error"] == []


def test_a_missing_column_is_named(folder: Path):
    with pytest.raises(AimonkError, match="The batch has no column 'image'; it has path, label"):
        BatchPredictor(folder)({"path": [], "label": []})


@pytest.mark.soak
def test_ray_scores_a_folder_with_two_workers(folder: Path, tiny_model: AimonkModel, sample: Path, tmp_path: Path):
    pytest.importorskip("ray")
    script = Path(__file__).parents[1] / "examples" / "ray_predict.py"
    command = [sys.executable, script, sample / "images", folder, tmp_path / "out"]
    subprocess.run(command, check=True, env=os.environ | {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"})
    table = pyarrow.parquet.read_table(tmp_path / "out").to_pylist()
    assert len(table) == 60
    for row in table:
        expected = tiny_model.predict(row["path"])
        assert row["belt"] == pytest.approx(expected.scores["belt"], abs=1e-4)
        assert row["attributes"] == expected.attributes
