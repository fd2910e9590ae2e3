"""What an audit finds in data whose faults were planted."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from aimonk_hf import AttributeDataset
from aimonk_hf.audit.checks import add_suspects, audit
from aimonk_hf.audit.report import audit_markdown, summary
from aimonk_hf.audit.suspects import find_fillable, find_suspects, read_scores
from aimonk_hf.cli.main import main
from aimonk_hf.data import duplicates as near_duplicates
from aimonk_hf.data.duplicates import SIDE, find_duplicates, group_numbers
from aimonk_hf.data.label_checks import copied_attributes, missing_patterns, one_sided_attributes
from aimonk_hf.data.labels import accept_suggestions, read_labels
from aimonk_hf.data.sample_data import write_sample_data
from aimonk_hf.errors import AimonkError

NAN = np.nan


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve drawings, some copied, some damaged, with labels that conflict."""
    folder = write_sample_data(tmp_path_factory.mktemp("data") / "faulty", n_images=12, seed=8)
    images = folder / "images"
    shutil.copy(images / "garment_0000.png", images / "copy.png")
    with Image.open(images / "garment_0001.png") as picture:
        ImageEnhance.Brightness(picture.resize((100, 100))).enhance(1.04).save(images / "near.jpg", quality=80)
        picture.convert("RGBA").save(images / "rgba.jpg", "PNG")
        picture.resize((20, 20)).save(images / "tiny.png")
    (images / "broken.jpg").write_bytes(b"\xff\xd8 no")
    Image.new("RGB", (80, 80), "white").save(images / "unlisted.png")
    rows = {f"garment_{number:04d}.png": "1,0,1,0" for number in range(12)}
    rows |= {"copy.png": "1,1,NA,0", "near.jpg": "0,0,1,1", "rgba.jpg": "1,0,1,0", "tiny.png": "1,0,1,0"}
    rows |= {"broken.jpg": "1,0,1,0", "gone.png": "1,0,1,0"}
    (folder / "labels.csv").write_text(
        "image,a,b,c,d\n" + "".join(f"{name},{values}\n" for name, values in rows.items())
    )
    return folder


def test_files_and_duplicates(faulty: Path) -> None:
    findings = audit(AttributeDataset.from_folder(faulty)).findings
    files = findings["files"]
    assert files["n_usable"] == 16
    assert files["missing"] == ["gone.png"]
    assert list(files["unreadable"]) == ["broken.jpg"]
    assert files["unlisted"] == ["unlisted.png"]
    assert files["tiny"] == {"tiny.png": "20 x 20 pixels"}
    assert files["odd_mode"] == {"rgba.jpg": "RGBA"}
    assert files["misnamed"] == {"rgba.jpg": "PNG inside .jpg"}
    assert findings["duplicates"]["exact"] == [
        {"images": ["garment_0000.png", "copy.png"], "correlation": 1.0, "conflicts": {"b": [0, 1]}}
    ]
    assert findings["duplicates"]["exact_summary"]["n_shared_labels"] == 3
    near = {frozenset(pair["images"]): pair["conflicts"] for pair in findings["duplicates"]["near"]}
    assert near[frozenset({"garment_0001.png", "near.jpg"})] == {"a": [1, 0], "d": [0, 1]}
    assert {name for pair in near for name in pair} == {"garment_0001.png", "near.jpg", "rgba.jpg"}


@pytest.mark.parametrize("block", [16, 512])
def test_near_duplicates_are_those_that_comparing_every_pair_finds(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "_BLOCK", block)
    thumbnails = _crowd()
    grey = thumbnails.mean(axis=3).reshape(len(thumbnails), -1)
    structured = grey.std(axis=1) >= 4
    correlation = np.corrcoef(grey)
    difference = np.array([np.abs(one.astype(np.int16) - thumbnails).mean(axis=(1, 2, 3)) for one in thumbnails])
    agree = ((correlation > 0.97) & (difference <= 12)) | ((correlation > 0.99) & (difference <= 30))
    expected = np.argwhere(np.triu(agree & structured & structured[:, None], 1))

    # both sides of every limit are there, and no pair on it, where rounding would decide
    for limit, most in ((0.97, 12), (0.99, 30)):
        for inside in (True, False):
            near = (abs(correlation - limit) < 0.01) & ((correlation > limit) == inside)
            assert np.sum(near & (difference <= most)) > 20
            assert np.sum((abs(difference - most) < 3) & ((difference <= most) == inside) & (correlation > limit)) > 20
    assert np.abs(correlation[..., None] - [0.97, 0.99]).min() > 1e-6
    assert np.sum(agree & (structured ^ structured[:, None])) > 10

    pairs = find_duplicates([Path(f"{number}.none") for number in range(len(thumbnails))], list(thumbnails))
    assert [[pair.first, pair.second] for pair in pairs] == expected.tolist()
    assert {pair.kind for pair in pairs} == {"near"}
    np.testing.assert_allclose([pair.correlation for pair in pairs], correlation[tuple(expected.T)], atol=5e-6)

    paths = [Path(f"{number}.none") for number in range(len(thumbnails))]
    fewer = find_duplicates(paths, list(thumbnails), spanning=True)
    assert len(fewer) < len(pairs) / 2
    np.testing.assert_array_equal(*(group_numbers(len(thumbnails), found) for found in (pairs, fewer)))


