"""The labelling page: queues, answers and what is learned, by its interface and in the browser."""

from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from browser_support import DESKTOP, browser
from starlette.testclient import TestClient

from aimonk_hf import AimonkModel, AttributeDataset
from aimonk_hf.app.folder import app_folder
from aimonk_hf.app.labelling import labelling_app
from aimonk_hf.app.serve import launch, open_page
from aimonk_hf.audit import learner
from aimonk_hf.audit.label_session import LabelSession
from aimonk_hf.audit.learner import Learner, cached_features
from aimonk_hf.audit.queues import build_queues, choose_page, probabilities
from aimonk_hf.cli.main import main
from aimonk_hf.data.dataset import content_hash
from aimonk_hf.data.duplicates import Pair
from aimonk_hf.data.labels import Labels, read_labels, write_labels
from aimonk_hf.data.reviews import read_reviews
from aimonk_hf.evaluation.split_file import write_parts

__all__ = ["browser"]  # a fixture


@pytest.fixture
def data(sample: Path, tmp_path: Path) -> Path:
    """Drawings: collar is wrong in row 4 and missing in the last twenty; sleeves is missing everywhere."""
    table = read_labels(sample)
    rows = np.flatnonzero(~np.isnan(table.values[:, 2]))
    values = np.stack([np.full(len(rows), np.nan), table.values[rows, 2]], axis=1).astype(np.float32)
    values[4, 1] = 1 - values[4, 1]
    values[-20:, 1] = np.nan
    (tmp_path / "images").symlink_to(sample / "images")
    write_labels(tmp_path / "labels.csv", Labels([table.images[row] for row in rows], ["sleeves", "collar"], values))
    return tmp_path


@pytest.fixture
def session(data: Path, sample: Path) -> LabelSession:
    """A session whose features tell the true collar; row 7 is of the report part."""
    dataset = AttributeDataset.from_folder(data)
    truth = dict(zip(read_labels(sample).images, read_labels(sample).values[:, 2], strict=True))
    random = np.random.default_rng(0)
    features = random.normal(size=(len(dataset), 8)).astype(np.float32)
    features[:, 0] += [6 * truth[image] for image in dataset.labels.images]
    report = np.arange(len(dataset)) == 7
    session = LabelSession(dataset, None, report, lambda: features)
    session.prepare().join(60)
    assert session.learner is not None
    return session


@pytest.fixture
def client(session: LabelSession) -> Iterator[TestClient]:
    with TestClient(labelling_app(session, "ana"), base_url="http://localhost") as client:
        yield client


def page(client: TestClient, queue: str, attribute: str = "collar", size: int = 12) -> dict:
    answer = client.post("/page", json={"attribute": attribute, "queue": queue, "size": size})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_wrong_label_is_the_first_suspect_and_missing_ones_are_filled(client: TestClient) -> None:
    first, *_ = page(client, "suspect")["items"]
    assert (first["row"], first["queue"]) == (4, "suspect")
    assert first["suggested"] != first["label"] == first["filled"], "a label is not changed by a suggestion"
    sure = [one for one in page(client, "sure")["items"] if one["queue"] == "sure"]
    assert sure
    assert all(one["label"] == "NA" and one["filled"] == one["suggested"] for one in sure)
    assert {one["row"] for one in page(client, "report")["items"]} == {7}
    assert page(client, "report")["items"][0]["suggested"] is None
    for queue in ("suspect", "sure", "unsure", "conflict", "random"):
        assert 7 not in {one["row"] for one in page(client, queue, size=48)["items"]}
    nothing = page(client, "suspect", "sleeves")
    assert nothing["items"] == []
    assert nothing["left"] == {"suspect": 0, "sure": 0, "unsure": 0, "conflict": 0, "random": 53, "report": 1}


