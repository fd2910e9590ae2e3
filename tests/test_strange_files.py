"""Strange files in prediction, checks, audit, training and the app: bad ones are named, good ones treated as alone."""

import csv
import faulthandler
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from strange_files import BAD, EITHER, GOOD, flipped, make_corpus, saved, write_labels

from aimonk_hf import AimonkModel, AttributeDataset, TrainConfig, read_labels, train
from aimonk_hf.audit.checks import audit
from aimonk_hf.cli.main import main
from aimonk_hf.data.images import check_image, read_image, shown_name
from aimonk_hf.errors import AimonkError, ImageError
from aimonk_hf.modeling.predict_files import ImageFiles

ATTRIBUTES = ["collar", "belt"]
SOAK_FACTOR = int(os.environ.get("AIMONK_SOAK_FACTOR", "1"))
TOLERANCE = 1e-5  # the same image in batches of different sizes
MOST_MEMORY = 300_000_000  # bytes above where the run began; one of 20,000 x 20,000 pixels takes more than a gigabyte

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged EXIF data and of large pictures


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """End the process where a test hangs: a thread that is stuck in a decoder cannot be interrupted."""
    faulthandler.dump_traceback_later(600, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="module")
def model() -> AimonkModel:
    torch.manual_seed(0)
    return AimonkModel.from_timm("test_resnet", ATTRIBUTES, pretrained=False, image_size=32).eval()


class Corpus:
    """A data folder of strange files, and the model's scores of each file alone, or the reason why there are none."""

    def __init__(self, folder: Path, n_sources: int, seed: int, model: AimonkModel) -> None:
        self.folder, self.images, self.model = folder, folder / "images", model
        self.files = make_corpus(self.images, n_sources, seed)
        write_labels(self.files, folder / "labels.csv")
        self.alone = {file.name: alone(model, self.images / file.name) for file in self.files}

    @property
    def bad(self) -> dict[str, str]:
        """The reason of each file that cannot be used."""
        return {name: found for name, found in self.alone.items() if isinstance(found, str)}


def copy_regular(source: str, target: str) -> None:
    if Path(source).is_fifo():
        os.mkfifo(target)
    else:
        shutil.copy2(source, target, follow_symlinks=False)


def alone(model: AimonkModel, path: Path) -> dict[str, float] | str:
    try:
        return model.predict(path).scores
    except ImageError as error:
        return str(error).removeprefix(f"{path}: ")


def check_scores(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Hold predictions by file name against those of each file alone."""
    assert set(found) == set(expected)
    for name, result in expected.items():
        if isinstance(result, str):
            assert found[name] == result, name
        else:
            assert found[name] == pytest.approx(result, abs=TOLERANCE), name


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Assert that the process takes at most `MOST_MEMORY` bytes more at any moment of the block than before it."""

    def kilobytes(key: str) -> int:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(key))

    if not Path("/proc/self/clear_refs").exists():  # Linux tells the peak, other systems do not
        yield
        return
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held now
    before = kilobytes("VmRSS")
    yield
    assert (kilobytes("VmHWM") - before) * 1024 < MOST_MEMORY


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, model: AimonkModel) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("strange"), 8 * SOAK_FACTOR, 0, model)


def test_the_corpus_is_what_it_says(corpus: Corpus) -> None:
    for file in corpus.files:
        found = corpus.alone[file.name]
        assert file.verdict != (GOOD if isinstance(found, str) else BAD), (file, found)
        if isinstance(found, str):
            assert file.reason in found, (file, found)
            assert found.isprintable(), (file, found)
            assert len(found) < 250
    verdicts = [file.verdict for file in corpus.files]
    assert verdicts.count(GOOD) > 80
    assert verdicts.count(BAD) > 60
    flips = [isinstance(corpus.alone[file.name], str) for file in corpus.files if file.verdict == EITHER]
    assert 4 < sum(flips) < len(flips) - 4, "flipped bits spoil some images and leave others readable"


def test_a_folder_is_predicted_as_each_file_alone(corpus: Corpus) -> None:
    found: dict[str, Any] = {}
    paths = list(ImageFiles([corpus.images]))
    assert len(paths) == len(set(paths)), "a link to the folder itself is not followed"
    with bounded_memory():
        for path, prediction in corpus.model.stream(paths, batch_size=32, workers=4):
            assert isinstance(path, Path)
            found[path.name] = str(prediction) if isinstance(prediction, ImageError) else prediction.scores
    check_scores(found, corpus.alone)


