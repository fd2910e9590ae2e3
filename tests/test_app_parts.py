"""The app without a server: decisions, parameter names, uploads, batching, and what the model page says."""

import csv
import io
import json
import stat
import subprocess
import sys
import threading
import tomllib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from app_support import NOTES, bad_pictures, odd_pictures, write_pictures, write_zip
from PIL import Image

from aimonk_hf.app.batch import Row, gallery_items, score_batch, table_header, table_rows, write_csv
from aimonk_hf.app.decisions import panel_rows, read_thresholds, slugs, summary
from aimonk_hf.app.model_page import missing_model_page, model_page
from aimonk_hf.app.scoring import Scorer
from aimonk_hf.app.serve import MAX_FILE_SIZE, launch, open_page
from aimonk_hf.app.served import Served
from aimonk_hf.app.uploads import Budget, Limits, Picture, Upload, expand_uploads, open_upload, read_entry, read_picture
from aimonk_hf.cli.main import main
from aimonk_hf.errors import AimonkError, ImageError
from aimonk_hf.evaluation.metrics import build_report
from aimonk_hf.modeling.model import AimonkModel

STORED = {"collar": 0.4, "belt": 0.6}
ROOT = Path(__file__).parents[1]


@pytest.fixture
def limits(tmp_path: Path) -> Limits:
    return Limits(1_000_000, tmp_path)


@pytest.fixture
def served(tiny_model: AimonkModel, limits: Limits) -> Any:
    scorer = Scorer(tiny_model, max_batch=4)
    yield Served(scorer, "tiny", limits)
    scorer.close()


def read_one(source: Path | bytes) -> Picture:
    with read_picture(source if isinstance(source, bytes) else str(source), Budget(10**6)) as picture:
        return picture


def bytes_of(upload: Upload, limits: Limits) -> Any:
    with read_entry(upload, limits) as source:
        return source


def test_rows_state_and_close_calls() -> None:
    rows = panel_rows(STORED, {"collar": 0.4, "belt": 0.7}, {"collar": 0.4, "belt": 0.66})
    assert [(row["name"], row["state"], row["close"]) for row in rows] == [
        ("collar", "present", True),
        ("belt", "absent", True),
    ]
    assert rows[1]["stored"] == 0.6
    assert summary(rows) == "Present: collar. 2 close calls."
    far = panel_rows(STORED, STORED, {"collar": 0.1, "belt": 0.9})
    assert [(row["state"], row["close"]) for row in far] == [("absent", False), ("present", False)]
    before = panel_rows(STORED, STORED, None)
    assert [row["score"] for row in before] == [None, None]
    assert summary(before) == ""


def test_thresholds_from_visitors_are_checked() -> None:
    assert read_thresholds(STORED, [0.1, None]) == {"collar": 0.1, "belt": 0.6}
    assert read_thresholds(STORED, {"belt": 1}) == {"collar": 0.4, "belt": 1.0}
    for wrong in ([0.1], "0.5", {"belt": 1.5}, {"belt": float("nan")}, {"belt": "0.5"}, {"belt": True}, {"hat": 0.5}):
        with pytest.raises(AimonkError):
            read_thresholds(STORED, wrong)


def test_slugs_are_parameter_names() -> None:
    assert slugs(
        ["Collar", "long sleeve", "image", "class", "2 buttons", "api_name", "COLLAR", "+", "größe", "request"]
    ) == [
        *(
            "collar",
            "long_sleeve",
            "attr_image",
            "attr_class",
            "attr_2_buttons",
            "attr_api_name",
            "attr_collar",
            "attr_8",
            "gr_e",
        ),
        "attr_request",
    ]
    many = slugs(["a", "A", "a!", "a?"])
    assert len(set(many)) == 4
    assert all(name.isidentifier() for name in many)


def test_bad_pictures_have_a_reason(tmp_path: Path) -> None:
    reasons = {}
    for name, path in bad_pictures(tmp_path / "bad").items():
        with pytest.raises(ImageError) as caught:
            read_one(path)
        reasons[name] = str(caught.value)
        assert "\n" not in reasons[name]
    assert "empty" in reasons["empty.png"]
    assert "too many pixels" in reasons["bomb.png"]
    assert "HEIC" in reasons["phone.heic"]
    assert "damaged" in reasons["cut.jpg"]


