"""Visitors mark decisions as right or wrong: what is kept, by whose consent, and how it is removed."""

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from app_support import HTTP, MARK, RunningApp, model_folder, number_of, running_app, upload, write_images
from browser_support import DESKTOP, FLAWS, SCREENS, browser, clear, fits_the_screen, row, shown
from browser_support import upload as choose
from PIL import Image
from test_unwritable import without_rights

from aimonk_hf.app.folder import app_folder
from aimonk_hf.app.serve import open_page
from aimonk_hf.cli.main import main
from aimonk_hf.data import collected
from aimonk_hf.data.collected import Collection, forget_image
from aimonk_hf.data.labels import read_labels
from aimonk_hf.data.reviews import Review, append_reviews, read_reviews
from aimonk_hf.errors import AimonkError, ImageError

__all__ = ["browser", "model_folder"]  # fixtures
NAN = np.nan


@pytest.fixture(scope="module")
def app(model_folder: Path) -> Iterator[RunningApp]:
    with running_app(model_folder, collect=model_folder.parent / "data", max_file_size=1) as running:
        yield running


@pytest.fixture
def data(app: RunningApp) -> Path:
    """The collection of the app, without an image."""
    folder = app.served.collection.folder
    for name in [path.name for path in (folder / "images").iterdir()]:
        forget_image(folder, name)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def photograph(path: Path, seed: int = 0, place: bool = True) -> Path:
    """Write a JPEG whose EXIF data names its place, and which holds a comment and a colour profile."""
    pixels = np.random.default_rng(seed).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    exif = Image.Exif()
    if place:
        exif.get_ifd(0x8825)[2] = (48.0, 51.0, 29.6)
        exif[0x010F] = "SECRET camera"
    told: dict[str, Any] = {"exif": exif, "comment": b"SECRET", "icc_profile": b"SECRET"} if place else {}
    Image.fromarray(pixels).save(path, "JPEG", quality=90, **told)
    return path


def mark(app: RunningApp, image: Any, label: Any, attribute: Any = "belt", **changes: Any) -> dict[str, Any]:
    """Send a mark as the page does; return the answer."""
    key = Path(image["path"]).parent.name if isinstance(image, dict) and "path" in image else ""
    event = {"attribute": attribute, "label": label, "key": key, "agreed": True} | changes
    session = secrets.token_hex(6)
    body = {"data": [image], "fn_index": number_of(app, "keep"), "session_hash": session, "event_data": event}
    headers = {"Content-Type": "application/json", "Origin": app.url}
    joined = HTTP.post(f"{app.url}/gradio_api/queue/join", content=json.dumps(body), headers=headers)
    assert joined.status_code == 200, joined.text
    events = HTTP.get(f"{app.url}/gradio_api/queue/data?session_hash={session}").text
    (done,) = [line for line in events.splitlines() if '"process_completed"' in line]
    output = json.loads(done.removeprefix("data: "))["output"]
    return output["data"][0] if "data" in output else output


