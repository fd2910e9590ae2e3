"""The app without a server: decisions, parameter names, uploads, batching, and what the model page says."""

import base64
import csv
import io
import json
import sys
import threading
import tomllib
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import torch
from app_support import NOTES, bad_images, odd_images, write_images, write_zip
from PIL import Image

from aimonk_hf.app.batch_tab import Batch, Row, score_batch, table_value, write_table
from aimonk_hf.app.endpoints import slugs
from aimonk_hf.app.examples import write_plots
from aimonk_hf.app.model_tab import audit_lines, card_title, model_page
from aimonk_hf.app.page import build_missing_page, build_page
from aimonk_hf.app.predict_tab import panel_rows, summary
from aimonk_hf.app.scoring import Scorer, Served
from aimonk_hf.app.serve import MAX_FILE_SIZE, launch, open_page
from aimonk_hf.app.space import TORCH
from aimonk_hf.app.uploads import Budget, Limits, decoded, expand_uploads, open_upload, sentence
from aimonk_hf.cli.main import main
from aimonk_hf.errors import AimonkError, ImageError
from aimonk_hf.evaluation.report import build_report
from aimonk_hf.modeling.model import AimonkModel

STORED = {"collar": 0.4, "belt": 0.6}
ROOT = Path(__file__).parents[1]


@pytest.fixture
def limits(tmp_path: Path) -> Limits:
    (tmp_path / "uploads").mkdir()
    return Limits(1_000_000, tmp_path / "uploads")


@pytest.fixture
def served(tiny_model: AimonkModel, limits: Limits) -> Iterator[Served]:
    scorer = Scorer(tiny_model, max_batch=4)
    yield Served(scorer, "tiny", limits)
    scorer.close()


def test_rows_state_and_close_calls() -> None:
    rows = panel_rows(STORED, {"collar": 0.4, "belt": 0.7}, {"collar": 0.4, "belt": 0.66})
    shown = [(row["state"], row["close"], row["stored"]) for row in rows]
    assert shown == [("present", True, 0.4), ("absent", True, 0.6)]
    assert summary(rows) == "Present: collar. 2 close calls."
    assert [row["strength"] for row in rows] == [1.0, pytest.approx(0.6 * 0.66 / 0.7)], "of a heat map"
    far = panel_rows(STORED, STORED, {"collar": 0.1, "belt": 0.9})
    assert [(row["state"], row["close"]) for row in far] == [("absent", False), ("present", False)]
    before = panel_rows(STORED, STORED, None)
    assert [row["score"] for row in before] == [None, None]
    assert summary(before) == ""


def test_slugs_are_parameter_names() -> None:
    expected = {
        "Collar": "collar",
        "long sleeve": "long_sleeve",
        "image": "attr_image",
        "class": "attr_class",
        "2 buttons": "attr_2_buttons",
        "api_name": "attr_api_name",
        "COLLAR": "attr_collar",
        "+": "attr_8",
        "größe": "gr_e",
        "request": "attr_request",
        "collar!": "attr_collar_2",
    }
    assert slugs(expected) == {slug: name for name, slug in expected.items()}


def test_a_message_to_visitors_is_a_sentence() -> None:
    assert sentence(AimonkError("the file is empty")) == "The file is empty."
    assert sentence(AimonkError("save it as JPEG, or pip install pillow-heif")) == "Save it as JPEG."
    assert sentence(AimonkError("torch is missing: pip install torch, or choose another")) == "Torch is missing."


def test_thresholds_from_visitors_are_checked(served: Served) -> None:
    assert served.thresholds([0.1, None, None, None]) == served.stored | {"sleeves": 0.1}
    assert served.thresholds({"belt": 1}) == served.stored | {"belt": 1.0}
    for wrong in ([0.1], "0.5", None, *({"belt": value} for value in (1.5, float("nan"), "0.5", True)), {"hat": 0.5}):
        with pytest.raises(AimonkError):
            served.thresholds(wrong)


def file_of(path: Path) -> dict[str, str]:
    return {"path": str(path), "orig_name": path.name}


