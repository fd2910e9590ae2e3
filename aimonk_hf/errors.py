"""Failures that a user can mend, told in one line."""


class AimonkError(ValueError):
    """An expected failure; its text is one line that says what is wrong and what to do."""


class ImageError(AimonkError):
    """An image that cannot be read; its text is the reason, without the image's name."""


class LossNotFinite(AimonkError):
    """A training step whose loss is infinite or no number."""


def near_names(name: str, candidates: list[str], prefix: str = "did you mean ") -> str:
    """Return " (did you mean a, b?)" for the candidates closest to `name`, or an empty string."""
    from difflib import get_close_matches

    found = get_close_matches(name, candidates, n=3, cutoff=0.6)
    return f" ({prefix}{', '.join(found)}?)" if found else ""
