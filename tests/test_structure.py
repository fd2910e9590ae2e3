"""Hold the layout: imports point one way, importing costs nothing, the public names are there."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import aimonk_hf

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "aimonk_hf"

# A module may import from its own folder and from those before it; `.` holds the modules outside the folders.
FOLDERS = [".", "data", "modeling", "evaluation", "audit", "training", "app", "cli"]


def modules() -> dict[str, Path]:
    """Every module but the two entrances and the folders' docstrings, by its name below the package ("data.labels")."""
    paths = [path for path in PACKAGE.rglob("*.py") if path.name not in ("__init__.py", "__main__.py")]
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in paths}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("aimonk_hf."):
            below = (node.module or "").removeprefix("aimonk_hf.")
            found |= {below} | {f"{below}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("aimonk_hf.") for alias in node.names}
    return found


def folder_of(module: str) -> str:
    return module.split(".")[0] if "." in module else "."


def test_imports_point_one_way() -> None:
    every = modules()
    assert {folder_of(module) for module in every} == set(FOLDERS)
    for module, path in every.items():
        later = FOLDERS[FOLDERS.index(folder_of(module)) + 1 :]
        found = {other for other in imported(path) & set(every) if folder_of(other) in later}
        assert not found, f"{module} imports {found} from a later folder"


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    every = modules()
    graph = {module: imported(path) & set(every) - {module} for module, path in every.items()}
    while leaves := [module for module, needs in graph.items() if not needs]:
        for leaf in leaves:
            del graph[leaf]
        for needs in graph.values():
            needs -= set(leaves)
    assert not graph


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = ["torch", "timm", "gradio", "matplotlib", "accelerate", "numpy", "PIL", "transformers"]
    code = "import aimonk_hf, sys, logging, warnings; "
    code += f"print([m for m in {heavy} if m in sys.modules], logging.root.handlers)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"


def test_the_public_names() -> None:
    classes = "AimonkConfig AimonkModel AimonkPredictor BatchPredictor TrainConfig AttributeDataset"
    expected = f"{classes} read_labels train evaluate tune_thresholds compare"
    assert set(aimonk_hf.__all__) == {*expected.split(), "get_recipe", "__version__"}
    assert dir(aimonk_hf) == sorted(aimonk_hf.__all__)
    for name in aimonk_hf.__all__:
        assert getattr(aimonk_hf, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        aimonk_hf.nonsense  # noqa: B018


def test_modules_fit_in_the_head_and_functions_on_a_screen() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        # the loop reads from top to bottom in one module
        assert text.count("\n") <= (400 if path.name == "loop.py" else 300), path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                assert lines <= 60, f"{path}: {node.name} has {lines} lines"


def test_the_architecture_page_lists_every_module() -> None:
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    listed = re.findall(r"^(?:\| |  +)`?(\S+\.py)`? ", page, re.M)
    for path in modules().values():
        name = path.relative_to(PACKAGE).as_posix()
        assert name in listed, f"{name} has no line in docs/ARCHITECTURE.md"


def test_the_makefile_names_tests_that_are_there() -> None:
    listed = re.search(r"^CONTRACT := ((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text(), re.M)
    assert listed
    names = listed[1].replace("\\", "").split()
    assert [name for name in names if not (ROOT / "tests" / f"test_{name}.py").is_file()] == []
    assert len(names) > 20