def test_only_uploads_within_limits_are_opened(limits: Limits, tmp_path: Path, picture: Image.Image) -> None:
    inside, outside = write_images(limits.folder, 1)[0], write_images(tmp_path / "elsewhere", 1)[0]
    assert open_upload({"path": str(inside), "orig_name": "a\nb.png"}, limits).name == r"a\x0ab.png"
    (limits.folder / "link.png").symlink_to(outside)
    (limits.folder / "large.png").write_bytes(bytes(limits.max_bytes + 1))
    for value, reason in (
        (file_of(outside), "not uploaded"),
        (file_of(limits.folder / "link.png"), "not uploaded"),
        (file_of(limits.folder / ".." / "elsewhere" / outside.name), "not uploaded"),
        (file_of(limits.folder), "not uploaded"),
        ({"path": "http://127.0.0.1/a.png"}, "not its address"),
        (file_of(limits.folder / "large.png"), "too large"),
        (file_of(limits.folder / "swept.png"), "no such file"),
        ({"url": "data:image/png;base64,@@@"}, "base64"),
        ({"url": "file:///etc/passwd"}, "No image"),
        (None, "No image"),
    ):
        with pytest.raises(ImageError, match=reason):
            open_upload(value, limits).read()
    picture.save(buffer := io.BytesIO(), "PNG")
    sent = open_upload({"url": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()}, limits)
    with decoded(sent, limits) as (image, _):
        assert image.size == picture.size


def hostile_archives(folder: Path) -> Iterator[tuple[list[Path], str]]:
    """Yield the archives of a batch, and the reason why it is refused."""
    small = write_zip(folder / "small.zip", {"a.png": b"1"})
    noise = np.random.default_rng(0).integers(0, 4, 900_000, dtype=np.uint8).tobytes()
    large = write_zip(folder / "large.zip", {f"{number}.png": noise for number in range(3)})
    (folder / "cut.zip").write_bytes(large.read_bytes()[:5000])
    with zipfile.ZipFile(folder / "talk.zip", "w") as archive:
        for number in range(14):
            entry = zipfile.ZipInfo(f"{number}.png")
            entry.comment = bytes(65_000)
            archive.writestr(entry, b"1")
    zeros = write_zip(folder / "zeros.zip", {f"{number}.png": bytes(990_000) for number in range(11)})
    yield [write_zip(folder / "crowd.zip", {f"{number}.png": b"" for number in range(1001)})], "at most 1000 files"
    yield [write_zip(folder / "empty.zip", {})], "No files were sent"
    yield [folder / "cut.zip"], "is damaged"
    yield [small] * 51, "at most 50 zip archives"
    yield [folder / "talk.zip"] * 5, "at most 4 MB of names and comments"
    yield [large] * 4, "at most 10 MB of unpacked archives"
    yield [zeros], "at most 10 MB of unpacked archives"
    yield [], "No files were sent"


def test_archives_are_read_without_unpacking_and_hostile_ones_refused(limits: Limits, tmp_path: Path) -> None:
    image = write_images(tmp_path / "p", 1)[0].read_bytes()
    junk = {"__MACOSX/x": b"1", "a/.DS_Store": b"1"}
    path = write_zip(limits.folder / "some.zip", {"../b.png": image, "notes.txt": b"words", **junk})
    before = list(tmp_path.rglob("*"))
    with ExitStack() as archives:
        uploads = expand_uploads([file_of(path)], limits, archives)
        assert [upload.name for upload in uploads] == ["some.zip/../b.png", "some.zip/notes.txt"]
        assert uploads[0].read() == image
        assert list(tmp_path.rglob("*")) == before
        for paths, reason in hostile_archives(limits.folder):
            with pytest.raises(AimonkError, match=reason):
                expand_uploads([file_of(path) for path in paths], limits, archives)


def test_a_large_or_damaged_zip_entry_fails_alone(limits: Limits, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 4, limits.max_bytes + 1, dtype=np.uint8)  # packs to a quarter
    entries = {"large.png": noise.tobytes(), "broken.png": bytes(range(256)) * 40}
    path = write_zip(limits.folder / "mixed.zip", entries)
    content = bytearray(path.read_bytes())
    content[content.rindex(b"broken.png", 0, content.index(b"PK\x01\x02")) + 14] ^= 0xFF
    path.write_bytes(bytes(content))
    with ExitStack() as archives:
        for upload, reason in zip(expand_uploads([file_of(path)], limits, archives), ("large", "damaged"), strict=True):
            with pytest.raises(ImageError, match=reason), decoded(upload, limits):
                pass


