"""The documents hold true: their commands are run or parsed, their code compiles, their links lead somewhere."""

import argparse
import ast
import importlib
import inspect
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import dropwhile
from pathlib import Path
from typing import Any

import pytest

from aimonk_hf.cli.main import _parser, main

ROOT = Path(__file__).parents[1]
# docs/LOG.md and CHANGELOG.md tell of earlier versions, whose commands may be gone.
HISTORY = [ROOT / "docs/LOG.md", ROOT / "CHANGELOG.md"]
DOCUMENTS = sorted({ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")} - {*HISTORY})

# Commands that run here as they are.
RUN = {"aimonk-hf recipes", "aimonk-hf sample-data"}
# Commands that are only parsed, and the reason; the tests named run them.
NOT_RUN = {
    "aimonk-hf train": "trains for minutes: test_training",
    "aimonk-hf predict": "needs a model: test_cli",
    "aimonk-hf evaluate": "needs a model: test_report",
    "aimonk-hf compare": "needs models: test_compare",
    "aimonk-hf tune": "needs a model: test_report",
    "aimonk-hf audit": "needs data, and for --probe a pretrained backbone: test_audit",
    "aimonk-hf import": "needs the files of other tools: test_import_command",
    "aimonk-hf label": "serves until it is stopped: test_labelling",
    "aimonk-hf app": "serves until it is stopped: test_app_api",
    "aimonk-hf export": "needs a model: test_export",
    "aimonk-hf convert": "needs a checkpoint: test_convert",
    "aimonk-hf push": "needs the Hub: test_hub",
    "aimonk-hf push-space": "needs the Hub: test_spaces",
    "make": "installs, trains or measures; the target must exist",
    "pytest": "runs other tests; the files must exist",
    "benchmarks": "measure for minutes; the script and its flags must exist",
    "examples": "need an archive from the network; the script and its flags must exist",
    "pip": "installs; the extras must exist",
    "other": "cd, curl, hf and assignments of the shell",
}


def blocks(path: Path, languages: str) -> list[str]:
    return re.findall(rf"^ *```(?:{languages})\n(.*?)^ *```", path.read_text(), re.M | re.S)


def prose(path: Path) -> str:
    return re.sub(r"^ *```.*?^ *```", "", path.read_text(), flags=re.M | re.S)


def commands(path: Path) -> Iterator[list[str]]:
    """Yield the words of each command in the shell blocks, without comments."""
    for block in blocks(path, "bash|sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def subcommands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (one for one in _parser()._actions if isinstance(one, argparse._SubParsersAction))
    return dict(action.choices)


def arguments_of(words: list[str]) -> list[str]:
    """Return the arguments of `aimonk-hf` that a command amounts to; none for another program."""
    words = list(dropwhile(re.compile(r"[A-Z_]+=").match, words))  # settings of the environment
    if words and words[0].removeprefix(".venv/bin/") == "aimonk-hf":
        return words[1:]
    if words and words[0] in ("hf", "uv") and "aimonk-hf" in words:  # run by another program
        return words[words.index("aimonk-hf") + 1 :]
    for entrance, before in (("app.py", ["app"]), ("train.py", ["train"]), ("aimonk_hf", [])):
        if entrance in words:
            return before + words[words.index(entrance) + 1 :]
    return []


def kind_of(words: list[str]) -> str:
    if arguments := arguments_of(words):
        return f"aimonk-hf {arguments[0]}"
    program = words[0].removeprefix(".venv/bin/")
    if program == "python":
        return words[2] if words[1] == "-m" else words[1].split("/")[0]
    return "other" if program in ("cd", "curl", "hf") or "=" in program else program


def test_jobs_are_understood_by_the_hub_s_own_command(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [words for words in commands(ROOT / "docs/JOBS.md") if words[:4] == ["hf", "jobs", "uv", "run"]]
    assert len(jobs) == 2
    monkeypatch.setenv("HF_HUB_DISABLE_UPDATE_CHECK", "1")
    for words in jobs:
        command = [sys.executable, "-m", "huggingface_hub.cli.hf", *words[1:4], "--dry-run", *words[4:]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "Job not submitted" in done.stdout + done.stderr, done.stderr[-500:]
        told = re.sub(r"\s+", " ", done.stdout + done.stderr)
        assert "script aimonk-hf args " + " ".join(arguments_of(words)) in told
        assert "hf://datasets/user/garments:/garments" in told


def flags_of(script: Path) -> set[str]:
    return {"--help", *re.findall(r'"(--[a-z0-9-]+)"', script.read_text())}


TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def unknown_to(words: list[str]) -> set[str]:
    """Return the names in a command that is not ours which do not exist."""
    kind = kind_of(words)
    if kind == "make":
        return {word for word in words[1:] if "=" not in word} - TARGETS
    if kind in ("benchmarks", "examples"):
        return {word.partition("=")[0] for word in words if word.startswith("--")} - flags_of(ROOT / words[1])
    if kind == "pytest":
        return {word for word in words if word.startswith("tests/") and not (ROOT / word).exists()}
    return set(re.findall(r"\[(\w+)\]", " ".join(words))) - EXTRAS if kind == "pip" else set()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_are_understood(path: Path, capsys: pytest.CaptureFixture) -> None:
    for words in commands(path):
        assert kind_of(words) in RUN | set(NOT_RUN), f"{words}: say in RUN or NOT_RUN what to do with it"
        if arguments := arguments_of(words):
            try:
                _parser().parse_args(arguments)
            except SystemExit as stopped:
                assert not stopped.code, f"{words}: {capsys.readouterr().err.splitlines()[-1]}"  # noqa: PT017
        assert not unknown_to(words), words


def test_cheap_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    every = [words for path in DOCUMENTS for words in commands(path)]
    for arguments in [arguments_of(words) for words in every if kind_of(words) in RUN]:
        assert main([*arguments, "--images", "4"] if "sample-data" in arguments else arguments) == 0
        assert capsys.readouterr().out
    for name in subcommands():
        with pytest.raises(SystemExit) as stopped:
            main([name, "--help"])
        assert not stopped.value.code
    named = {kind_of(words) for words in every}
    assert all((ROOT / f"tests/{name}.py").exists() for name in re.findall(r"test_\w+", " ".join(NOT_RUN.values())))
    assert named == RUN | set(NOT_RUN), "a command of the table that no document names, or the other way round"
    assert {f"aimonk-hf {name}" for name in subcommands()} <= named, "a command without an example"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_inline_code_names_commands_and_flags_that_exist(path: Path) -> None:
    known = {name: set(parser._option_string_actions) for name, parser in subcommands().items()}
    anywhere = set().union(*known.values(), *map(flags_of, ROOT.glob("benchmarks/*.py")))
    for code in re.findall(r"`([^`]+)`", prose(path)):
        flags = set(re.findall(r"(?<![\w-])--[a-z0-9-]+", code))
        if code.startswith("make "):
            assert set(re.findall(r"[a-z-]+", code)[1:]) <= TARGETS, code
        elif command := re.match(r"aimonk-hf ([a-z-]+)", code):
            assert flags <= known[command[1]], code
        elif code.startswith("--"):
            assert flags <= anywhere, code


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_python_compiles_and_its_names_exist(path: Path) -> None:
    for block in blocks(path, "python"):
        tree, known = ast.parse(block), {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("aimonk_hf"):
                module = importlib.import_module(str(node.module))
                known |= {alias.name: getattr(module, alias.name) for alias in node.names}
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            if called := _called(call.func, known):
                parameters = inspect.signature(called).parameters
                if not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
                    assert {word.arg for word in call.keywords} <= set(parameters), ast.unparse(call)


def _called(function: ast.expr, known: dict[str, Any]) -> Any:
    """Return the function or class that a call names: an imported one, or a method of an imported class."""
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id in known:
        return getattr(known[function.value.id], function.attr)
    return known.get(function.id) if isinstance(function, ast.Name) else None


@pytest.mark.parametrize("path", [*DOCUMENTS, *HISTORY], ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(path))):
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        assert "://" in target or linked.exists(), target
        if anchor and "://" not in target:
            titles = re.findall(r"^#+ (.*)", linked.read_text(), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_the_readme_is_short_and_links_every_document() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 150
    assert all(f"]({path.relative_to(ROOT)})" in text for path in (*DOCUMENTS, *HISTORY) if path.name != "README.md")
