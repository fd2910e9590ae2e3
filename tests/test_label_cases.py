"""Label files as other tools write them: the table that each means, or the reason why it is refused."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aimonk_hf import read_labels
from aimonk_hf.errors import AimonkError

CASES = json.loads((Path(__file__).parent / "label_cases.json").read_text(encoding="utf-8"))
# The words that the refusal, or the warning, of a case must have.
REASONS = {
    "minus1": "labels.csv:2: '-1' in column collar is not a label .* --missing-values=-1 or --absent-values=-1",
    "null": "labels.csv:3: 'None' in column collar is not a label .* --missing-values=None or --absent-values=None",
    "label_studio": "labels.csv:2: .* in column choice is not a label .*`aimonk-hf import` .*--ignore-columns choice,",
    "dup_attr_case": "labels.csv:1: The attributes 'collar' and 'Collar' differ only in case or spaces",
    "latin1": r"labels.csv:1: The attribute .* is not plain text: .* --encoding \(such as latin-1\)",
    "soft": "labels.csv:2: '0.5' in column collar is not a label .* --present-above 0.5",
    "ls_linesep": r"labels.csv:1: The attribute 'col\\u2028lar' is not plain text",
}


def write_case(case: dict[str, Any], folder: Path) -> Path:
    path = folder / case["file"]
    path.write_bytes(base64.b64decode(case["base64"]) if "base64" in case else case["text"].encode())
    return path


@pytest.mark.parametrize("case", [case for case in CASES if "images" in case], ids=lambda case: case["name"])
def test_a_case_is_read_as_the_table_that_it_means(case: dict[str, Any], tmp_path: Path) -> None:
    labels = read_labels(write_case(case, tmp_path))
    assert (labels.images, labels.attributes) == (case["images"], case["attributes"])
    np.testing.assert_array_equal(labels.values, np.array(case["values"], dtype=np.float32))


@pytest.mark.parametrize("case", [case for case in CASES if "images" not in case], ids=lambda case: case["name"])
def test_a_case_that_could_be_misread_is_refused_or_warned_of(
    case: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, reason = write_case(case, tmp_path), REASONS[case["name"]]
    if case["name"] == "dup_attr_case":
        assert read_labels(path).attributes == ["collar", "Collar"]
        assert len(caplog.messages) == 1
        assert re.search(reason, caplog.text)
    else:
        with pytest.raises(AimonkError, match=reason) as caught:
            read_labels(path)
        assert str(caught.value).isprintable()