def test_an_archive_is_opened_once_whatever_it_holds(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = write_images(served.limits.folder, 1)[0].read_bytes()
    path = write_zip(served.limits.folder / "some.zip", {f"{number}.png": image for number in range(20)})
    opened: list[zipfile.ZipFile] = []

    class Counted(zipfile.ZipFile):
        def __init__(self, *rest: Any, **options: Any) -> None:
            super().__init__(*rest, **options)
            opened.append(self)

    monkeypatch.setattr(zipfile, "ZipFile", Counted)
    assert [row.error for row in score_batch(served, [file_of(path)])] == [""] * 20
    assert [archive.fp for archive in opened] == [None], "one, and it is closed"


def test_waiting_images_share_a_batch_and_equal_the_model(
    served: Served, tiny_model: AimonkModel, tmp_path: Path
) -> None:
    images = [Image.open(path).convert("RGB") for path in write_images(tmp_path / "p", 9)]
    scorer, all_have_asked = served.scorer, threading.Event()
    with ThreadPoolExecutor(9) as pool:
        scorer._thread.submit(all_have_asked.wait)  # nothing can be computed before
        asked = [pool.submit(scorer.score, tiny_model.transform.pixels(image)) for image in images]
        while len(scorer._waiting) < len(images):
            pass
        all_have_asked.set()
        for image, answer in zip(images, asked, strict=True):
            assert answer.result() == pytest.approx(tiny_model.predict(image).scores, abs=1e-6)
    assert scorer.n_images == 9 > scorer.n_batches


def test_what_is_held_is_never_more_than_the_budget() -> None:
    budget, lock, held, most = Budget(10), threading.Lock(), [0], [0]

    def change(amount: int) -> None:
        with lock:
            held[0] += amount
            most.append(held[0])

    def use(amount: int) -> None:
        with budget.hold(amount):
            change(min(amount, 10))
            change(-min(amount, 10))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, [1, 10, 4, 25, 7, 3, 6] * 30))
    assert max(most) <= 10


def test_a_failing_network_fails_its_callers_and_lives_on(
    served: Served, tiny_model: AimonkModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)

    def out_of_memory(pixels: torch.Tensor, **settings: object) -> torch.Tensor:
        raise RuntimeError("out of memory\nand more")

    with monkeypatch.context() as patched:
        patched.setattr(tiny_model, "logits_of_pixels", out_of_memory)
        with pytest.raises(AimonkError, match=r"failed on this batch \(out of memory\)"):
            served.scorer.score(pixels)
    assert set(served.scorer.score(pixels)) == set(tiny_model.config.attributes)


def test_a_batch_goes_through_with_bad_and_odd_files(served: Served, tmp_path: Path) -> None:
    good, odd = write_images(served.limits.folder, 2), odd_images(served.limits.folder / "odd")
    bad = bad_images(served.limits.folder / "bad")
    seen: list[tuple[int, int, str]] = []
    paths = [good[0], *bad.values(), *odd.values(), good[1]]
    rows = score_batch(served, [file_of(p) for p in paths], tmp_path, lambda *told: seen.append(told))
    assert [row.image for row in rows] == [path.name for path in paths]
    assert [row.image for row in rows if row.error] == list(bad)
    assert {row.image: row.notes for row in rows if row.notes} == NOTES
    assert seen == [(number, len(paths), path.name) for number, path in enumerate(paths)]
    assert all(row.thumbnail and row.thumbnail.is_file() for row in rows if row.scores)
    two = score_batch(served, [file_of(p) for p in paths], None, lambda done, *_: done == 2)
    assert [row.image for row in two] == [path.name for path in paths[:2]], "stopped"


def test_only_images_of_the_batch_are_written_and_opened(served: Served) -> None:
    functions = {function.name: function.fn for function in build_page(served, []).fns.values()}
    (path,) = write_images(served.limits.folder, 1)
    batch = Batch([file_of(path)], [Row(path.name, dict.fromkeys(served.stored, 0.5))])
    thresholds = {"thresholds": list(served.stored.values())}
    for numbers in (None, 0, [1], [-1], [0.0], ["0"], [[]], [0, 0]):
        with pytest.raises(gr.Error, match="not in the batch"):
            functions["write"](batch, gr.EventData(None, thresholds | {"numbers": numbers}))
        with pytest.raises(gr.Error, match="not in the batch"):
            functions["open_in_predict"](batch, gr.EventData(None, {"number": numbers or 0.0}))
    written = functions["write"](batch, gr.EventData(None, thresholds | {"numbers": [0]}))["csv"]
    assert len(Path(written).read_text().splitlines()) == 2
    assert functions["open_in_predict"](batch, gr.EventData(None, {"number": 0}))[0] == str(path)