def test_a_mark_keeps_pixels_and_one_label_and_nothing_else(app: RunningApp, data: Path, tmp_path: Path) -> None:
    path = photograph(tmp_path / "my holiday.jpg")
    sent = upload(app.url, path)
    told = mark(app, sent, "1")
    (kept,) = (data / "images").iterdir()
    assert told["hash"] == kept.name[:12]
    with Image.open(kept) as image, Image.open(path) as original:
        assert (image.format, image.size, dict(image.getexif())) == ("JPEG", (120, 90), {})
        assert not {"comment", "icc_profile", "exif"} & set(image.info)
        difference = np.abs(np.asarray(image, float) - np.asarray(original.convert("RGB"), float))
        assert difference.mean() < 4
    for name, written in content(data).items():
        assert b"SECRET" not in written + name.encode()
        assert b"holiday" not in written + name.encode()
    labels = read_labels(data)
    assert labels.attributes == list(app.served.stored)
    assert np.array_equal(labels.values, [[NAN, NAN, NAN, 1]], equal_nan=True)
    (review,) = read_reviews(data / "reviews.csv")
    assert review[:6] == (kept.name, "belt", "NA", "1", "collect", "visitor")

    # the same pixels in another file are the same image, and a later answer wins
    copy = upload(app.url, photograph(tmp_path / "copy.jpg", place=False))
    assert copy["path"] != sent["path"]
    for attribute, label in (("belt", "0"), ("belt", "0"), ("collar", "1")):
        assert mark(app, copy, label, attribute)["hash"] == told["hash"]
    assert len(read_reviews(data / "reviews.csv")) == 3
    assert np.array_equal(read_labels(data).values, [[NAN, NAN, 1, 0]], equal_nan=True)

    mark(app, sent, "NA")
    assert np.array_equal(read_labels(data).values, [[NAN, NAN, 1, NAN]], equal_nan=True)
    mark(app, sent, "NA", "collar")
    assert (data / "labels.csv").read_text() == "image,sleeves,stripes,collar,belt\n", "the image has gone too"
    assert not list((data / "images").iterdir())
    assert read_reviews(data / "reviews.csv") == []


