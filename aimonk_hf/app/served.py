"""What one running app serves: the model, its name, and the limits; and the answers that page and API share."""

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from aimonk_hf.app.decisions import panel_rows, read_thresholds, rounded, slugs, summary
from aimonk_hf.app.scoring import Scorer
from aimonk_hf.app.uploads import Limits, open_upload, read_entry
from aimonk_hf.errors import AimonkError, ImageError
from aimonk_hf.modeling.prediction import Prediction
from aimonk_hf.modeling.weights import CONFIG_FILE
from aimonk_hf.storage import read_json, write_json


@dataclass
class Served:
    """A model behind the app; `save_folder` is where visitors may write thresholds, None where they may not.

    Whoever writes must send `token`, which only the page of this start holds.
    """

    scorer: Scorer
    name: str
    limits: Limits
    save_folder: Path | None = None
    token: str = field(default_factory=secrets.token_urlsafe)

    @property
    def stored(self) -> dict[str, float]:
        """The model's thresholds by attribute."""
        return self.scorer.model.config.thresholds

    @property
    def slugs(self) -> dict[str, str]:
        """The API's parameter name of each attribute."""
        return dict(zip(self.stored, slugs(list(self.stored)), strict=True))

    def read(self, value: Any) -> tuple[Tensor, list[str]]:
        """Return the pixels [3, H, W] that the network sees of the picture in a file field, and notes; raises `ImageError`."""
        with read_entry(open_upload(value, self.limits), self.limits) as source, self.scorer.read(source) as picture:
            return self.scorer.model.transform.pixels(picture.image), picture.notes

    def predict(self, value: Any, thresholds: dict[str, Any]) -> tuple[dict[str, float], list[str], list[str]]:
        """Return scores, present attributes and notes of an uploaded picture; thresholds that are None are the stored ones.

        Raises `AimonkError`.
        """
        resolved = read_thresholds(self.stored, thresholds)
        pixels, notes = self.read(value)
        scores = self.scorer.score(pixels)
        return rounded(scores), Prediction(scores, resolved).attributes, notes

    def panel(
        self,
        scores: dict[str, float] | None,
        thresholds: dict[str, float] | None,
        kind: str,
        message: str = "",
        error: bool = False,
        moves: int = 0,
    ) -> dict[str, Any]:
        """Return the value of the attribute panel; `kind` is "scored" where scores are new, "decided" where only thresholds moved."""
        rows = panel_rows(self.stored, thresholds or self.stored, scores)
        return {
            "rows": rows,
            "kind": kind,
            "message": message or summary(rows) or "Choose a picture: the scores appear here.",
            "error": error,
            "moves": moves,
            "token": "" if self.save_folder is None else self.token,
        }

    def save_thresholds(self, thresholds: dict[str, float], token: Any) -> str:
        """Write the thresholds into the model folder's config.json and return a sentence about it; raises `AimonkError`."""
        if self.save_folder is None:
            raise AimonkError("saving is off: start the app with --allow-save and a local model folder")
        if not secrets.compare_digest(str(token).encode(), self.token.encode()):
            raise AimonkError("this page is of an earlier start of the app, and nothing was saved: load it again")
        path = self.save_folder / CONFIG_FILE
        write_json(path, read_json(path) | {"thresholds": thresholds})
        self.scorer.model.config.thresholds = dict(thresholds)
        return f"Saved {len(thresholds)} thresholds. The model's metrics were measured with the earlier ones: aimonk-hf evaluate measures anew."


def score_upload(served: Served, value: Any) -> tuple[dict[str, float] | None, str]:
    """Return the scores of a picture and a sentence about it; scores are None where it cannot be used, and the sentence says why."""
    try:
        pixels, notes = served.read(value)
        return served.scorer.score(pixels), " ".join(notes)
    except ImageError as error:
        return None, f"This picture cannot be used: {error}."
    except AimonkError as error:
        return None, f"{error}."