def test_the_table_and_the_csv_are_unambiguous_whatever_the_attributes_are_called(tmp_path: Path) -> None:
    scores = {"image": 0.9, "red": 0.8, "dress": 0.7, "red dress": 0.1, "notes": 0.2, "a\rb": 0.9}
    rows = [Row("=1.png", scores, notes="A note."), Row("bad\r.png", error="no image")]
    table = table_value(rows, dict.fromkeys(scores, 0.5))
    with open(write_table(table, tmp_path), newline="") as file:
        header, first, second = csv.reader(file)
    assert header == ["image", "attributes", "score:image", "red", "dress", "red dress", "score:notes", "a\rb", "error"]
    assert first == ["=1.png", '["image", "red", "dress", "a\\rb"]', *(f"{score:.6f}" for score in scores.values()), ""]
    assert second == ["bad\r.png", *[""] * 7, "no image"]
    assert table["headers"] == [*header[:-1], "notes", "error"]
    assert table["data"] == [[*first[:-1], "A note.", ""], [*second[:-1], "", "no image"]]


def test_saving_is_refused_where_it_is_not_for(served: Served, tmp_path: Path) -> None:
    with pytest.raises(AimonkError, match="Saving is off"):
        served.save_thresholds(served.stored, served.token)
    with pytest.raises(AimonkError, match="local model folder"):
        open_page("user/repo", tmp_path, allow_save=True)
    with pytest.raises(AimonkError, match="--share"):
        open_page(str(tmp_path), tmp_path, allow_save=True, share=True)


def test_a_space_listens_for_its_proxy_and_never_saves(
    tiny_model: AimonkModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    monkeypatch.setenv("SPACE_ID", "user/space")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "files"))
    page = open_page(str(tmp_path / "model"), tmp_path, allow_save=True)
    panel = next(block for block in page.blocks.values() if getattr(block, "elem_id", None) == "panel")
    assert panel.value["token"] == ""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(type(page), "launch", lambda self, **options: (asked.update(options), "", ""))
    launch(page, "127.0.0.1", 1234)
    expected = {"server_name": "0.0.0.0", "server_port": 7860, "max_file_size": MAX_FILE_SIZE * 1_000_000}
    expected |= {"run_history": False, "enable_monitoring": False}
    assert {name: asked[name] for name in expected} == expected


