"""Failures that a user can mend, told in one line."""


class AimonkError(ValueError):
    """An expected failure; its text is one line that says what is wrong and what to do."""


class ImageError(AimonkError):
    """An image that cannot be read; its text is the reason, without the image's name."""


class NotFiniteError(AimonkError):
    """A loss, a weight or an output of the network that is infinite or NaN."""


def reason_of(error: BaseException) -> str:
    """Return an error's reason on one line, without a heading such as "Error(s) in loading state_dict for VOLO:"."""
    kind = type(error).__name__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [f"{kind} without a reason"]
    line = lines[1] if len(lines) > 1 and lines[0].endswith(":") else lines[0]
    return (f"{kind}: {line}" if isinstance(error, LookupError) else line)[:300].rstrip(". ")


def near_names(name: str, candidates: list[str]) -> str:
    """Return " (did you mean a, b?)" for the candidates closest to `name`, or an empty string."""
    from difflib import get_close_matches

    found = get_close_matches(name, candidates, n=3, cutoff=0.6)
    return f" (did you mean {', '.join(found)}?)" if found else ""
