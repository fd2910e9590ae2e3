"""What the model says of one image."""

from dataclasses import dataclass


@dataclass
class Prediction:
    """Scores in [0, 1] and the thresholds that decide; `image` names the file where there is one."""

    scores: dict[str, float]
    thresholds: dict[str, float]
    image: str | None = None

    @property
    def attributes(self) -> list[str]:
        """The present attributes: those whose score reaches their threshold, in the model's order."""
        return [name for name, score in self.scores.items() if score >= self.thresholds[name]]

    def __str__(self) -> str:
        present = self.attributes
        width = max(len("attribute"), *map(len, self.scores))
        lines = [self.image] if self.image else []
        lines.append(f"  {'attribute':{width}}  {'':7}  score  threshold")
        for name, score in self.scores.items():
            state = "present" if name in present else "absent"
            lines.append(f"  {name:{width}}  {state:7}  {score:5.3f}  {self.thresholds[name]:9.3f}")
        lines.append(f"  present: {', '.join(present) or 'none'}")
        return "\n".join(lines)