def _crowd() -> NDArray[np.uint8]:
    """Return thumbnails: strangers, their negatives, copies with noise and light, many of one, and faint copies."""
    rng = np.random.default_rng(0)
    square = np.ones((1, 4, 4, 1))
    bases = np.kron(rng.integers(60, 196, (40, 8, 8, 3)), square)
    copied = np.repeat(bases[:12], 20, axis=0)
    shape = (len(copied), 1, 1, 1)
    fine, coarse = rng.random(shape) < 0.5, np.kron(rng.normal(size=(len(copied), 8, 8, 3)), square)
    noise = np.where(fine, rng.normal(size=copied.shape), coarse)
    copies = copied + rng.uniform(0, 14, shape) * noise + rng.choice([-1, 0, 1], shape) * rng.uniform(9, 17, shape)
    often = bases[:1] + rng.normal(0, 2, (60, SIDE, SIDE, 3))
    faint = 128 + rng.uniform(0.1, 0.25, (48, 1, 1, 1)) * np.repeat(bases[12:16] - 128, 12, axis=0)
    every = np.concatenate([bases, 255 - bases[:12], copies, often, faint])
    return rng.permutation(np.clip(every, 0, 255).astype(np.uint8))


def test_leakage_between_parts(faulty: Path, tmp_path: Path) -> None:
    split = tmp_path / "split.csv"
    split.write_text(
        "image,part\ngarment_0000.png,train\ncopy.png,validation\ngarment_0001.png,train\nnear.jpg,train\n"
    )
    found = audit(AttributeDataset.from_folder(faulty), split).findings["leakage"]
    assert found["pairs_across_parts"] == [
        {"images": ["garment_0000.png", "copy.png"], "kind": "exact", "parts": ["train", "validation"]}
    ]
    assert found["n_in_no_part"] == 14
    with pytest.raises(AimonkError, match="annot read .*none.csv"):
        audit(AttributeDataset.from_folder(faulty), tmp_path / "none.csv")


def test_constant_and_copied_attributes() -> None:
    rng = np.random.default_rng(0)
    base = (rng.random(400) < 0.5).astype(float)
    gaps = np.where(rng.random(400) < 0.2, NAN, base)
    labels = np.column_stack(
        [base, gaps, 1 - base, np.ones(400), np.full(400, NAN), np.arange(400) < 3, rng.random(400) < 0.5]
    ).astype(float)
    names = ["base", "copy", "opposite", "always", "unknown", "rare", "own"]
    assert one_sided_attributes(labels, names) == {
        "always": "every observed label is 1",
        "unknown": "every label is missing",
        "rare": "nearly constant: 3 positive, 397 negative",
    }
    found = {tuple(pair["attributes"]): pair["phi"] for pair in copied_attributes(labels, names)}
    assert found == {
        ("base", "copy"): pytest.approx(1),
        ("base", "opposite"): pytest.approx(-1),
        ("copy", "opposite"): pytest.approx(-1),
    }


def test_labels_that_are_missing_with_another_are_found_and_random_gaps_are_not() -> None:
    alarms = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels = (rng.random((300, 4)) < 0.4).astype(float)
        labels[:, 1:][rng.random((300, 3)) < 0.2] = NAN
        alarms += bool(missing_patterns(labels, list("abcd")))
        labels[(labels[:, 0] == 1) & (rng.random(300) < 0.5), 1] = NAN
        first = missing_patterns(labels, list("abcd"))[0]
        assert (first["attribute"], first["other"]) == ("b", "a")
        assert first["na_rate_where_1"] > 0.4 > first["na_rate_where_0"]
    assert alarms <= 2


