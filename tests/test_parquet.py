"""Predictions as Parquet shards: the rows, lists of files, a killed run, and manifests of other predictions."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest

from aimonk_hf import AimonkModel
from aimonk_hf.cli.main import main


@pytest.fixture
def listed(sample: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    names = [str(path) for path in sorted((sample / "images").iterdir(), reverse=True)[:12]]
    names.insert(5, str(tmp_path / "missing.jpg"))
    path = tmp_path / "names.txt"
    path.write_text("\n".join(names) + "\n")
    return path, names


def predict(model: Path, *arguments: object) -> int:
    return main(["predict", "--model", str(model), "--format", "parquet", *map(str, arguments)])


def rows_of(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pyarrow.parquet.read_table(path).to_pylist()]


def test_shards_hold_the_rows_of_a_list_in_its_order(
    exported: Path, tiny_model: AimonkModel, listed: tuple[Path, list[str]], tmp_path: Path, capsys
) -> None:
    path, names = listed
    assert predict(exported, "--list", path, "--output", tmp_path / "out", "--shard-size", 5) == 1
    assert f"{tmp_path / 'missing.jpg'}: no such file" in capsys.readouterr().err
    rows = rows_of(tmp_path / "out")
    assert [row["image"] for row in rows] == names
    nothing = dict.fromkeys(("attributes", *tiny_model.config.attributes))
    assert rows[5] == {"image": names[5], "error": "no such file", **nothing}
    expected = tiny_model.predict(names[0])
    assert rows[0]["attributes"] == expected.attributes
    assert {name: rows[0][name] for name in expected.scores} == pytest.approx(expected.scores, abs=1e-4)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [(shard["rows"], shard["failed"]) for shard in manifest["shards"]] == [(5, 0), (5, 1), (3, 0)]
    assert manifest["finished"]


def test_a_killed_run_goes_on_after_its_last_shard(exported: Path, sample: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    flags = [str(sample / "images"), "--output", str(out), "--shard-size", "4"]
    command = [sys.executable, "-m", "aimonk_hf", "predict", "--model", str(exported), "--format", "parquet", *flags]
    running = subprocess.Popen([*command, "--batch-size", "1"], stderr=subprocess.DEVNULL)
    while running.poll() is None and not (out / "manifest.json").exists():
        time.sleep(0.005)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("part-00000.parquet")}
    assert predict(exported, *flags) == 2
    assert "manifest.json is there already: continue with --resume, or name another --output" in capsys.readouterr().err
    assert predict(exported, *flags, "--resume") == 0
    assert all(path.stat().st_mtime_ns == changed for path, changed in kept.items())
    assert predict(exported, sample / "images", "--output", tmp_path / "whole") == 0
    assert len(rows_of(out)) == 60
    for own, expected in zip(rows_of(out), rows_of(tmp_path / "whole"), strict=True):
        assert (own["image"], own["attributes"]) == (expected["image"], expected["attributes"])
        assert own["belt"] == pytest.approx(expected["belt"], abs=1e-6)
    assert predict(exported, *flags, "--resume") == 0
    assert "is finished: nothing to resume" in capsys.readouterr().out


def test_what_a_run_left_that_was_killed_while_it_wrote_a_shard_is_taken_away(
    exported: Path, sample: Path, tmp_path: Path, monkeypatch
) -> None:
    out = tmp_path / "out"
    flags = [sample / "images", "--output", out, "--shard-size", 30]

    def killed(table: pyarrow.Table, path: Path) -> None:
        path.with_name(".part-00000.0123.tmp.parquet").write_bytes(b"half")  # beside its own, which Python removes
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pyarrow.parquet, "write_table", killed)
        assert predict(exported, *flags) == 130
    assert (out / "manifest.json").exists()
    assert predict(exported, *flags, "--resume") == 0
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "part-00000.parquet", "part-00001.parquet"]
    assert len(rows_of(out)) == 60


def test_a_manifest_of_other_predictions_is_refused_and_nothing_written(
    exported: Path, listed: tuple[Path, list[str]], sample: Path, tmp_path: Path, capsys
) -> None:
    path, names = listed
    out = tmp_path / "out"
    predict(exported, "--list", path, "--output", out, "--shard-size", 5)
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(manifest | {"finished": False, "shards": manifest["shards"][:1]}))
    before = {file: file.read_bytes() for file in out.iterdir()}
    shards = ("--output", out, "--shard-size", 5, "--resume")
    for arguments, told in [
        (("--list", path, *shards, "--threshold", 0.1), "is of other predictions (thresholds differ)"),
        (("--list", path, "--output", out, "--shard-size", 6, "--resume"), "(shard_size differ)"),
        ((sample / "images", *shards), "part-00000.parquet is of another input"),
    ]:
        capsys.readouterr()
        assert predict(exported, *arguments) == 2
        assert told in capsys.readouterr().err
        assert {file: file.read_bytes() for file in out.iterdir()} == before
