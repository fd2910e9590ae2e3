"""Agreement of several annotators: votes to consensus, and Krippendorff's alpha of each attribute."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aimonk_hf.console import figure, table
from aimonk_hf.errors import AimonkError, reason_of
from aimonk_hf.storage import read_json

AGREEMENT_FILE = "agreement.json"
_KEYS = ("alpha", "n_images", "n_unanimous", "n_ties")
MEASURE = "Krippendorff's alpha, nominal: 1 perfect, 0 as by chance"


def count_votes(values: NDArray[np.float32], row_of: NDArray[np.int64], n_images: int) -> NDArray[np.int64]:
    """Return the votes [2, N, K] for absent and for present among `values` [M, K], of image `row_of` [M] each."""
    votes = np.zeros((2, n_images, values.shape[1]), dtype=np.int64)
    for value in (0, 1):
        np.add.at(votes[value], row_of, values == value)
    return votes


def consensus(votes: NDArray[np.int64], min_votes: int) -> NDArray[np.float32]:
    """Return the majority [N, K] of votes; NaN at ties, and where fewer than `min_votes` agree."""
    absent, present = votes
    decided = (absent != present) & (votes.max(axis=0) >= min_votes)
    return np.where(decided, present > absent, np.nan).astype(np.float32)


def alpha(votes: NDArray[np.int64]) -> float | None:
    """Return Krippendorff's alpha of an attribute's votes [2, N]; None where all annotators gave one value.

    It is Cohen's kappa over all ordered pairs of votes about one image, each weighted by 1 / (votes of the image - 1),
    with the correction for few votes; so it takes any number of annotators, and images that some of them left out.
    """
    from sklearn.metrics import cohen_kappa_score

    absent, present = votes[:, votes.sum(axis=0) >= 2].astype(float)
    n_votes = absent + present
    same = [(own * (own - 1) / (n_votes - 1)).sum() for own in (absent, present)]
    other = (absent * present / (n_votes - 1)).sum()
    if not absent.sum() or not present.sum():
        return None
    kappa = cohen_kappa_score([0, 0, 1, 1], [0, 1, 0, 1], sample_weight=[same[0], other, other, same[1]])
    return float(1 - (1 - kappa) * (n_votes.sum() - 1) / n_votes.sum())


def agreement(votes: NDArray[np.int64], attributes: list[str], n_annotators: int) -> dict[str, Any]:
    """Return the content of agreement.json for votes [2, N, K]."""
    absent, present = votes
    shared, tied = absent + present >= 2, (absent == present) & (present > 0)
    unanimous = shared & ((absent == 0) | (present == 0))
    counts = zip(shared.sum(axis=0).tolist(), unanimous.sum(axis=0).tolist(), tied.sum(axis=0).tolist(), strict=True)
    rows = {
        name: dict(zip(_KEYS, (alpha(votes[:, :, column]), *own), strict=True))
        for column, (name, own) in enumerate(zip(attributes, counts, strict=True))
    }
    return {"measure": MEASURE, "n_annotators": n_annotators, "per_attribute": rows}


def read_agreement(label_file: str | Path, attributes: list[str]) -> dict[str, Any] | None:
    """Return the agreement.json beside a label file, of the given attributes; None where there is none."""
    path = Path(label_file).parent / AGREEMENT_FILE
    if not Path(label_file).is_file() or not path.is_file():
        return None
    content = read_json(path)
    try:
        rows = {name: content["per_attribute"][name] for name in attributes if name in content["per_attribute"]}
        for row in rows.values():
            row["alpha"] = None if row["alpha"] is None else float(row["alpha"])
        return {
            "measure": str(content["measure"]),
            "n_annotators": int(content["n_annotators"]),
            "per_attribute": {name: {key: row[key] for key in _KEYS} for name, row in rows.items()},
        }
    except (KeyError, TypeError, ValueError) as error:
        raise AimonkError(f"{path} is damaged ({reason_of(error)}): import again") from error


def describe_agreement(content: dict[str, Any]) -> str:
    """Return one sentence about how far annotators agree: no model can beat its labels."""
    rows = content["per_attribute"].items()
    known = sorted((row["alpha"], name) for name, row in rows if row["alpha"] is not None)
    if not known:
        return f"{content['n_annotators']} annotators labelled these images; how far they agree is unknown"
    ends = " to ".join(dict.fromkeys(f"{figure(value, 2)} ({name})" for value, name in (known[0], known[-1])))
    return f"no model can beat its labels: {content['n_annotators']} annotators agree by Krippendorff's alpha {ends}"


def agreement_table(content: dict[str, Any]) -> str:
    """Return the agreement on each attribute, over the images with several votes."""
    header = ["attribute", "alpha", "several votes", "all agree", "ties"]
    rows = content["per_attribute"].items()
    return table(header, [[name, figure(row["alpha"], 2), *(str(row[key]) for key in _KEYS[1:])] for name, row in rows])
