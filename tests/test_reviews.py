"""Answers about labels: appended, read through everywhere, safe from kill -9 and from each other."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aimonk_hf.cli.main import main
from aimonk_hf.data.labels import read_labels
from aimonk_hf.data.read_options import ReadOptions
from aimonk_hf.data.reviews import Review, append_reviews, read_reviews
from aimonk_hf.errors import AimonkError

TABLE = "image,collar,belt\na.jpg,1,NA\nb.jpg,0,1\n"


def review(image: str, attribute: str, old: str, new: str, queue: str = "random") -> Review:
    return Review(image, attribute, old, new, queue, "ana", "2026-11-26T10:00:00+00:00")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "labels.csv").write_text(TABLE)
    return tmp_path / "labels.csv"


def test_labels_are_read_through_the_answers(table: Path) -> None:
    reviews = table.with_name("reviews.csv")
    append_reviews(reviews, [review("a.jpg", "belt", "NA", "1"), review("b.jpg", "collar", "0", "NA")])
    append_reviews(reviews, [review("a.jpg", "belt", "1", "0"), review("b.jpg", "belt", "1", "1")])
    append_reviews(reviews, [review("gone.jpg", "belt", "NA", "1"), review("a.jpg", "unread", "NA", "1")])
    labels = read_labels(table)
    assert np.array_equal(labels.values, [[1, 0], [np.nan, 1]], equal_nan=True)
    assert labels.notes[-1] == f"{reviews}: 3 reviewed label(s), 2 of them changed, 1 about images that are not listed"
    assert table.read_text() == TABLE, "nothing is written over"
    plain = read_labels(table, options=ReadOptions(reviews=False))
    assert np.array_equal(plain.values, [[1, np.nan], [0, 1]], equal_nan=True)
    assert read_labels(table, ["belt"]).values[:, 0].tolist() == [0, 1]


def test_a_torn_last_line_is_not_an_answer_and_is_gone_with_the_next(table: Path) -> None:
    reviews = table.with_name("reviews.csv")
    append_reviews(reviews, [review("a.jpg", "belt", "NA", "1")])
    with reviews.open("a") as file:
        file.write("b.jpg,belt,1,")
    assert len(read_reviews(reviews)) == 1
    append_reviews(reviews, [review("b.jpg", "belt", "1", "0")])
    assert [one.image for one in read_reviews(reviews)] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a.jpg,belt,NA,2,random,ana,now", "Not an answer"),
        ("a.jpg,belt,NA", "Not an answer"),
        ('a.jpg,"b"x,1,0', "expected"),
    ],
)
def test_a_damaged_line_is_named(line: str, reason: str, table: Path) -> None:
    append_reviews(table.with_name("reviews.csv"), [review("a.jpg", "belt", "NA", "1")])
    with table.with_name("reviews.csv").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(AimonkError, match=rf"reviews\.csv:3: .*{reason}.*: mend or remove that line"):
        read_labels(table)


_WRITER = """
import sys
from aimonk_hf.data.reviews import Review, append_reviews
from pathlib import Path
for number in range(1000):
    append_reviews(Path(sys.argv[1]), [Review(f"{sys.argv[2]}-{number}-{place}", "belt", "NA", "1", "random", "x", "t")
                                       for place in range(4)])
    print(number, flush=True)
"""


def test_two_processes_lose_no_answer_and_a_kill_loses_one_page_at_most(tmp_path: Path) -> None:
    path = tmp_path / "reviews.csv"
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, str(path), name], stdout=subprocess.PIPE, text=True)
        for name in ("one", "two")
    ]
    told = []
    for writer in writers:
        for _ in range(20):
            last = writer.stdout.readline()
        os.kill(writer.pid, signal.SIGKILL)
        rest = writer.stdout.read().split()
        told.append(int(rest[-1] if rest else last))
        writer.wait()
    append_reviews(path, [review("after", "belt", "NA", "1")])
    found = [one.image for one in read_reviews(path)]
    for name, number in zip(("one", "two"), told, strict=True):
        own = [image for image in found if image.startswith(name)]
        assert own[: 4 * (number + 1)] == [f"{name}-{page}-{place}" for page in range(number + 1) for place in range(4)]
        assert len(own) <= 4 * (number + 2)


def test_training_and_a_merged_file_take_the_answers(sample: Path, tmp_path: Path, capsys) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "images").symlink_to(sample / "images")
    (data / "labels.csv").write_text((sample / "labels.csv").read_text())
    before = read_labels(data)
    wanted = {1.0: "0", 0.0: "1"}.get(float(before.values[0, 0]), "1")
    append_reviews(data / "reviews.csv", [review(before.images[0], before.attributes[0], "NA", wanted)])
    files = ["--accept", str(data / "reviews.csv"), "--output", str(tmp_path / "merged")]
    assert main(["audit", "--data-dir", str(data), *files]) == 0
    assert "1 reviewed label(s), 1 of them changed" in capsys.readouterr().err
    merged = read_labels(tmp_path / "merged", options=ReadOptions(reviews=False))
    assert merged.values[0, 0] == float(wanted)
    assert merged.images == before.images
