"""Draw the images of an audit's findings on one sheet."""

from pathlib import Path

from aimonk_hf.audit.checks import Audit
from aimonk_hf.data.duplicates import conflicts
from aimonk_hf.evaluation.plots import ORANGE, Tile, draw_images, save_figure

_MOST_PER_SECTION = 24


def write_contact_sheet(audited: Audit, path: Path) -> bool:
    """Draw duplicates, unusual files and the most suspect labels; return False where there are none."""
    sections = {}
    for title, tiles in _sections(audited).items():
        more = f" (the first {_MOST_PER_SECTION} of {len(tiles)} images)" if len(tiles) > _MOST_PER_SECTION else ""
        if tiles:
            sections[title + more] = tiles[:_MOST_PER_SECTION]
    if sections:
        save_figure(draw_images(sections), path)
    return bool(sections)


def _sections(audited: Audit) -> dict[str, list[Tile]]:
    dataset, files = audited.dataset, audited.findings["files"]
    names, paths = dataset.attributes, dataset.paths
    conflicting: list[Tile] = []
    agreeing: list[Tile] = []
    for pair in sorted(audited.pairs, key=lambda pair: (pair.kind, -pair.correlation)):
        found = conflicts(pair, dataset.labels.values, names)
        for side, row in enumerate((pair.first, pair.second)):
            told = ", ".join(f"{name} {values[side]}" for name, values in found.items())
            (conflicting if found else agreeing).append(Tile(paths[row], f"{pair.kind} pair\n{told}", ORANGE))
    suspects = []
    for one in audited.suggestions:
        if one.kind == "suspect":
            told = f"labelled {names[one.attribute]} {one.label}\nscore {one.score:.2f}"
            suspects.append(Tile(paths[one.row], told, ORANGE))
    unusual = [pair for kind in ("odd_mode", "tiny", "misnamed") for pair in files[kind].items()]
    return {
        "duplicates whose labels conflict, pair by pair": conflicting,
        "most suspect labels": suspects,
        "duplicates whose labels agree": agreeing,
        "unusual files": [Tile(dataset.images_dir / name, note, ORANGE) for name, note in unusual],
    }
