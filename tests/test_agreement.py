"""Several annotators: consensus, agreement by hand-computed figures, and where it is repeated."""

import json
from pathlib import Path

import numpy as np
import pytest
from import_support import EXPORTS, draw

from aimonk_hf.audit.checks import audit
from aimonk_hf.audit.report import audit_markdown, summary
from aimonk_hf.data.agreement import alpha, consensus, count_votes, describe_agreement, read_agreement
from aimonk_hf.data.dataset import AttributeDataset
from aimonk_hf.data.importers.rows import Told
from aimonk_hf.data.imports import import_labels
from aimonk_hf.errors import AimonkError
from aimonk_hf.evaluation.tuning import describe_data

NAN = np.nan
SENTENCE = "no model can beat its labels: 3 annotators agree by Krippendorff's alpha -0.33 (belt) to 0.33 (striped)"


def test_votes_and_consensus() -> None:
    values = np.array([[1, NAN], [1, 0], [0, 1], [NAN, 1], [0, 1]], dtype=np.float32)
    votes = count_votes(values, np.array([0, 0, 0, 1, 1]), 3)
    np.testing.assert_array_equal(votes, [[[1, 1], [1, 0], [0, 0]], [[2, 1], [0, 2], [0, 0]]])
    np.testing.assert_array_equal(consensus(votes, 1), [[1, NAN], [0, 1], [NAN, NAN]])
    np.testing.assert_array_equal(consensus(votes, 2), [[1, NAN], [NAN, 1], [NAN, NAN]])


@pytest.mark.parametrize(
    ("absent", "present", "expected"),
    [
        # Krippendorff (2011), Computing Krippendorff's alpha-reliability, part A: two observers of ten units
        ([1, 0, 1, 2, 2, 1, 2, 2, 1, 2], [1, 2, 1, 0, 0, 1, 0, 0, 1, 0], 0.095238),
        ([3, 0, 3], [0, 3, 0], 1.0),
        # 10 votes about three images, and one without a second vote; pairs that differ: 2, by chance 2 * 5 * 5 / 9
        ([3, 2, 0, 1], [0, 1, 4, 0], 1 - 2 / (2 * 5 * 5 / 9)),
        ([2, 3], [0, 0], None),
        ([1, 0], [0, 1], None),
    ],
    ids=["published", "perfect", "three_annotators", "one_value", "one_vote_each"],
)
def test_krippendorff_s_alpha(absent: list[int], present: list[int], expected: float | None) -> None:
    found = alpha(np.array([absent, present]))
    assert found == (expected if expected is None else pytest.approx(expected, abs=1e-6))


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Four images by three annotators, as Label Studio exports them."""
    draw(tmp_path / "media", "red.jpg", "green.jpg", "blue.jpg", "grey.jpg")
    import_labels(Told(str(EXPORTS / "label_studio/tasks.json")), tmp_path / "data", images_dir=tmp_path / "media")
    return tmp_path / "data"


def test_audit_and_card_repeat_the_agreement(labelled: Path, tmp_path: Path) -> None:
    dataset = AttributeDataset.from_folder(labelled)
    findings = audit(dataset).findings
    assert SENTENCE in summary(findings)
    assert "| striped | 0.333 | 2 | 1 | 0 |" in audit_markdown(findings)
    assert describe_data([dataset])["findings"][0] == SENTENCE


def test_agreement_is_of_the_attributes_in_use(labelled: Path) -> None:
    label_file = labelled / "labels.csv"
    found = read_agreement(label_file, ["striped", "another"])
    assert list(found["per_attribute"]) == ["striped"]
    assert describe_agreement(found).endswith("3 annotators agree by Krippendorff's alpha 0.33 (striped)")
    assert describe_agreement(read_agreement(label_file, ["another"])) == (
        "3 annotators labelled these images; how far they agree is unknown"
    )
    assert read_agreement("labels", ["striped"]) is None


@pytest.mark.parametrize(
    "content", ["{}", '{"per_attribute": {"collar": {"alpha": "high"}}}', '{"per_attribute": []}', "["]
)
def test_a_damaged_agreement_is_one_sentence(labelled: Path, content: str) -> None:
    (labelled / "agreement.json").write_text(content)
    with pytest.raises(AimonkError, match=r"agreement\.json is damaged"):
        read_agreement(labelled / "labels.csv", ["collar"])


def test_minimum_of_votes_without_annotators(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,a\nx.jpg,1\n")
    draw(tmp_path, "x.jpg")
    with pytest.raises(AimonkError, match="--min-votes needs several annotators per image"):
        import_labels(Told(str(tmp_path / "labels.csv")), tmp_path / "DATA", min_votes=2)
    assert json.dumps(sorted(path.name for path in tmp_path.iterdir())) == '["labels.csv", "x.jpg"]'