def test_share_reaches_gradio_and_the_hint_to_install_the_server_only(
    tiny_model: AimonkModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("gradio.Blocks.launch", lambda self, **options: (asked.append(options), "", ""))
    model = ["--model", str(tmp_path / "nowhere"), "--port", "1234", "--max-file-size", "7"]
    assert main(["app", *model, "--share"]) == 0
    assert main(["app", *model]) == 0
    names = ("share", "server_name", "server_port", "max_file_size")
    common = ("127.0.0.1", 1234, 7_000_000)
    assert [tuple(options[name] for name in names) for options in asked] == [(True, *common), (False, *common)]
    assert "Heat maps" not in capsys.readouterr().err
    tiny_model.save_pretrained(tmp_path / "model")
    assert main(["app", "--model", str(tmp_path / "model"), "--port", "1234"]) == 0
    assert "Heat maps are off, because grad-cam is not installed: pip install" in capsys.readouterr().err


def test_the_model_page_shows_the_trivial_predictors(tiny_model: AimonkModel) -> None:
    labels = np.array([[1, 0], [0, 1], [1, np.nan], [0, 0]])
    scores = np.array([[0.9, 0.2], [0.1, 0.8], [0.7, 0.5], [0.3, 0.1]])
    metrics = build_report(labels, scores, scores >= 0.5, ["collar", "<b>"], {"collar": 0.5, "<b>": 0.5})
    metrics["verdict"] = "Better than <nothing>."
    text = model_page("shop", tiny_model.config, metrics)
    for told in (
        "Better than &lt;nothing&gt;.",
        '<th scope="row" data-key="&lt;b&gt;">&lt;b&gt;</th>',
        f"everything present {metrics['trivial']['all_positive']['macro_f1']:.3f}",
        f"<code>{tiny_model.config.architecture}</code>",
    ):
        assert told in text
    assert "has no metrics.json" in model_page("shop", tiny_model.config, None)
    assert "<details" not in text
    many = replace(tiny_model.config, attributes=[f"tag {n}" for n in range(80)], thresholds={})
    assert "<summary>80 attributes</summary>" in model_page("shop", many, None)
    training = {"recipe": "<i>", "backbone": "b", "epochs": 3, "n_train": 9, "n_validation": 1, "n_report": 2}
    metrics["training"] = training | {"data": {"labels": {"<b>": [1, 2, 3]}, "findings": ["2 <copies>"]}}
    text = model_page("shop", tiny_model.config, metrics)
    assert "recipe &lt;i&gt; for 3 epochs on 9 images; 1 validated and 2 reported it." in text
    assert "<li>2 &lt;copies&gt;</li>" in text
    text = model_page("shop", tiny_model.config, metrics, "", ["3 <pairs>"])
    assert "<li>3 &lt;pairs&gt;</li>" in text
    assert "copies" not in text
    (missing,) = build_missing_page("<script>", "<script>").blocks.values()
    assert "<script>" not in missing.value


def test_the_title_is_the_card_s_and_plots_are_pixels_of_regular_files(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\ntitle: x\n---\n\n# Dresses \\| by &lt;us>\n# Other")
    assert card_title(tmp_path) == "Dresses | by <us>"
    (tmp_path / "README.md").write_text("no heading")
    assert card_title(tmp_path) == card_title(None) == ""
    (tmp_path / "out").mkdir()
    Image.new("RGBA", (9, 9)).save(tmp_path / "roc.png")
    (tmp_path / "sample_predictions.png").write_bytes((tmp_path / "roc.png").read_bytes())
    (tmp_path / "loss_curve.png").symlink_to(tmp_path / "roc.png")
    (tmp_path / "reliability.png").write_text("<script>")
    assert [path.name for path in write_plots(tmp_path, tmp_path / "out")] == ["roc_0.png"]


def test_the_findings_of_an_audit_are_shown_without_paths_and_a_damaged_one_is_left_out(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", "--data-dir", str(few), "--output", str(tmp_path)]) == 0
    path = tmp_path / "audit.json"
    findings = json.loads(path.read_text())
    assert audit_lines(tmp_path)[0] == "24 of 24 listed images can be used"
    told = r"<b>\x1b[0m: every label is missing"
    findings["one_sided"] = {"<b>\x1b[0m": "every label is missing"} | {f"{n}": "x" * 1000 for n in range(200)}
    findings["suspects"] = {"source": "the scores in /home/ana/oof.csv", "n_suspect": 2, "n_fillable": 1}
    findings["suspects"]["n_missing"] = 4
    findings["backbones"] = {"rows": [1, 2], "best": "local-dir:/home/ana/resnet"}
    path.write_text(json.dumps(findings))
    lines = audit_lines(tmp_path)
    assert (len(lines), max(map(len, lines)), lines[1]) == (100, 500, told)
    findings["one_sided"] = {}
    path.write_text(json.dumps(findings))
    lines = audit_lines(tmp_path)
    assert lines[-2:] == [
        "best of 2 backbones by the probe: resnet",
        "2 suspect labels, 1 of 4 missing ones could be filled (by a model's scores)",
    ]
    for damaged in ("{", "[]", "{}", '{"files": 5}', json.dumps(findings | {"files": []}), '{"suspects": null}'):
        path.write_text(damaged)
        assert audit_lines(tmp_path) == []
        assert "audit.json is not shown" in capsys.readouterr().err
    path.unlink()
    path.symlink_to(tmp_path / "audit.md")
    assert audit_lines(tmp_path) == audit_lines(None) == []


def test_requirements_agree_with_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = {line for line in lines if line and not line.startswith("#")} - {TORCH} | {"torch>=2.9"}  # ZeroGPU
    assert listed == {*project["dependencies"], *project["optional-dependencies"]["app"]}
