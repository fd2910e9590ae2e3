"""The commands as a user types them: what they print, where they write, how they exit."""

import csv
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from PIL import Image

from aimonk_hf import AimonkModel, TrainConfig
from aimonk_hf.cli.main import main


@pytest.fixture
def pictures(tmp_path: Path, picture: Image.Image) -> Path:
    images = tmp_path / "my pictures" / "deep"
    images.mkdir(parents=True)
    picture.save(images / "a.png")
    picture.rotate(90).save(images.parent / "b.JPG", "JPEG")
    (images.parent / "bad.jpg").write_bytes(b"nonsense")
    (images.parent / "notes.txt").write_text("not an image")
    return images.parent


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_help_needs_no_torch_and_every_setting_is_a_flag():
    code = "import sys; sys.argv = ['aimonk-hf', 'train', '--help']\nfrom aimonk_hf.cli.main import main\n"
    code += "try: main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules and 'timm' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for field in fields(TrainConfig):
        assert "--" + field.name.replace("_", "-") in done.stdout
    assert "--no-pretrained" in done.stdout
    printed = " ".join(done.stdout.split())
    assert "0: off (0)" in printed  # --folds
    assert "forward passes per optimiser step (1)" in printed


def test_predict_prints_a_table_and_names_what_failed(folder: Path, pictures: Path, capsys):
    assert run("predict", pictures, "--model", folder) == 1
    printed = capsys.readouterr()
    assert printed.out.count("threshold") == 2
    assert printed.out.count("present: ") == 2
    assert "bad.jpg: not an image file" in printed.err
    assert "notes.txt" not in printed.out + printed.err
    assert run("predict", pictures / "b.JPG", "--model", folder, "--threshold", 0) == 0
    assert "present: sleeves, stripes, collar, belt" in capsys.readouterr().out


def test_predict_json_and_csv(folder: Path, pictures: Path, tmp_path: Path, capsys):
    thresholds = ("--threshold", "collar=0", "--threshold", "belt=1")
    assert run("predict", pictures, "--model", folder, "--format", "json", *thresholds) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(row["image"]).name for row in rows] == ["b.JPG", "bad.jpg", "a.png"]
    assert rows[1] == {"image": str(pictures / "bad.jpg"), "error": "not an image file"}
    assert list(rows[0]["scores"]) == ["sleeves", "stripes", "collar", "belt"]
    assert "collar" in rows[0]["attributes"]
    assert "belt" not in rows[0]["attributes"]

    out = tmp_path / "new" / "table.csv"
    assert run("predict", pictures, "--model", folder, "--format", "csv", "--output", out) == 1
    table = list(csv.DictReader(out.open()))
    assert list(table[0]) == ["image", "attributes", "sleeves", "stripes", "collar", "belt", "error"]
    assert table[0]["belt"] == f"{rows[0]['scores']['belt']:.6f}"
    assert table[1]["error"] == "not an image file"
    assert capsys.readouterr().out == ""


ODD_NAMES = ["image", "attributes", "Error", "notes", "score:image"]
ODD_NAMES += ["red", "dress", "red dress", '["red"]', "a,b", "été"]


@pytest.fixture
def odd_model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    AimonkModel.from_timm("test_resnet", ODD_NAMES, pretrained=False, image_size=32).save_pretrained(tmp_path / "odd")
    return tmp_path / "odd"


