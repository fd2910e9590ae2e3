"""Options of reading label files; each is a flag of the commands that read labels, and a setting of a run."""

from dataclasses import dataclass, field, fields
from typing import Any


def _option(help: str) -> Any:
    return field(default=None, metadata={"help": help})


@dataclass(frozen=True)
class ReadOptions:
    """Decisions about a label file that the file itself cannot give; None leaves them to the reader."""

    attributes: list[str] | None = _option("a,b,c: columns that hold labels, or names for those of a labels.txt")
    ignore_columns: list[str] | None = _option("a,b,c: columns that hold no labels")
    image_column: str | None = _option("column of the image names, if it has none of the usual names")
    encoding: str | None = _option("encoding of the label file, such as latin-1, if it is not UTF-8 or UTF-16")
    missing_values: list[str] | None = _option("a,b,c: values that mean a missing label, such as -1")
    absent_values: list[str] | None = _option("a,b,c: values that mean absent, such as -1")
    present_values: list[str] | None = _option("a,b,c: values that mean present")
    present_above: float | None = _option("numbers above X mean present, the others absent")
    group_column: str | None = _option("column of the product, person or site: its images stay in one part")
    split_column: str | None = _option("column of the part of each image: train, validation or report")

    @classmethod
    def of(cls, settings: Any) -> "ReadOptions":
        """Return the options among the attributes of a TrainConfig or of parsed flags."""
        return cls(**{option.name: getattr(settings, option.name) for option in fields(cls)})


NO_OPTIONS = ReadOptions()
READ_HELP: dict[str, str] = {option.name: option.metadata["help"] for option in fields(ReadOptions)}
