"""What the model says of one image."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aimonk_hf.data.images import ImageSource


@dataclass
class Prediction:
    """Scores in [0, 1] and the thresholds that decide; `image` names the file where there is one.

    `source` is the caller's own picture (never a copy), for showing it where there is no file.
    """

    scores: dict[str, float]
    thresholds: dict[str, float]
    image: str | None = None
    source: "ImageSource | None" = field(default=None, repr=False, compare=False)

    @property
    def attributes(self) -> list[str]:
        """The present attributes: those whose score reaches their threshold, in the model's order."""
        return [name for name, score in self.scores.items() if score >= self.thresholds[name]]

    def __str__(self) -> str:
        from aimonk_hf.data.images import shown_name

        present = dict.fromkeys(self.attributes)
        width = max(len("attribute"), *map(len, self.scores))
        lines = [shown_name(self.image)] if self.image else []
        lines.append(f"  {'attribute':{width}}  {'':7}  score  threshold")
        for name, score in self.scores.items():
            state = "present" if name in present else "absent"
            lines.append(f"  {name:{width}}  {state:7}  {score:5.3f}  {self.thresholds[name]:9.3f}")
        lines.append(f"  present: {', '.join(present) or 'none'}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Show picture, scores and thresholds in a notebook."""
        from aimonk_hf.modeling.prediction_html import prediction_html

        source = self.image if self.source is None else self.source
        return prediction_html(self.scores, self.thresholds, self.attributes, self.image, source)