def test_odd_pictures_are_read_and_explained(tmp_path: Path) -> None:
    notes = {name: read_one(path).notes for name, path in odd_pictures(tmp_path / "odd").items()}
    assert notes == {name: [NOTES[name]] if name in NOTES else [] for name in notes}
    assert set(NOTES) < set(notes)
    holed = Image.new("P", (8, 8))
    holed.save(tmp_path / "holed.png", transparency=0)
    assert read_one(tmp_path / "holed.png").notes == [NOTES["clear.png"]]


def test_only_uploads_within_limits_are_opened(
    limits: Limits, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    inside, outside = write_pictures(tmp_path, 1)[0], write_pictures(tmp_path_factory.mktemp("elsewhere"), 1)[0]
    assert open_upload({"path": str(inside), "orig_name": "a\nb.png"}, limits).name == "a?b.png"
    (tmp_path / "link.png").symlink_to(outside)
    (tmp_path / "large.png").write_bytes(bytes(limits.max_bytes + 1))
    up_and_out = f"{tmp_path}/../{outside.parent.name}/{outside.name}"
    for value, reason in (
        ({"path": str(outside)}, "not uploaded"),
        ({"path": str(tmp_path / "link.png")}, "not uploaded"),
        ({"path": up_and_out}, "not uploaded"),
        ({"path": str(tmp_path / "large.png")}, "too large"),
        ({"path": str(tmp_path)}, "no such file"),
        ({"path": str(tmp_path / "swept.png")}, "no such file"),
        ({"url": "data:image/png;base64,@@@"}, "base64"),
        ({"url": "file:///etc/passwd"}, "no picture"),
        ("/etc/passwd", "no picture"),
        (None, "no picture"),
    ):
        with pytest.raises(ImageError, match=reason):
            open_upload(value, limits)


def entries_of(path: Path, limits: Limits) -> list[Any]:
    return expand_uploads([{"path": str(path)}], limits, ExitStack())


def test_zip_entries_are_read_without_unpacking(limits: Limits, tmp_path: Path) -> None:
    picture = write_pictures(tmp_path / "p", 1)[0].read_bytes()
    path = write_zip(
        tmp_path / "some.zip", {"a/b.png": picture, "__MACOSX/x": b"1", "a/.DS_Store": b"1", "notes.txt": b"words"}
    )
    uploads = entries_of(path, limits)
    assert [upload.name for upload in uploads] == ["some.zip/a/b.png", "some.zip/notes.txt"]
    assert bytes_of(uploads[0], limits) == picture
    assert sorted(file.name for file in tmp_path.iterdir()) == ["p", "some.zip"]


@pytest.mark.parametrize("name", ["../up.png", "a/../../up.png", "/etc/up.png", "C:\\up.png", "..\\up.png"])
def test_zip_paths_that_lead_outside_are_refused(name: str, limits: Limits, tmp_path: Path) -> None:
    with pytest.raises(AimonkError, match="points outside"):
        entries_of(write_zip(tmp_path / "trick.zip", {"fine.png": b"1", name: b"1"}), limits)


def test_zip_links_bombs_crowds_and_damage_are_refused(limits: Limits, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    write_zip(tmp_path / "bomb.zip", {"bomb.png": bytes(5_000_000)})
    write_zip(tmp_path / "crowd.zip", {f"{number}.png": b"" for number in range(10_000)})
    write_zip(tmp_path / "empty.zip", {})
    whole = write_zip(tmp_path / "whole.zip", {"a.png": bytes(range(256)) * 20}).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    for name, reason in (
        ("link", "points outside"),
        ("bomb", "200 times"),
        ("crowd", "at most 1000"),
        ("empty", "empty"),
        ("cut", "damaged"),
    ):
        with pytest.raises(AimonkError, match=reason):
            entries_of(tmp_path / f"{name}.zip", limits)


def test_an_archive_is_opened_once_whatever_it_holds(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = write_pictures(tmp_path / "p", 1)[0].read_bytes()
    path = write_zip(tmp_path / "some.zip", {f"{number}.png": picture for number in range(20)})
    opened, really = [], zipfile.ZipFile.__init__
    monkeypatch.setattr(
        zipfile.ZipFile,
        "__init__",
        lambda self, *rest, **options: opened.append(self) or really(self, *rest, **options),
    )
    rows = score_batch(served, [{"path": str(path)}])
    assert [row.error for row in rows] == [""] * 20
    assert [archive.fp for archive in opened] == [None], "one, and it is closed"


def test_archives_of_long_comments_and_many_times_the_same_are_refused(limits: Limits, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "talk.zip", "w") as archive:
        for number in range(14):
            entry = zipfile.ZipInfo(f"{number}.png")
            entry.comment = bytes(65_000)
            archive.writestr(entry, b"1")
    talk = {"path": str(tmp_path / "talk.zip")}
    small = {"path": str(write_zip(tmp_path / "small.zip", {"a.png": b"1"}))}
    with ExitStack() as archives:
        with pytest.raises(AimonkError, match="at most 50 zip archives"):
            expand_uploads([small] * 51, limits, archives)
        assert len(expand_uploads([talk] * 4, limits, archives)) == 56
        with pytest.raises(
            AimonkError, match=r"talk\.zip is refused: names and comments of the archives sent take more than 4 MB"
        ):
            expand_uploads([talk] * 5, limits, archives)
        noise = np.random.default_rng(0).integers(0, 4, 900_000, dtype=np.uint8).tobytes()
        large = {"path": str(write_zip(tmp_path / "large.zip", {f"{number}.png": noise for number in range(3)}))}
        assert len(expand_uploads([large] * 3, limits, archives)) == 9
        with pytest.raises(AimonkError, match=r"large\.zip unpacks, with the archives before it, to more than 10 MB"):
            expand_uploads([large] * 4, limits, archives)


def test_a_large_or_damaged_zip_entry_fails_alone(limits: Limits, tmp_path: Path) -> None:
    noise = (
        np.random.default_rng(0).integers(0, 4, limits.max_bytes + 1, dtype=np.uint8).tobytes()
    )  # packs to a quarter
    path = write_zip(tmp_path / "mixed.zip", {"large.png": noise, "broken.png": bytes(range(256)) * 40})
    content = bytearray(path.read_bytes())
    content[content.rindex(b"broken.png", 0, content.index(b"PK\x01\x02")) + 14] ^= 0xFF
    path.write_bytes(bytes(content))
    large, broken = entries_of(path, limits)
    with pytest.raises(ImageError, match="too large"):
        bytes_of(large, limits)
    with pytest.raises(ImageError, match="damaged"):
        bytes_of(broken, limits)


def test_waiting_pictures_share_a_batch_and_equal_the_model(tiny_model: AimonkModel, tmp_path: Path) -> None:
    images = [Image.open(path).convert("RGB") for path in write_pictures(tmp_path / "p", 9)]
    scorer = Scorer(tiny_model, max_batch=4)
    results: dict[int, dict[str, float]] = {}
    with scorer.network_lock:  # nothing can be computed before all have asked
        threads = [
            threading.Thread(
                target=lambda n=n: results.update({n: scorer.score(tiny_model.transform.pixels(images[n]))})
            )
            for n in range(len(images))
        ]
        for thread in threads:
            thread.start()
        while len(scorer._waiting) < len(images) - scorer.max_batch:
            pass
    for thread in threads:
        thread.join()
    scorer.close()
    assert scorer.n_images == 9
    assert scorer.n_batches < 9
    for number, image in enumerate(images):
        assert results[number] == pytest.approx(tiny_model.predict(image).scores, abs=1e-6)


def test_what_is_held_is_never_more_than_the_budget() -> None:
    budget, held, most = Budget(10), [0], [0]

    def use(amount: int) -> None:
        with budget.hold(amount):
            held.append(min(amount, 10))
            most.append(sum(held))
            held.remove(min(amount, 10))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, [1, 10, 4, 25, 7, 3, 6] * 30))
    assert max(most) <= 10


def test_a_failing_network_fails_its_callers_and_lives_on(
    tiny_model: AimonkModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Scorer(tiny_model)
    pixels = torch.zeros(3, 64, 64, dtype=torch.uint8)

    def out_of_memory(pixels: torch.Tensor, **settings: object) -> torch.Tensor:
        raise RuntimeError("out of memory\nand more")

    with monkeypatch.context() as patched:
        patched.setattr(tiny_model, "logits_of_pixels", out_of_memory)
        with pytest.raises(AimonkError, match=r"failed on this batch \(out of memory\)"):
            scorer.score(pixels)
    assert set(scorer.score(pixels)) == set(tiny_model.config.attributes)
    scorer.close()


def test_a_batch_goes_through_with_bad_files(served: Served, tmp_path: Path) -> None:
    good = write_pictures(tmp_path / "good", 2)
    bad = bad_pictures(tmp_path / "bad")
    files = [
        {"path": str(path), "orig_name": path.name} for path in (good[0], bad["text.png"], bad["bomb.png"], good[1])
    ]
    thumbnails = tmp_path / "thumbs"
    thumbnails.mkdir()
    seen: list[tuple[int, int]] = []
    rows = score_batch(served, files, thumbnails, lambda done, total: seen.append((done, total)))
    assert [row.image for row in rows] == ["picture_0.png", "text.png", "bomb.png", "picture_1.png"]
    assert [bool(row.error) for row in rows] == [False, True, True, False]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]

    scores = rows[0].scores
    assert scores is not None
    thresholds = dict.fromkeys(scores, 1.0) | {"belt": 0.0}
    lines = Path(write_csv(rows, thresholds, tmp_path)).read_text().splitlines()
    assert lines[0] == "image,attributes,sleeves,stripes,collar,belt,error"
    assert lines[1] == 'picture_0.png,"[""belt""]",' + ",".join(f"{score:.6f}" for score in scores.values()) + ","
    assert lines[2].startswith("text.png,,,,,,")
    assert len(gallery_items(rows, thresholds, None)) == 2
    assert len(gallery_items(rows, thresholds, "belt")) == 2
    assert gallery_items(rows, thresholds, "collar") == []
    assert table_rows(rows, thresholds)[2][-2:] == ["", rows[2].error]
    with pytest.raises(AimonkError, match="no files"):
        score_batch(served, None)


def test_notes_stand_in_the_table_and_the_csv_keeps_its_form(served: Served, tmp_path: Path) -> None:
    odd = odd_pictures(tmp_path / "odd")
    rows = score_batch(served, [{"path": str(path), "orig_name": name} for name, path in odd.items()])
    table = table_rows(rows, served.stored)
    assert {row[0]: row[-2] for row in table} == {name: NOTES.get(name, "") for name in odd}
    lines = list(csv.reader(Path(write_csv(rows, served.stored, tmp_path)).read_text().splitlines()))
    assert lines == [["image", "attributes", *served.stored, "error"], *([*row[:-2], row[-1]] for row in table)]


def test_the_table_and_the_csv_are_unambiguous_whatever_the_attributes_are_called(tmp_path: Path) -> None:
    scores = {"image": 0.9, "red": 0.8, "dress": 0.7, "red dress": 0.1, "notes": 0.2, "a\rb": 0.9}
    rows = [Row("=1.png", scores), Row("bad\r.png", error="no image")]
    thresholds = dict.fromkeys(scores, 0.5)
    with open(write_csv(rows, thresholds, tmp_path), newline="") as file:
        header, first, second = csv.reader(file)
    assert header == ["image", "attributes", "score:image", "red", "dress", "red dress", "score:notes", "a\rb", "error"]
    assert first == ["=1.png", '["image", "red", "dress", "a\\rb"]', *(f"{score:.6f}" for score in scores.values()), ""]
    assert second == ["bad\r.png", *[""] * 7, "no image"]
    assert table_header(list(scores)) == [*header[:-1], "notes", "error"]
    assert [row[:-2] for row in table_rows(rows, thresholds)] == [first[:-1], second[:-1]]


def test_saving_thresholds_keeps_the_rest_of_the_config(
    tiny_model: AimonkModel, limits: Limits, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    tiny_model.save_pretrained(folder)
    before = json.loads((folder / "config.json").read_text())
    scorer = Scorer(AimonkModel.from_pretrained(folder))
    with pytest.raises(AimonkError, match="saving is off"):
        Served(scorer, "model", limits).save_thresholds(dict.fromkeys(before["label_names"], 0.2), "")
    new = dict.fromkeys(before["label_names"], 0.25)
    served = Served(scorer, "model", limits, folder)
    served.save_thresholds(new, served.token)
    assert json.loads((folder / "config.json").read_text()) == before | {"thresholds": new}
    assert AimonkModel.from_pretrained(folder).config.thresholds == new
    scorer.close()


def test_saving_is_refused_where_it_is_not_for(tmp_path: Path) -> None:
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
    assert (asked["server_name"], asked["server_port"]) == ("0.0.0.0", 7860)
    assert asked["max_file_size"] == MAX_FILE_SIZE * 1_000_000
    assert asked["run_history"] is False
    assert asked["enable_monitoring"] is False


def test_share_reaches_gradio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("gradio.Blocks.launch", lambda self, **options: (asked.append(options), "", ""))
    model = ["--model", str(tmp_path / "nowhere"), "--port", "1234", "--max-file-size", "7"]
    assert main(["app", *model, "--share"]) == 0
    assert main(["app", *model]) == 0
    assert [options["share"] for options in asked] == [True, False]
    assert [(options["server_name"], options["server_port"], options["max_file_size"]) for options in asked] == [
        ("127.0.0.1", 1234, 7_000_000)
    ] * 2


def test_the_model_page_shows_the_trivial_predictors(tiny_model: AimonkModel) -> None:
    labels = torch.tensor([[1, 0], [0, 1], [1, float("nan")], [0, 0]]).numpy()
    scores = torch.tensor([[0.9, 0.2], [0.1, 0.8], [0.7, 0.5], [0.3, 0.1]]).numpy()
    metrics = build_report(labels, scores, scores >= 0.5, ["collar", "<b>"], {"collar": 0.5, "<b>": 0.5})
    metrics["verdict"] = "Better than <nothing>."
    text = model_page("shop", tiny_model.config, metrics)
    assert "Better than &lt;nothing&gt;." in text
    assert "<td>&lt;b&gt;</td>" in text
    assert "everything present" in text
    assert f"{metrics['trivial']['all_positive']['macro_f1']:.3f}" in text
    assert f"<code>{tiny_model.config.architecture}</code>" in text
    assert "Nobody has measured it" in model_page("shop", tiny_model.config, None)
    assert "<details" not in text
    many = replace(tiny_model.config, attributes=[f"tag {n}" for n in range(80)], thresholds={})
    assert "<summary>80 attributes</summary>" in model_page("shop", many, None)


def test_without_a_model_the_page_names_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AIMONK_MODEL", str(tmp_path / "nowhere"))
    page = open_page(None, tmp_path)
    shown = [block for block in page.blocks.values() if getattr(block, "elem_id", None) == "missing"]
    assert "aimonk-hf train" in shown[0].value
    assert "nowhere" in shown[0].value
    assert capsys.readouterr().err.startswith("no model: ")
    assert "<script>" not in missing_model_page("<script>", "<script>")


def test_requirements_agree_with_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = {line for line in lines if line and not line.startswith("#")}
    assert listed == {*project["dependencies"], *project["optional-dependencies"]["app"]}


def test_without_gradio_the_import_says_what_to_install() -> None:
    code = "import sys; sys.modules['gradio'] = None\nfrom aimonk_hf.cli.main import main; sys.exit(main(['app']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "aimonk-hf: the app needs gradio: pip install 'aimonk_hf[app]'\n"


def test_data_urls_are_read(limits: Limits, picture: Image.Image) -> None:
    import base64

    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    upload = open_upload({"url": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()}, limits)
    assert read_one(bytes_of(upload, limits)).image.size == picture.size