def planted(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of a good model for 600 images, labels with 5% flips and gaps, and where the flips are."""
    rng = np.random.default_rng(seed)
    truth = (rng.random((600, 4)) < [0.88, 0.81, 0.53, 0.08]).astype(float)
    scores = 1 / (1 + np.exp(-(rng.normal(size=truth.shape) * 1.2 + 6 * truth - 3)))
    flips = rng.random(truth.shape) < 0.05
    labels = np.where(flips, 1 - truth, truth)
    gaps = rng.random(truth.shape) < 0.09
    labels[gaps] = NAN
    return labels, scores, flips & ~gaps


def test_planted_flips_are_found() -> None:
    labels, scores, flips = planted(0)
    found = find_suspects(labels, scores)
    hits = sum(flips[one.row, one.attribute] for one in found)
    assert hits >= 0.7 * flips.sum()
    assert hits >= 0.5 * len(found)
    assert sum(flips[one.row, one.attribute] for one in found[:20]) >= 18  # the most doubtful come first
    assert all(one.label == str(int(labels[one.row, one.attribute])) for one in found)


def test_gaps_are_filled_rightly_and_noise_fills_nothing() -> None:
    labels, scores, flips = planted(0)
    labels[flips] = 1 - labels[flips]
    truth = np.random.default_rng(0).random((600, 4)) < [0.88, 0.81, 0.53, 0.08]  # the first that `planted` draws
    found = find_fillable(labels, scores)
    assert len(found) > 0.5 * np.isnan(labels).sum()
    assert np.mean([truth[one.row, one.attribute] == one.suggested for one in found]) > 0.95
    noise = np.random.default_rng(0).random(labels[:, 2:3].shape)
    assert find_fillable(labels[:, 2:3], noise) == []
    assert find_suspects(np.full((5, 2), NAN), np.full((5, 2), 0.5)) == []


def test_reviewed_suggestions_come_back_as_labels(faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    header = "image,attribute,label,suggested,score,kind,accept\n"
    review = tmp_path / "suggestions.csv"
    review.write_text(
        header + "copy.png,c,NA,1,0.99,fill,yes\nnear.jpg,a,0,1,0.98,suspect,\ncopy.png,b,1,0,0.1,suspect,X\n",
        encoding="utf-8-sig",  # as a spreadsheet saves it
    )
    assert main(["audit", "--data-dir", str(faulty), "--accept", str(review), "--output", str(tmp_path / "new")]) == 0
    assert "2 suggestions accepted" in capsys.readouterr().out
    new = read_labels(tmp_path / "new")
    assert new.values[new.images.index("copy.png")].tolist() == [1, 0, 1, 0]
    assert new.values[new.images.index("near.jpg")].tolist() == [0, 0, 1, 1]
    review.write_text(header + "copy.png,b,0,1,0.1,suspect,yes\n")
    with pytest.raises(AimonkError, match=r"suggestions.csv:2: the label is now 1, not 0: audit again"):
        accept_suggestions(review, read_labels(faulty))
    review.write_text(header + "nobody.png,b,0,1,0.1,suspect,yes\n")
    with pytest.raises(AimonkError, match="does not fit"):
        accept_suggestions(review, read_labels(faulty))


def test_scores_from_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "oof.csv"
    path.write_text("image,b,a,fold\ny.png,0.2,0.1,0\nother.png,1,1,1\n")
    scores = read_scores(path, ["x.png", "y.png"], ["a", "b"])
    np.testing.assert_array_equal(scores, [[NAN, NAN], [0.1, 0.2]])
    path.write_text("image,score:image,score:notes,error\ny.png,0.1,0.2,0.3\n", encoding="utf-8-sig")
    scores = read_scores(path, ["y.png"], ["image", "notes", "error"])  # attributes that have names of other columns
    np.testing.assert_array_equal(scores, [[0.1, 0.2, 0.3]])


@pytest.mark.parametrize(
    ("text", "attributes", "message"),
    [
        ("image,b\ny.png,0.2\n", ["a", "b"], "no column a"),
        ("image,a,b\ny.png,2,0\n", ["a", "b"], "between 0 and 1"),
        ("image,a,b\ny.png,x,0\n", ["a", "b"], "oof.csv:2"),
        ("image,a,b\ny.png,nan,0\n", ["a", "b"], "oof.csv:2: the score 'nan' is not a number between"),
        ("image,notes\ny.png,0.2\n", ["image"], "no column score:image"),
        ("image,score:image,score:image\n", ["image"], "two columns score:image"),
    ],
)
def test_scores_that_cannot_be_read_are_named(text: str, attributes: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "oof.csv").write_text(text)
    with pytest.raises(AimonkError, match=message):
        read_scores(tmp_path / "oof.csv", ["x.png", "y.png"], attributes)


@pytest.mark.usefixtures("real_plots")
def test_the_command_writes_report_sheet_and_suggestions(
    faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    names = read_labels(faulty).images
    oof = tmp_path / "oof.csv"
    with oof.open("w", newline="") as file:
        csv.writer(file).writerows([["image", *"abcd"], *([name, *rng.random(4).round(3)] for name in names)])
    out = tmp_path / "report"
    assert main(["audit", "--data-dir", str(faulty), "--scores", str(oof), "--output", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "1 listed images are missing" in printed
    assert "1 byte-identical pairs, whose labels conflict in 1 of 3 cases" in printed
    assert {path.name for path in out.iterdir()} == {"audit.md", "audit.json", "contact_sheet.png", "suggestions.csv"}
    assert json.loads((out / "audit.json").read_text())["one_sided"]["a"].startswith("nearly constant")
    assert "`garment_0000.png`, `copy.png` | 1.000 | b 0 / 1 |" in (out / "audit.md").read_text()
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 1000


def test_an_audit_of_spotless_data_and_odd_names_reads_well(sample: Path) -> None:
    audited = audit(AttributeDataset.from_folder(sample))
    add_suspects(audited, np.full(audited.dataset.labels.values.shape, NAN), "nobody")
    assert "## Files" not in audit_markdown(audited.findings)
    assert "0 suspect labels" in "\n".join(summary(audited.findings))