def test_a_csv_is_unambiguous_whatever_the_attributes_are_called(
    odd_model: Path, pictures: Path, tmp_path: Path, capsys
):
    out = tmp_path / "table.csv"
    assert run("predict", pictures, "--model", odd_model, "--format", "json") == 1
    wanted = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert run("predict", pictures, "--model", odd_model, "--format", "csv", "--output", out) == 1
    with out.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    prefixed = ["score:image", "score:attributes", "score:Error", "score:notes", "score:score:image"]
    assert header == ["image", "attributes", *prefixed, *ODD_NAMES[5:], "error"]
    for row, one in zip((dict(zip(header, row, strict=True)) for row in rows), wanted, strict=True):
        assert (row["image"], row["error"]) == (one["image"], one.get("error", ""))
        scores = [float(row[column]) for column in header[2:-1] if row[column]]
        assert scores == pytest.approx(list(one.get("scores", {}).values()), abs=1e-6)
        assert row["attributes"] == (json.dumps(one["attributes"], ensure_ascii=False) if "scores" in one else "")
    for present, cell in (({"red", "dress"}, '["red", "dress"]'), ({"red dress"}, '["red dress"]')):
        alone = [flag for name in ODD_NAMES for flag in ("--threshold", f"{name}={int(name not in present)}")]
        assert run("predict", pictures / "b.JPG", "--model", odd_model, "--format", "csv", *alone) == 0
        assert next(csv.DictReader(capsys.readouterr().out.splitlines()))["attributes"] == cell


def test_a_csv_for_excel_is_marked_as_utf_8_and_holds_no_formula(pictures: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(pictures)
    names = ["=1+1.jpg", "@a.jpg", "+a.jpg", "b.JPG", "＝1.jpg"]
    for name in names:
        (pictures / name).write_bytes((pictures / "b.JPG").read_bytes())
    model = AimonkModel.from_timm("test_resnet", ["=cmd()", "été"], pretrained=False, image_size=32)
    model.save_pretrained(tmp_path / "formula")
    flags = ["--model", tmp_path / "formula", "--format", "csv", "--output", tmp_path / "table.csv"]
    assert run("predict", *names, *flags, "--excel") == 0
    content = (tmp_path / "table.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbfimage,attributes,'=cmd(),")
    first = [row[0] for row in csv.reader(content.decode("utf-8-sig").splitlines())]
    assert first == ["image", "'=1+1.jpg", "'@a.jpg", "'+a.jpg", "b.JPG", "'＝1.jpg"]
    assert run("predict", *names, *flags) == 0
    content = (tmp_path / "table.csv").read_bytes()
    assert content.startswith("image,attributes,=cmd(),été,error".encode())
    assert [row[0] for row in csv.reader(content.decode().splitlines())] == ["image", *names]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("predict PICTURES --model MODEL --threshold x", "--threshold x: 'x' is not a number"),
        ("predict PICTURES --model MODEL --threshold hat=0.5", "thresholds for unknown attributes: hat"),
        ("predict PICTURES --model MODEL --threshold 0.5 --threshold belt=0.5", "not both"),
        ("predict PICTURES --model MODEL --threshold 2", "must lie between 0 and 1"),
        ("predict PICTURES --model MODEL --batch-size 0", "--batch-size and --num-workers must be at least 1"),
        ("predict PICTURES --model MODEL --excel", "--excel is about CSV files: add --format csv"),
        ("predict EMPTY --model MODEL", "There are no images in"),
        ("predict --model MODEL --format parquet", "predict needs images, folders, or --list FILE"),
        ("predict a.jpg --model MODEL --format parquet", "--format parquet needs --output DIR"),
        ("predict a.jpg --model MODEL --format parquet --output OUT --shard-size 0", "a --shard-size of at least 1"),
        (
            "predict --list none.txt --model MODEL --format parquet --output OUT",
            "Cannot read none.txt: No such file or directory",
        ),
        ("predict a.jpg --model MODEL --format csv --resume", "--resume continues Parquet files: add --format parquet"),
        ("app --model MODEL --port 0", "--port must lie between 1 and 65535, found 0"),
        ("app --model MODEL --port 65536", "--port must lie between 1 and 65535, found 65536"),
        ("train --data-dir none --output-dir OUT", "There is no data folder none"),
        ("TRAIN --num-workers -1", "--num-workers must not be negative, found -1"),
        (
            "TRAIN --threshold-objective precision=0",
            "Unknown objective 'precision=0': use f1, youden, or precision=0.9",
        ),
        ("TRAIN --recipe efficientnet-b0-two-stage --stage-epochs 0,2", "a stage of 0 epochs trains nothing"),
        ("TRAIN --lr 0", "--lr must be above 0 and at most 1e30, found 0.0"),
        ("TRAIN --trackio-space user/space", "--trackio-space is of --log-with trackio: give both"),
        ("TRAIN --trackio-space user/space --log-with wandb", "--trackio-space is of --log-with trackio"),
        ("TRAIN --trackio-space my:space --log-with trackio", "--trackio-space takes user/name of a Space"),
        ("TRAIN --license Apache2.0", "--license Apache2.0 is not a license of the Hub (did you mean apache-2.0"),
        ("TRAIN --license apache-2.0:mine", "--license apache-2.0:mine is not a license of the Hub"),
        ("TRAIN --license other", "--license other needs a name of small letters"),
        ("TRAIN --license other:My_License", "--license other needs a name of small letters"),
        ("TRAIN --license other:mine:ftp://x", "its address must begin with https://"),
        ("TRAIN --license=", "--license  is not a license of the Hub"),
        ("TRAIN --tags a,,b", "--tags '' is not a tag: give words"),
    ],
)
def test_wrong_usage_is_one_line_and_status_two(
    command: str, message: str, folder: Path, pictures: Path, sample: Path, capsys
):
    (folder.parent / "empty").mkdir()
    known = {"PICTURES": [pictures], "MODEL": [folder], "EMPTY": [folder.parent / "empty"], "OUT": [folder.parent]}
    known["TRAIN"] = ["train", "--recipe", "demo", "--no-pretrained", "--data-dir", sample, "--output-dir"]
    known["TRAIN"] += [folder.parent / "out"]
    assert run(*(argument for word in command.split() for argument in known.get(word, [word]))) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("aimonk-hf: ")
    assert len(error.splitlines()) == 1
    assert not (folder.parent / "out").exists()