def test_without_consent_and_for_whatever_is_no_upload_nothing_is_written(
    app: RunningApp, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good, other = (upload(app.url, photograph(tmp_path / f"{seed}.jpg", seed)) for seed in (1, 2))
    outside = write_images(tmp_path / "outside", 1)[0]
    listed = next(block.samples for block in app.page.blocks.values() if isinstance(block, gr.Dataset))
    example = Path(listed[0][0]["path"])
    before = content(data)
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        *((good, {"agreed": agreed}, "agree to the sentence") for agreed in (False, None, 1, "true", [True])),
        *((good, {"attribute": name}, "another model") for name in ("hat", "", "image", ["belt"], "=1+1", "../belt")),
        *((good, {"label": label}, "another model") for label in ("2", None, "yes", ["1"], "1\n")),
        *((good, {"key": key}, "the image has changed") for key in ("", None, Path(other["path"]).parent.name, [1])),
        ({"path": str(outside), **MARK}, {}, "not uploaded to this app"),
        ({"path": f"{good['path']}/../../../x.png", **MARK}, {}, "not uploaded to this app"),
        ({"url": "data:image/png;base64,AAAA", **MARK}, {}, "the image has changed"),
        (None, {}, "the image has changed"),
    ]
    for image, changes, reason in wrong:
        told = mark(app, image, **({"label": "1"} | changes))
        assert reason in told["error"], (image, changes)
        assert str(data) not in str(told)
    for image in (upload(app.url, example), {**MARK, "path": str(example)}):
        assert "examples of this page are not kept" in mark(app, image, "1")["error"]
    assert content(data) == before
    assert not list((data / "images").iterdir())
    for headers, status in (
        ({"Origin": "https://evil.example"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Host": "evil.example"}, 400),
    ):
        place, sent = f"{app.url}/gradio_api/run/predict", json.dumps({"data": [good]})
        own = {"Content-Type": "application/json", "Origin": app.url}
        assert HTTP.post(place, content=sent, headers=own | headers).status_code == status
    assert content(data) == before
    assert "Traceback" not in capfd.readouterr().err


def test_a_visitor_reads_no_path_where_the_folder_cannot_be_written(
    app: RunningApp, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = upload(app.url, photograph(tmp_path / "a.jpg"))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    for module, name in ((Image.Image, "save"), (collected, "write_text"), (collected, "append_reviews")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            told = mark(app, sent, "1")
        assert told["error"] == "Nothing was kept: the log of this app says why."
        assert "No space left on device" in capsys.readouterr().err
    assert mark(app, sent, "1")["hash"], "what was left half done is completed"
    assert np.array_equal(read_labels(data).values, [[NAN, NAN, NAN, 1]], equal_nan=True)
    assert not list(data.rglob("*.tmp*"))
    for limit in ("MAX_IMAGES", "MAX_BYTES", "MAX_ANSWERS"):
        with monkeypatch.context() as patch:
            patch.setattr(collected, limit, 0)
            told = mark(app, upload(app.url, photograph(tmp_path / "b.jpg", 7)), "1")
        assert told["error"] == "Nothing more is kept, because the collection of this app is full."
    assert len(read_labels(data)) == 1
    with pytest.raises(ImageError, match="a side of more than 65,500 pixels"):
        app.served.collection.keep(Image.new("RGB", (65_501, 400)), "belt", "1")


_VISITOR = """
import sys
from pathlib import Path
from PIL import Image
from aimonk_hf.data.collected import Collection
collection = Collection(Path(sys.argv[1]), ["collar", "belt"])
for number in range(12):
    collection.keep(Image.new("RGB", (40, 40), (number, 0, 0)), "collar", "1")
    collection.keep(Image.new("RGB", (40, 40), (number, int(sys.argv[2]), 1)), "belt", "0")
"""


def test_two_apps_and_several_visitors_lose_nothing_and_repeat_no_row(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _VISITOR, str(tmp_path / "new" / "data")]
    apps = [subprocess.Popen([*command, str(number)]) for number in (1, 2)]
    assert [app.wait() for app in apps] == [0, 0]
    collection = Collection(tmp_path / "new" / "data", ["collar", "belt"])
    images = [Image.new("RGB", (40, 40), (number % 6, 9, 9)) for number in range(12)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda image: collection.keep(image, "belt", "1"), images))
    labels = read_labels(collection.folder)
    assert len(labels) == 12 + 24 + 6
    assert (np.nansum(labels.values == 1), np.nansum(labels.values == 0)) == (12 + 6, 24)
    assert len(read_reviews(collection.reviews)) == 12 + 24 + 6
    assert {path.name for path in collection.images.iterdir()} == set(labels.images)


def test_a_folder_that_does_not_fit_is_refused_in_a_sentence(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    command = ["app", "--model", str(model_folder), "--collect"]
    for name, text in (("other", "image,hat\na.jpg,1\n"), ("odd", "image;sleeves;stripes;collar;belt\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "labels.csv").write_text(text)
        assert main([*command, str(tmp_path / name)]) == 2
        told = "labels.csv are not those of this model (image, sleeves, stripes, collar, belt): name a new folder"
        assert told in capsys.readouterr().err
        assert (tmp_path / name / "labels.csv").read_text() == text
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "labels.txt").write_text("a.jpg 1\n")
    assert main([*command, str(tmp_path / "text")]) == 2
    assert "has a labels.txt and no labels.csv: name a new folder" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main([*command, str(tmp_path / "file")]) == 2
    assert "Cannot create the folder" in capsys.readouterr().err
    Collection(tmp_path / "closed", ["belt"])
    (tmp_path / "closed").chmod(0o555)
    with without_rights(), pytest.raises(AimonkError, match="Cannot write into .*closed: Permission denied"):
        Collection(tmp_path / "closed", ["belt"])
    (tmp_path / "closed").chmod(0o755)
    monkeypatch.setenv("SPACE_ID", "user/space")
    with app_folder() as folder, pytest.raises(AimonkError, match="--collect needs a disk that stays"):
        open_page(str(model_folder), folder, collect=str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_training_folder_with_the_model_s_attributes_is_added_to(sample: Path, tmp_path: Path) -> None:
    (tmp_path / "images").symlink_to(sample / "images")
    rows = (sample / "labels.csv").read_text().rstrip("\n")  # as an editor may leave it
    (tmp_path / "labels.csv").write_text(rows)
    attributes = read_labels(tmp_path).attributes
    digest = Collection(tmp_path, list(reversed(attributes))).keep(Image.new("RGB", (50, 50), "teal"), "belt", "1")
    labels = read_labels(tmp_path)
    assert (tmp_path / "labels.csv").read_text() == f"{rows}\n{digest}.jpg,NA,NA,NA,NA\n"
    assert len(labels) == len(read_labels(sample)) + 1
    assert labels.values[-1, labels.attributes.index("belt")] == 1
    assert forget_image(tmp_path, digest[:8]) == f"images/{digest}.jpg, 1 row of labels.csv, 1 answer(s) of reviews.csv"
    assert (tmp_path / "labels.csv").read_text() == f"{rows}\n"


def test_an_image_is_forgotten_by_name_hash_or_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    collection = Collection(data, ["collar", "belt"])
    originals = [photograph(tmp_path / f"{seed}.jpg", seed) for seed in range(5)]
    digests = []
    for path in originals:
        with Image.open(path) as image:
            digests.append(collection.keep(image.convert("RGB"), "belt", "1"))
            collection.keep(image.convert("RGB"), "collar", "0")
    append_reviews(collection.reviews, [Review(f"{digests[0]}.jpg", "belt", "1", "0", "suspect", "ana", "now")])
    stored = tmp_path / "elsewhere.jpg"
    stored.write_bytes((collection.images / f"{digests[3]}.jpg").read_bytes())
    command = ["label", "--data-dir", str(data), "--forget"]
    for wanted, digest, n_answers in (
        (f"{digests[0]}.jpg", digests[0], 3),
        (digests[1], digests[1], 2),
        (str(originals[2]), digests[2], 2),
        (str(stored), digests[3], 2),
    ):
        assert main([*command, wanted]) == 0
        told = f"removed:  images/{digest}.jpg, 1 row of labels.csv, {n_answers} answer(s) of reviews.csv\n"
        assert capsys.readouterr().out == told
        assert not [name for name, written in content(data).items() if digest in name or digest.encode() in written]
    assert read_labels(data).images == [f"{digests[4]}.jpg"]
    assert np.array_equal(read_labels(data).values, [[0, 1]])
    before = content(data)
    (tmp_path / "note.txt").write_text("no image")
    for wanted, reason in (
        (digests[0], "there is no such image"),
        (digests[4][:-1] + "g", f"did you mean {digests[4]}.jpg?"),
        (digests[4][:7], "there is no such image"),
        (str(originals[0]), "there is no such image"),
        (str(tmp_path / "note.txt"), "note.txt: not an image file"),
        ("../labels.csv", "there is no such image"),
        ("", "there is no such image"),
    ):
        assert main([*command, wanted]) == 2
        assert reason in capsys.readouterr().err
    assert main(["label", "--forget", "a.jpg"]) == 2
    assert "--forget removes an image of --data-dir DATA" in capsys.readouterr().err
    assert main(["label", "--data-dir", str(tmp_path), "--forget", "a.jpg"]) == 2
    assert "has no labels.csv" in capsys.readouterr().err
    assert content(data) == before
    # a removal that was cut off is finished by the next one
    (collection.images / f"{digests[4]}.jpg").unlink()
    assert main([*command, digests[4]]) == 0
    assert capsys.readouterr().out == "removed:  1 row of labels.csv, 2 answer(s) of reviews.csv\n"


def test_other_rows_stay_as_they_are_byte_for_byte(tmp_path: Path) -> None:
    text = 'sep=,\r\nimage,collar\r\n# a note\r\n"a,\n1.jpg",1\r\nb.jpg,0\r\n"c\nd.jpg",NA'
    (tmp_path / "labels.csv").write_text(text, newline="")
    assert forget_image(tmp_path, "b.jpg") == "1 row of labels.csv, 0 answer(s) of reviews.csv"
    assert (tmp_path / "labels.csv").read_bytes() == text.replace("b.jpg,0\r\n", "").encode()
    forget_image(tmp_path, "c\nd.jpg")
    assert (tmp_path / "labels.csv").read_bytes().endswith(b'"a,\n1.jpg",1\r\n')


def test_a_labelling_session_goes_on_after_an_image_was_removed(tmp_path: Path) -> None:
    from aimonk_hf.audit.label_session import LabelSession
    from aimonk_hf.data.dataset import AttributeDataset

    collection = Collection(tmp_path, ["belt"])
    first, second = (collection.keep(Image.new("RGB", (40, 40), colour), "belt", "1") for colour in ("teal", "red"))
    session = LabelSession(AttributeDataset.from_folder(tmp_path))
    forget_image(tmp_path, first)
    append_reviews(collection.reviews, [Review(f"{second}.jpg", "belt", "1", "0", "suspect", "ana", "now")])
    session.page("belt", "random", 12)
    assert session.labels[session.row_of[f"{second}.jpg"], 0] == 0
    assert len(session.reviews) == 2


@pytest.mark.parametrize(
    "screen",
    [*SCREENS, pytest.param({"viewport": {"width": 768, "height": 1024}}, id="tablet-light", marks=pytest.mark.soak)],
)
def test_a_visitor_agrees_marks_and_takes_back(
    screen: dict[str, Any], browser: Any, app: RunningApp, data: Path, tmp_path: Path
) -> None:
    first, second = write_images(tmp_path / "p", 2, (300, 400))
    before = content(data)
    with shown(browser, app, **screen) as page:

        def marks(attribute: str) -> list[str]:
            read = "(all) => all.map((one) => one.disabled ? 'off' : one.getAttribute('aria-pressed'))"
            return row(page, attribute).locator(".marks button").evaluate_all(read)

        def press(attribute: str, number: int, told: str) -> None:
            row(page, attribute).locator(".marks button").nth(number).click()
            page.wait_for_function(
                "(told) => document.querySelector('#collect .told').textContent.startsWith(told)", arg=told
            )

        choose(page, first)
        assert marks("belt") == ["off", "off"]
        assert content(data) == before, "without consent"
        page.check("#collect .agree")
        assert marks("belt") == ["false", "false"]
        assert content(data) == before, "consent alone keeps nothing"
        told = [row(page, name).locator(".state").inner_text() for name in ("belt", "collar")]
        belt, collar = (text.partition(",")[0].strip() for text in told)
        values = [NAN, NAN, float(collar == "absent"), float(belt == "present")]
        press("belt", 0, f"Kept: belt is {belt}. To have this image removed, quote ")
        press("collar", 1, "Kept: collar is " + ("absent" if collar == "present" else "present"))
        pressed = [marks(name) for name in ("belt", "collar", "sleeves")]
        assert pressed == [["true", "false"], ["false", "true"], ["false", "false"]]
        names = row(page, "belt").locator(".marks button").evaluate_all("(all) => all.map((one) => one.ariaLabel)")
        assert names == [f"belt: {belt} is right", f"belt: {belt} is wrong"]
        assert np.array_equal(read_labels(data).values, [values], equal_nan=True)
        assert page.evaluate(FLAWS, "#predict-right") == []
        assert fits_the_screen(page)

        # another decision by another threshold: the label stays, and is now the wrong or the right one
        row(page, "belt").locator("input[type=number]").fill("0" if belt == "absent" else "1")
        page.wait_for_selector(".row[data-name=belt] .marks button:last-child[aria-pressed=true]")
        press("belt", 1, "Taken back: your mark of belt.")
        assert marks("belt") == ["false", "false"]
        clear(page)
        choose(page, second)
        assert marks("collar") == ["false", "false"]
        page.uncheck("#collect .agree")
        assert marks("collar") == ["off", "off"]
    assert len(list((data / "images").iterdir())) == 1


def test_a_refused_mark_is_not_shown_as_kept(
    browser: Any, app: RunningApp, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shown(browser, app, **DESKTOP) as page:
        choose(page, write_images(tmp_path / "p", 1)[0])
        page.check("#collect .agree")
        monkeypatch.setattr(collected, "MAX_IMAGES", 0)
        row(page, "belt").locator(".marks button").first.click()
        page.wait_for_selector("#collect .told[data-kind=error]:has-text('collection of this app is full')")
        assert row(page, "belt").locator(".marks button").first.get_attribute("aria-pressed") == "false"
    assert not list((data / "images").iterdir())