def test_the_command_names_each_bad_file_on_a_line_of_its_own(corpus: Corpus, tmp_path: Path) -> None:
    corpus.model.save_pretrained(tmp_path / "model")
    command = [sys.executable, "-W", "ignore", "-m", "aimonk_hf", "predict", str(corpus.images), "--format", "csv"]
    command += ["--model", str(tmp_path / "model"), "--output", str(tmp_path / "out.csv")]
    encoding = {"PYTHONUTF8": "0", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, capture_output=True, timeout=300, env=os.environ | encoding)
    assert done.returncode == 1
    told = done.stderr.decode("utf-8").replace("\r", "\n").split("\n")
    for name, reason in corpus.bad.items():
        assert f"{shown_name(str(corpus.images / name))}: {reason}" in told
    assert sum(": " in line and str(corpus.images) in line for line in told) == len(corpus.bad)
    rows = read_rows(tmp_path / "out.csv")
    assert len(rows) == len(corpus.alone)
    found = {Path(row["image"]).name: row["error"] or {name: float(row[name]) for name in ATTRIBUTES} for row in rows}
    check_scores(found, corpus.alone)


@pytest.mark.parametrize("format", ["json", "text"])
def test_names_that_are_no_text_stop_no_output(
    corpus: Corpus, format: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    strange = [corpus.images / name for name in corpus.alone if "caf" in name or "\n" in name]
    corpus.model.save_pretrained(tmp_path / "model")
    assert main(["predict", *map(str, strange), "--model", str(tmp_path / "model"), "--format", format]) == 1
    printed = capsys.readouterr().out
    if format == "json":
        rows = [json.loads(line) for line in printed.splitlines()]
        check_scores(
            {Path(row["image"]).name: row.get("scores") or row["error"] for row in rows},
            {path.name: corpus.alone[path.name] for path in strange},
        )
    else:
        good = [path for path in strange if not isinstance(corpus.alone[path.name], str)]
        assert [line for line in printed.splitlines() if "strange" in line] == [shown_name(str(path)) for path in good]


def test_checking_finds_the_same_files_bad_as_prediction(corpus: Corpus) -> None:
    dataset = AttributeDataset.from_folder(corpus.folder)
    with bounded_memory():
        problems = dataset.find_problems()
    assert {dataset.labels.images[row]: reason for row, reason in problems.items()} == corpus.bad


@pytest.mark.usefixtures("real_plots")
def test_the_audit_names_every_bad_file_and_writes_all_its_reports(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with bounded_memory():
        assert main(["audit", "--data-dir", str(corpus.folder), "--output", str(tmp_path)]) == 0
    files = json.loads((tmp_path / "audit.json").read_text(encoding="utf-8"))["files"]
    assert set(files["missing"]) | set(files["unreadable"]) == set(corpus.bad)
    assert files["n_usable"] == len(corpus.alone) - len(corpus.bad)
    assert files["unlisted"] == []
    assert f"{len(files['unreadable'])} images cannot be read" in capsys.readouterr().out
    assert "## Duplicates" in (tmp_path / "audit.md").read_text(encoding="utf-8")
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        sheet.load()


def test_training_names_bad_and_vanished_files_and_uses_every_good_one(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    data = shutil.copytree(corpus.folder, tmp_path / "data", symlinks=True, copy_function=copy_regular)
    good = [file.name for file in corpus.files if file.verdict == GOOD]
    victims, check = good[::5], AttributeDataset.find_problems

    def check_then_vanish(self: AttributeDataset, *arguments: Any, **options: Any) -> dict[int, str]:
        problems = check(self, *arguments, **options)
        for name in victims:
            (data / "images" / name).unlink(missing_ok=True)
        return problems

    monkeypatch.setattr(AttributeDataset, "find_problems", check_then_vanish)
    small: dict[str, Any] = {"architecture": "test_resnet", "pretrained": False, "image_size": 32, "epochs": 1}
    folders = {"data_dir": str(data), "output_dir": str(tmp_path / "run")}
    with bounded_memory():
        trained = train(TrainConfig(**folders, **small, recipe="demo", num_workers=0))
    printed = capsys.readouterr().out
    assert f"{len(corpus.bad)} of {len(corpus.files)} listed images cannot be used and are left out:" in printed
    for name, reason in corpus.bad.items():
        assert f"  {shown_name(name)}: {reason}" in printed.splitlines()
    part_of = {row["image"]: row["part"] for row in read_rows(tmp_path / "run" / "split.csv")}
    assert set(part_of) == set(corpus.alone) - set(corpus.bad)
    for name in victims:
        assert part_of[name] == "report" or f"{shown_name(name)} can no longer be read" in printed
    assert all(torch.isfinite(tensor).all() for tensor in trained.state_dict().values())
    reloaded, image = AimonkModel.from_pretrained(tmp_path / "run"), data / "images" / good[1]
    assert reloaded.predict(image).scores == pytest.approx(trained.predict(image).scores, abs=1e-6)


def test_the_app_reads_what_the_library_reads(corpus: Corpus) -> None:
    guards = pytest.importorskip("aimonk_hf.app.image_guards")
    for name, found in corpus.alone.items():
        path = corpus.images / name
        if isinstance(found, str):
            with pytest.raises(ImageError), guards.open_guarded(path) as image:
                guards.read_guarded(image)
        else:
            with guards.open_guarded(path) as image:
                np.testing.assert_array_equal(np.asarray(guards.read_guarded(image)), np.asarray(read_image(path)))


def test_bytes_are_judged_as_the_file_is(corpus: Corpus) -> None:
    for file in corpus.files:
        path, reason = corpus.images / file.name, None
        if path.is_file() and not path.is_symlink():
            try:
                read_image(path.read_bytes())
            except ImageError as error:
                reason = str(error)
            assert reason == corpus.bad.get(file.name)


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder that everybody may enter, and no root's rights, which make every file readable, while the test runs."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "closed").mkdir(mode=0)
        (Path(folder) / "secret.png").touch(mode=0)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        yield Path(folder)
        if is_root:
            os.seteuid(0)
        (Path(folder) / "closed").chmod(0o755)


def test_what_may_not_be_read_is_named(as_nobody: Path) -> None:
    paths = list(ImageFiles([as_nobody]))
    assert {path.name for path in paths} == {"closed", "secret.png"}
    for path in (*paths, as_nobody / "closed" / "hidden.png"):
        assert check_image(path) == "Permission denied"
    with pytest.raises(AimonkError, match="annot read .*Permission denied"):
        read_labels(as_nobody / "secret.png")


def test_names_longer_than_the_system_allows_are_missing_files(tmp_path: Path, picture: Image.Image) -> None:
    (tmp_path / "images").mkdir()
    picture.save(tmp_path / "images" / "a.png")
    (tmp_path / "labels.csv").write_text(f"image,x\na.png,1\n{'long' * 200}.png,0\n../images/a.png/b.png,0\n")
    dataset = AttributeDataset.from_folder(tmp_path)
    assert set(dataset.find_problems()) == {1, 2}
    assert audit(dataset).findings["files"]["n_usable"] == 1


def sources(rng: random.Random) -> list[bytes]:
    """Return small images in every format, with and without EXIF data, frames, palettes and transparency."""
    picture = Image.fromarray(np.random.default_rng(rng.randrange(1 << 30)).integers(0, 255, (24, 30, 3), np.uint8))
    exif, frames = Image.Exif(), {"save_all": True, "append_images": [picture.rotate(90)]}
    exif[0x0112] = 6
    kinds: list[tuple[str, dict[str, Any]]] = [("JPEG", {"exif": exif}), ("JPEG", {"progressive": True})]
    kinds += [("PNG", {"exif": exif}), ("PNG", frames), ("WEBP", {}), ("WEBP", frames), ("GIF", frames)]
    kinds += [("BMP", {}), ("AVIF", {}), ("TIFF", {})]
    kinds += [("TIFF", {"compression": name}) for name in (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")]
    files = [saved(picture, format, **options) for format, options in kinds]
    grey = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100)
    files += [saved(grey, "PNG"), saved(picture.convert("CMYK"), "JPEG")]
    return files + [saved(picture.quantize(9), "PNG", transparency=2)]


def damage(content: bytes, rng: random.Random) -> bytes:
    """Return the bytes damaged in one of many ways, most often in their beginning, where the structure lies."""
    reach = rng.choice((32, 128, 600, len(content)))
    changed = flipped(content[:reach], rng, rng.choice((1, 1, 2, 6))) + content[reach:]
    if rng.random() < 0.3:
        place = rng.randrange(len(changed))
        inserted = rng.choice((b"", b"\xff" * 4, b"\0" * 8, changed[place : place + 50]))
        changed = changed[:place] + inserted + changed[place + rng.randrange(9) :]
    return changed[: rng.randrange(len(changed))] if rng.random() < 0.15 else changed


def test_damaged_images_raise_nothing_but_a_reason(tmp_path: Path) -> None:
    rng, path, n_files, unreadable = random.Random(1), tmp_path / "damaged", 1200 * SOAK_FACTOR, 0
    files = sources(rng)
    with bounded_memory():
        for _ in range(n_files):
            path.write_bytes(damage(rng.choice(files), rng))
            reason = None
            try:
                read_image(path)
            except ImageError as error:
                reason = str(error)
                assert reason.isprintable()
            unreadable += reason is not None
            assert (check_image(path) is None) == (reason is None), path.read_bytes()
    assert 0.1 * n_files < unreadable < 0.95 * n_files