def test_evaluate_names_the_trivial_predictors_and_matches_columns(folder: Path, sample: Path, tmp_path: Path, capsys):
    rows = list(csv.reader((sample / "labels.csv").open()))
    shuffled = tmp_path / "shuffled.csv"
    with shuffled.open("w", newline="") as file:
        csv.writer(file).writerows([[row[0], row[4], "extra" if row[0] == "image" else "1", *row[1:4]] for row in rows])
    for flags in ((), ("--labels", shuffled, "--images-dir", sample / "images")):
        assert run("evaluate", "--model", folder, "--data-dir", sample, *flags) == 0
    first, second = capsys.readouterr().out.split("attribute ")[1:]
    assert first == second
    assert "everything present" in first
    assert "each majority" in first
    (tmp_path / "labels.txt").write_text("garment_0000.png 1 0 1 0\n")
    flags = ("--labels", tmp_path / "labels.txt", "--images-dir", sample / "images")
    assert run("evaluate", "--model", folder, "--data-dir", sample, *flags) == 2
    assert "has no attribute 'sleeves'" in capsys.readouterr().err
    flags += ("--attributes", "sleeves,stripes,collar,belt")
    assert run("evaluate", "--model", folder, "--data-dir", sample, *flags) == 0


def test_train_from_the_command_line_ends_with_what_to_do_next(sample: Path, tmp_path: Path, capsys):
    flags = ["--recipe", "demo", "--epochs", "1", "--image-size", "32", "--num-workers", "0", "--mixed-precision", "no"]
    flags += ["--no-onnx", "--data-dir", str(sample), "--output-dir", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-m", "aimonk_hf", "train", *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "epoch 1/1" in done.stdout
    assert f"serve:    aimonk-hf app --model {tmp_path / 'out'}" in done.stdout
    assert "\r" not in done.stdout + done.stderr  # no bar redraws itself in a log file
    assert run("train", *flags) == 2
    assert "holds another run: pass --resume" in capsys.readouterr().err


def test_recipes_and_sample_data(tmp_path: Path, capsys):
    assert run("recipes") == 0
    assert "default: " in capsys.readouterr().out
    assert run("sample-data", tmp_path / "drawn", "--images", 5) == 0
    assert run("sample-data", tmp_path / "drawn") == 2
    assert "already holds labels" in capsys.readouterr().err
    assert run("sample-data", tmp_path / "none", "--images", 0) == 2
    with pytest.raises(SystemExit, match="2"):
        run("train", "--data-dir", tmp_path)
