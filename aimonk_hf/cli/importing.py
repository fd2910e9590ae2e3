"""The command import: other tools' labels become a data folder."""

import argparse
import sys
from pathlib import Path

from aimonk_hf.cli.flags import Command, add_reading_flags
from aimonk_hf.errors import AimonkError, near_names

FORMAT_NAMES = [
    *("celeba", "chexpert", "coco", "folders", "hub", "label-studio", "mat", "roboflow", "table", "tags", "xlsx")
]


def add_import_command(command: Command) -> None:
    """Add the command to the parser."""
    parser = command("import", _import, "make a data folder of another tool's labels")
    flag = parser.add_argument
    flag("source", metavar="SOURCE", help="file or folder of the labels, or hf://datasets/user/name")
    flag("--output", type=Path, required=True, metavar="DATA", help="new data folder: labels.csv and import.md")
    flag("--format", metavar="NAME", help=f"{', '.join(FORMAT_NAMES)} (recognised by names and content)")
    flag("--images-dir", type=Path, metavar="DIR", help="folder below which the images are (that of SOURCE)")
    flag("--copy", action="store_true", help="copy the images into DATA/images instead of referring to them")
    flag("--blank", choices=("absent", "missing"), help="chexpert: how to take a blank cell")
    flag("--uncertain", choices=("missing", "present", "absent"), help="chexpert: how to take -1")
    listed = "coco, tags, folders, hub, label-studio: how to take an attribute that an image does not list"
    flag("--unlisted", choices=("absent", "missing"), help=listed)
    flag("--tag-separator", metavar="SIGN", help="tags: the sign between two tags of one cell")
    votes = "several annotators: NA where fewer than N agree; ties are NA in any case (1)"
    flag("--min-votes", type=int, default=1, metavar="N", help=votes)
    add_reading_flags(parser)


def _import(options: argparse.Namespace) -> int:
    from aimonk_hf.data.agreement import agreement_table, describe_agreement
    from aimonk_hf.data.importers.rows import Told
    from aimonk_hf.data.imports import import_labels, train_command
    from aimonk_hf.data.labels import labels_table
    from aimonk_hf.data.read_options import ReadOptions

    if options.format not in (None, *FORMAT_NAMES):
        hint = near_names(options.format, FORMAT_NAMES)
        raise AimonkError(f"--format {options.format} is unknown{hint}; known are {', '.join(FORMAT_NAMES)}")
    if options.min_votes < 1:
        raise AimonkError("--min-votes must be at least 1")
    decided = options.blank, options.uncertain, options.unlisted, options.tag_separator
    told = Told(options.source, *decided, ReadOptions.of(options))
    place = options.format, options.images_dir, options.min_votes, options.copy
    done = import_labels(told, options.output, *place)
    print(labels_table(done.labels))
    if done.agreement:
        print(agreement_table(done.agreement))
        print(describe_agreement(done.agreement))
    print(f"written:  {len(done.labels)} images in {done.labels.source}; {options.output / 'import.md'} says how")
    print(f"train:    {train_command(options.output, done.labels)}")
    for reason in done.refused:
        print(f"refused:  {reason}", file=sys.stderr)
    return 1 if done.refused else 0