def test_answers_are_appended_learned_from_taken_back_and_not_asked_again(client: TestClient, data: Path) -> None:
    items = page(client, "suspect")["items"]
    answers = [
        {"row": one["row"], "old": one["label"], "new": one["suggested"] or one["label"], "queue": one["queue"]}
        | {"suggested": one["suggested"]}
        for one in items
    ]
    told = client.post("/answers", json={"attribute": "collar", "who": "ana", "answers": answers}).json()
    assert told == {"changed_meanwhile": []}
    written = read_reviews(data / "reviews.csv")
    assert [(one.attribute, one.queue, one.who) for one in written] == [
        ("collar", one["queue"], "ana") for one in items
    ]
    assert read_labels(data).values[4, 1] == float(items[0]["suggested"])
    assert not {one["row"] for one in items} & {one["row"] for one in page(client, "random", size=48)["items"]}

    state = client.post("/state", json={"attribute": "collar"}).json()
    assert (state["given"], state["agreement"]) == (len(items), 1.0)
    assert state["attributes"][1]["reviewed"] == len(items)
    assert state["gain"]["low"] <= state["gain"]["now"] - state["gain"]["before"] <= state["gain"]["high"]

    again = [{**answers[0], "old": items[0]["label"], "new": "NA"}]
    told = client.post("/answers", json={"attribute": "collar", "who": "ben", "answers": again}).json()
    assert told == {"changed_meanwhile": [items[0]["name"]]}, "somebody else answered since"
    for _ in range(2):
        client.post("/undo", json={"who": "ana"})
    taken_back = read_labels(data).values[:, 1]
    (data / "reviews.csv").rename(data / "kept.csv")
    assert np.array_equal(taken_back, read_labels(data).values[:, 1], equal_nan=True)
    (data / "kept.csv").rename(data / "reviews.csv")
    assert page(client, "suspect")["items"][0]["row"] == 4


def test_definitions_and_examples_are_kept_beside_the_labels(client: TestClient, data: Path) -> None:
    name = read_labels(data).images[3]
    client.post("/guide", json={"attribute": "collar", "definition": "folded cloth at the neck"})
    found = client.post("/guide", json={"attribute": "collar", "row": 3, "kind": "yes"}).json()
    assert found == {"definition": "folded cloth at the neck", "yes": [name], "no": []}
    assert client.post("/guide", json={"attribute": "collar", "row": 3, "kind": "no"}).json()["no"] == [name]
    assert (data / "label_guide.json").is_file()


