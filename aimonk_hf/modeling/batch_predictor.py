"""Predict columns of images: for Ray Data, Hugging Face datasets and Spark."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np

from aimonk_hf.errors import AimonkError, ImageError
from aimonk_hf.modeling.predicting import Thresholds
from aimonk_hf.modeling.predictor import AimonkPredictor
from aimonk_hf.storage import score_columns


class BatchPredictor:
    """A function from a dict of columns to a dict of columns that can be sent to other processes.

    The model is loaded at the first call in each process; only its name and `options` (those of
    `AimonkPredictor.from_pretrained`) travel.

        dataset.map_batches(BatchPredictor("user/repo", column="path"), batch_size=64)   # Ray Data
        dataset.map(BatchPredictor("user/repo"), batched=True)                           # datasets
    """

    def __init__(
        self,
        model: str | PathLike[str],
        column: str = "image",
        thresholds: Thresholds = None,
        batch_size: int = 32,
        workers: int | None = None,
        **options: Any,
    ) -> None:
        self.model, self.column, self.thresholds = model, column, thresholds
        self.batch_size, self.workers, self.options = batch_size, workers, options
        self._predictor: AimonkPredictor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_predictor": None}

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Return the other columns of the batch and, for each row, one score per attribute, `attributes` and `error`.

        Images are paths, bytes, arrays [H, W, 3] uint8, PIL images, or dicts with `bytes` or `path`; paths stay in the
        result. A row whose image cannot be read has NaN scores, no attributes and the reason in `error`. An attribute
        named as another column gets the column `score:NAME`. Raises `AimonkError` for a batch without the column.
        """
        if self.column not in batch:
            raise AimonkError(f"The batch has no column {self.column!r}; it has {', '.join(map(str, batch))}")
        if self._predictor is None:
            self._predictor = AimonkPredictor.from_pretrained(self.model, **self.options)
        images = [_source(value) for value in batch[self.column]]
        kept = {name: values for name, values in batch.items() if name != self.column}
        if images and all(isinstance(image, str) for image in images):
            kept[self.column] = batch[self.column]
        names = self._predictor.config.attributes
        scores = np.full((len(images), len(names)), np.nan)
        attributes: list[list[str]] = [[] for _ in images]
        errors = [""] * len(images)
        stream = self._predictor.stream(images, self.thresholds, self.batch_size, workers=self.workers)
        for row, (_, found) in enumerate(stream):
            if isinstance(found, ImageError):
                errors[row] = str(found)
            else:
                scores[row], attributes[row] = list(found.scores.values()), found.attributes
        columns = (f"score:{name}" if name in kept else name for name in score_columns(names))
        return kept | dict(zip(columns, scores.T, strict=True)) | {"attributes": attributes, "error": errors}


def _source(value: Any) -> Any:
    """Return the image of a cell; `datasets` without decoding gives a dict, numpy its own strings."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path") or b""
    return str(value) if isinstance(value, str) else value
