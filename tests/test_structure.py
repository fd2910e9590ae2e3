"""What the layout promises: imports point one way, importing costs nothing, the public names are there."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import aimonk_hf

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "aimonk_hf"

# A module may import from its own tier and those before it. A folder counts as one module.
TIERS = [
    set(names.split())
    for names in (
        "errors storage config images labels metadata_csv splits losses metrics intervals signal_test data seeding console hub hub_push "
        "persistence progress freezing epoch_choice epoch_sums mixing published_recipes pixel_cache stop_request",
        "plots prediction prediction_html inference processing augmentation backbones recipes train_config thresholds calibration label_checks "
        "near_duplicates card sample_data spaces",
        "modeling predict_files batches optimisation checkpoints devices suspect_labels audit audit_report contact_sheet probe run_folder",
        "evaluation judging run_parts report_plots convert export demo app",
        "validation frozen_features trainer fitting cross_validation training",
        "cli_judging cli_sharing cli",
        "__main__",
    )
]


def modules() -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if name != "__init__":
            found.setdefault(name, []).append(path)
    return found


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("aimonk_hf"):
            parts = (node.module or "").split(".")
            names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("aimonk_hf.")}
    return names


def test_imports_point_one_way() -> None:
    tier_of = {name: number for number, tier in enumerate(TIERS) for name in tier}
    found = modules()
    assert set(found) <= set(tier_of), "give new modules a tier"
    for name, paths in found.items():
        for path in paths:
            later = {other for other in imported(path) & set(tier_of) if tier_of[other] > tier_of[name]}
            assert not later, f"{path.name} imports {later} from a later tier"


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    graph = {name: set().union(*map(imported, paths)) & set(modules()) - {name} for name, paths in modules().items()}
    while leaves := [name for name, needs in graph.items() if not needs]:
        for leaf in leaves:
            del graph[leaf]
        for needs in graph.values():
            needs -= set(leaves)
    assert not graph


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = ["torch", "timm", "gradio", "matplotlib", "accelerate", "numpy", "PIL", "transformers"]
    code = f"import aimonk_hf, sys, logging, warnings; print([m for m in {heavy} if m in sys.modules], logging.root.handlers)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"


def test_the_ten_names() -> None:
    expected = "AimonkConfig AimonkModel TrainConfig AttributeDataset read_labels train evaluate tune_thresholds get_recipe __version__"
    assert set(aimonk_hf.__all__) == set(expected.split())
    assert dir(aimonk_hf) == aimonk_hf.__all__
    for name in aimonk_hf.__all__:
        assert getattr(aimonk_hf, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        aimonk_hf.nonsense  # noqa: B018


def test_modules_fit_in_the_head() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert text.count("\n") <= 320, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path.name} {node.name}"


def test_entry_points_are_a_few_lines() -> None:
    for name in ("train.py", "app.py"):
        assert (ROOT / name).read_text().count("\n") < 30


def test_the_readme_lists_every_module() -> None:
    readme = (ROOT / "README.md").read_text()
    for name, paths in modules().items():
        if name != "__main__":
            assert f"  {name}/" in readme or f"  {paths[0].name} " in readme, f"{name} is missing in README.md's file tree"
