"""Named training settings, read from TOML files: this library's own, the published systems', and users' own."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aimonk_hf.errors import AimonkError, near_names
from aimonk_hf.storage import explained

_PRESETS = Path(__file__).parent / "presets"
_KINDS = {"settings": dict, "extends": str, "system": str, "unsaid": str}


@dataclass(frozen=True)
class Recipe:
    """Settings by name; each is a field of `TrainConfig`, and a flag overrides it.

    `system` names what the recipe reproduces, `unsaid` what that system left open and was chosen here.
    """

    name: str
    system: str
    settings: dict[str, Any]
    unsaid: str


def list_recipes() -> list[Recipe]:
    """Return every preset: this library's own first, then those of the published systems."""
    return [get_recipe(name) for name in _preset_files()]


def get_recipe(name: str) -> Recipe:
    """Return the preset of that name, or the recipe in a TOML file of yours.

    A recipe file holds `[settings]`, and as far as wanted `extends` (the recipe it starts from: a preset, or a file
    beside it), `system` and `unsaid`. Raises `AimonkError` for an unknown name, with near ones, and for a file that is
    no recipe.
    """
    presets = _preset_files()
    path = presets.get(name) or Path(name)
    if path.suffix != ".toml":
        near = near_names(name, list(presets))
        advice = "`aimonk-hf recipes` lists them; a file of your own ends in .toml"
        raise AimonkError(f"Unknown recipe {name!r}{near}: {advice}")
    values = _read(path, presets, seen=())
    return Recipe(name, values.get("system", ""), values["settings"], values.get("unsaid", ""))


def _preset_files() -> dict[str, Path]:
    return {path.stem: path for folder in (_PRESETS, _PRESETS / "published") for path in sorted(folder.glob("*.toml"))}


def _read(path: Path, presets: dict[str, Path], seen: tuple[Path, ...]) -> dict[str, Any]:
    """Return the keys of a recipe file over those of the recipes that it extends."""
    if path in seen:
        raise AimonkError(f"{seen[-1]}: the recipe extends itself through {path.name}")
    with explained(f"read the recipe {path}"):
        content = path.read_bytes()
    try:
        values = tomllib.loads(content.decode())
    except ValueError as error:  # neither TOML nor UTF-8
        raise AimonkError(f"{path} is not a recipe: {error}") from error
    if wrong := [key for key, value in values.items() if not isinstance(value, _KINDS.get(key, ()))]:
        advice = "put settings below [settings]"
        raise AimonkError(f"{path}: {wrong[0]!r} does not belong at the top of a recipe; {advice}")
    settings, base = values.get("settings", {}), values.get("extends")
    earlier = _read(presets.get(base, path.parent / base), presets, (*seen, path)) if base else {}
    return earlier | values | {"settings": earlier.get("settings", {}) | settings}