@pytest.mark.parametrize(
    ("path", "sent", "status", "detail"),
    [
        ("/page", {"json": {"attribute": "none", "queue": "random"}}, 422, "There is no attribute 'none'"),
        ("/page", {"json": {"attribute": "collar", "queue": "all"}}, 422, "There is no queue 'all'"),
        ("/page", {"json": {"attribute": "collar", "queue": "random", "size": "9"}}, 422, "size must be of type int"),
        ("/answers", {"json": {"attribute": "collar", "answers": [{"row": 99}]}}, 422, "There is no image 99"),
        ("/answers", {"json": {"attribute": "collar", "answers": [{"row": 1, "new": "2"}]}}, 422, "1, 0 or NA"),
        ("/answers", {"json": {"attribute": "collar", "answers": [7]}}, 422, "Answers must be a list of objects"),
        ("/answers", {"json": []}, 400, "not a JSON object"),
        ("/answers", {"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "not JSON"),
        ("/answers", {"content": b" " * 1_000_001, "headers": {"Content-Type": "application/json"}}, 413, "too large"),
        ("/answers", {"data": {"attribute": "collar"}}, 415, "Send JSON"),
        ("/answers", {"json": {}, "headers": {"Origin": "http://evil.example"}}, 403, "Pages of other sites"),
        ("/nothing", {"json": {}}, 404, "no such address"),
    ],
)
def test_other_requests_are_refused(
    path: str, sent: dict, status: int, detail: str, client: TestClient, data: Path
) -> None:
    answer = client.post(path, **sent)
    assert answer.status_code == status
    assert detail in answer.json()["detail"]
    assert not (data / "reviews.csv").exists()


def test_foreign_hosts_and_images_outside_the_list_are_refused(client: TestClient) -> None:
    assert client.get("/about", headers={"Host": "evil.example"}).status_code == 400
    assert client.get("/image/480/3").headers["content-type"] == "image/jpeg"
    assert client.get("/image/480/54").status_code == 404
    assert client.get("/image/481/3").status_code == 404


def test_queues_of_known_scores() -> None:
    labels = np.array([1] * 6 + [0] * 6 + [np.nan] * 4)
    probability = np.array([0.9] * 5 + [0.02] + [0.1] * 6 + [0.99, 0.6, 0.45, np.nan])
    pairs = [Pair(0, 6, "near", 0.99), Pair(1, 2, "near", 0.99)]
    queues = build_queues(labels, probability, pairs, np.arange(16) == 3)
    rows = {name: [one.row for one in own] for name, own in queues.items()}
    assert rows["suspect"] == [5]
    assert (rows["sure"], rows["unsure"]) == ([12], [14, 13])
    assert rows["conflict"] == [0, 6]
    assert sorted(rows["random"]) == [row for row in range(16) if row != 3]
    assert rows["report"] == [3]

    groups = np.arange(16)
    groups[2] = 1
    shown = [one.row for one in choose_page(queues, "random", 16, {5}, groups, np.random.default_rng(0))]
    assert len(shown) == 13, "without the report part, the answered one, and one of two near-duplicates"
    assert {1, 2} & set(shown) != {1, 2}


def test_probabilities_need_labels_of_both_kinds_and_take_the_mean_of_logits() -> None:
    labels = np.array([1.0, 0.0] * 10)
    scores = np.where(labels == 1, 0.8, 0.3)
    assert np.isnan(probabilities(np.full(20, 1.0), scores)).all()
    assert np.isnan(probabilities(labels)).all()
    one = probabilities(labels, scores)
    assert (one[labels == 1] > 0.5).all()
    half = scores.copy()
    half[:10] = np.nan
    both = probabilities(labels, half, scores)
    assert both[:10] == pytest.approx(one[:10])


def test_the_head_learns_what_features_tell() -> None:
    random = np.random.default_rng(1)
    truth = (random.random(400) < 0.3).astype(float)
    features = random.normal(size=(400, 6)).astype(np.float32)
    features[:, 0] += 3 * truth
    features[0] = np.nan
    start = truth.copy()
    start[random.permutation(400)[:380]] = np.nan
    head = Learner(features, start[:, None])
    gain = head.gain(truth[:, None], head.scores(truth[:, None]), 0)
    assert gain is not None
    assert gain["low"] <= gain["now"] - gain["before"] <= gain["high"]
    assert gain["now"] > gain["before"]
    assert np.isnan(head.scores(np.full((400, 1), np.nan))).all()


def test_features_are_kept_until_the_backbone_or_an_image_changes(data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("AIMONK_CACHE", str(tmp_path / "cache" / "images"))
    paths = AttributeDataset.from_folder(data).paths[:6]

    def features(seed: int) -> np.ndarray:
        torch.manual_seed(seed)
        model = AimonkModel.from_timm("test_resnet", ["one"], pretrained=False, image_size=32)
        model.save_pretrained(tmp_path / "model")
        return cached_features(f"local-dir:{tmp_path / 'model'}", paths)

    first = features(0)
    monkeypatch.setattr(learner, "backbone_features", lambda *_, **__: first + 1)
    assert np.array_equal(features(0), first)
    assert np.array_equal(features(1), first + 1), "another model in the same folder"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[LabelSession]:
    """The sessions that the command would serve."""
    sessions: list[LabelSession] = []
    monkeypatch.setattr("aimonk_hf.app.labelling.serve_labelling", lambda session, *_: sessions.append(session))
    return sessions


def test_a_labels_file_is_begun_from_a_folder_of_images(sample: Path, tmp_path: Path, served: list, capsys) -> None:
    images = tmp_path / "images"
    images.symlink_to(sample / "images")
    assert main(["label", "--images", str(images), "--attributes", "hat,scarf"]) == 0
    assert f"written:  {tmp_path / 'labels.csv'}" in capsys.readouterr().out
    begun: Labels = served[0].dataset.labels
    assert begun.attributes == ["hat", "scarf"]
    assert np.isnan(begun.values).all()
    assert main(["label"]) == 2
    assert "label needs --data-dir DATA, or --images FOLDER" in capsys.readouterr().err


def test_a_split_knows_images_by_content_and_one_of_others_is_refused(data: Path, served: list, capsys) -> None:
    paths = AttributeDataset.from_folder(data).paths
    parts = ["report"] * 3 + ["train"] * (len(paths) - 3)
    rows = [(f"renamed {path.name}", part, content_hash(path)) for path, part in zip(paths, parts, strict=True)]
    write_parts(data / "split.csv", rows)
    command = ["label", "--data-dir", str(data), "--split", str(data / "split.csv")]
    assert main(command) == 0
    assert np.flatnonzero(served[0].report).tolist() == [0, 1, 2]
    write_parts(data / "split.csv", [("other.jpg", "report", "0" * 64)])
    assert main(command) == 2
    assert "names none of these images, by name or content" in capsys.readouterr().err


@pytest.fixture
def address(session: LabelSession) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(labelling_app(session, "ana"), port=0, log_level="error", lifespan="off"))
    socket = server.config.bind_socket()
    thread = Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_a_tab_of_the_app_mends_labels(browser: Any, data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AimonkModel.from_timm("test_resnet", ["collar", "sleeves"], pretrained=False, image_size=32)
    model.save_pretrained(tmp_path / "model")
    with app_folder() as folder:
        page = open_page(str(tmp_path / "model"), folder, label=str(data))
        try:
            url = launch(page, "127.0.0.1", None, wait=False).rstrip("/")
            assert httpx.get(f"{url}/label/about").json()["attributes"] == ["sleeves", "collar"]
            sent = {"attribute": "collar", "queue": "random", "size": 4}
            items = httpx.post(f"{url}/label/page", json=sent).json()["items"]
            assert len(items) == 4
            assert httpx.get(f"{url}/label/image/240/{items[0]['row']}").headers["content-type"] == "image/jpeg"
            foreign = httpx.post(f"{url}/label/page", json=sent, headers={"Origin": "http://evil.example"})
            assert foreign.status_code == 403
            assert httpx.get(f"{url}/label/about", headers={"Host": "evil.example"}).status_code == 400
            tab = browser.new_page(**DESKTOP)
            tab.goto(url)
            tab.get_by_role("tab", name="Labels").click()
            frame = tab.frame_locator("#labelling")
            frame.locator(".tile").first.wait_for()
            frame.get_by_role("button", name="Accept page").click()
            frame.get_by_text("answers in this session").wait_for()
            tab.close()
            assert read_reviews(data / "reviews.csv")
        finally:
            page.close()


@pytest.mark.parametrize(
    ("flags", "told"),
    [("--share", "leave out --share, or --label"), ("", "--label needs a model of these labels: name its folder")],
)
def test_a_tab_that_cannot_be_is_refused(flags: str, told: str, data: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(data)
    assert main(["app", "--label", str(data), *flags.split()]) == 2
    assert told in capsys.readouterr().err


def test_a_person_labels_with_the_keyboard(browser: Any, address: str, data: Path) -> None:
    tab = browser.new_page(**DESKTOP)
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(f"{address}/#attribute=collar&queue=suspect")
    tab.wait_for_selector(".tile")
    before = tab.locator(".tile").first.get_attribute("aria-label")
    tab.keyboard.press("1")
    changed = tab.locator(".tile").first.get_attribute("aria-label")
    assert changed != before
    tab.keyboard.press("y")
    assert tab.locator(".tile").first.get_attribute("data-value") == "1"
    n_tiles = tab.locator(".tile").count()
    tab.keyboard.press("Enter")
    tab.get_by_text(f"{n_tiles} answers in this session").wait_for()
    assert len(read_reviews(data / "reviews.csv")) == n_tiles
    tab.keyboard.press("u")
    tab.get_by_text(f"Taken back: {n_tiles} answers.").wait_for()
    tab.get_by_label("Queue").select_option("random")
    for width in (1440, 900, 768, 390):
        tab.set_viewport_size({"width": width, "height": 844})
        tab.wait_for_selector(".tile")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        for box in (one.bounding_box() for one in tab.locator(".tile").all()):
            assert 0 <= box["x"] <= width - box["width"]
        for button in tab.locator(".choice button").all():
            assert button.evaluate("one => one.scrollWidth <= one.clientWidth"), "a word is cut"
    assert not errors
    tab.close()
