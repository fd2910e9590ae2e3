"""The documents hold true: their commands are run or parsed, their code compiles, their links lead somewhere."""

import argparse
import ast
import importlib
import inspect
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from aimonk_hf.cli.main import _parser, main

ROOT = Path(__file__).parents[1]
# docs/LOG.md and CHANGELOG.md tell of earlier versions, whose commands may be gone.
DOCUMENTS = sorted(
    {ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")} - {ROOT / "docs/LOG.md"}
)
LINKED = [*DOCUMENTS, ROOT / "docs/LOG.md", ROOT / "CHANGELOG.md"]

# Commands that these tests run as they stand; `--help` of any command is run too.
RUN = {"aimonk-hf recipes", "aimonk-hf sample-data"}
# Commands that these tests only parse, and why; one that no document names is an error.
NOT_RUN = {
    "aimonk-hf train": "trains for minutes: test_training, test_recipes, test_stopping",
    "aimonk-hf predict": "needs a model: test_cli",
    "aimonk-hf evaluate": "needs a model: test_report",
    "aimonk-hf tune": "needs a model: test_report",
    "aimonk-hf audit": "needs data and, with --probe, a pretrained backbone: test_audit",
    "aimonk-hf app": "serves until it is stopped: test_app_start",
    "aimonk-hf export": "needs a model: test_export",
    "aimonk-hf convert": "needs a checkpoint: test_convert",
    "aimonk-hf push": "needs the Hub: test_hub",
    "aimonk-hf push-space": "needs the Hub: test_spaces",
    "make": "installs, trains or measures: the target must exist",
    "pytest": "runs other tests: the files must exist",
    "benchmarks": "measure for minutes: the script and its flags must exist",
    "examples": "need data from the network: the script and its flags must exist",
    "pip": "installs: the extras must exist",
    "shell": "other programs: cd, curl, hf, and the shell's own assignments",
}


def texts(kind: str) -> list[tuple[str, str]]:
    """Return (document, block) of the fenced blocks whose language matches `kind`."""
    fence = re.compile(rf"^ *```(?:{kind})\n(.*?)^ *```", re.M | re.S)
    return [(path.name, block) for path in DOCUMENTS for block in fence.findall(path.read_text())]


def commands() -> list[tuple[str, str]]:
    """Return (document, command) of the lines of all shell blocks, without comments and line continuations."""
    found = []
    for name, block in texts("bash|sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                found.append((name, shlex.join(words)))
    return sorted(set(found))


def spans() -> list[tuple[str, str]]:
    """Return (document, code) of the inline code."""
    found = set()
    for path in DOCUMENTS:
        prose = re.sub(r"^ *```.*?^ *```", "", path.read_text(), flags=re.M | re.S)
        found |= {(path.name, " ".join(code.split())) for code in re.findall(r"`([^`]+)`", prose)}
    return sorted(found)


def subcommands() -> dict[str, argparse.ArgumentParser]:
    (action,) = [one for one in _parser()._actions if isinstance(one, argparse._SubParsersAction)]
    return dict(action.choices)


def aimonk_arguments(words: list[str]) -> list[str] | None:
    """Return the arguments of the command line that a command amounts to, or None where it is another program."""
    while words and re.fullmatch(r"\w+=.*", words[0]):  # settings of the environment
        words = words[1:]
    program = words[0].removeprefix(".venv/bin/") if words else ""
    if program == "aimonk-hf":
        return words[1:]
    if program in ("python", "torchrun", "accelerate"):
        for entrance, before in (("app.py", ["app"]), ("train.py", ["train"]), ("aimonk_hf", [])):
            if entrance in words:
                return before + words[words.index(entrance) + 1 :]
    return None


def kind_of(words: list[str]) -> str:
    arguments = aimonk_arguments(words)
    if arguments is not None:
        return f"aimonk-hf {arguments[0]}"
    program = words[0].removeprefix(".venv/bin/")
    if program in ("make", "pip"):
        return program
    if program == "python":
        return words[2] if words[1] == "-m" else words[1].split("/")[0]
    if program in ("cd", "curl", "hf") or re.match(r"\w+=", program):
        return "shell"
    raise AssertionError(f"no rule for the command {shlex.join(words)}")


def options_of(path: str) -> set[str]:
    return set(re.findall(r'"(--[a-z0-9-]+)"', (ROOT / path).read_text()))


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


@pytest.mark.parametrize(("document", "command"), commands())
def test_a_command_is_understood(document: str, command: str, capsys: pytest.CaptureFixture) -> None:
    words = shlex.split(command)
    kind = kind_of(words)
    assert kind in RUN | set(NOT_RUN) or "--help" in words, f"{document}: say in RUN or NOT_RUN what to do with {kind}"
    if kind.startswith("aimonk-hf"):
        arguments = aimonk_arguments(words) or []
        if arguments[-1] != "--help":
            try:
                _parser().parse_args(arguments)
            except SystemExit:
                pytest.fail(f"{document}: {command}: {capsys.readouterr().err.splitlines()[-1]}")
    elif kind == "make":
        asked = {word for word in words[1:] if "=" not in word and not word.startswith("-")}
        assert asked <= make_targets(), f"{document}: {command}"
    elif kind in ("benchmarks", "examples"):
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert used <= options_of(words[1]), f"{document}: {command}"
    elif kind == "pytest":
        assert all((ROOT / word.partition("::")[0]).exists() for word in words if word.startswith("tests/"))
    elif kind == "pip":
        known = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
        assert {extra for word in words for extra in re.findall(r"\[(\w+)\]", word)} <= known, f"{document}: {command}"


@pytest.mark.parametrize("command", sorted({command for _, command in commands()}))
def test_a_cheap_command_runs(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    words = shlex.split(command)
    arguments = aimonk_arguments(words)
    if arguments is None or (kind_of(words) not in RUN and "--help" not in words):
        return
    monkeypatch.chdir(tmp_path)
    try:
        status = main(arguments)
    except SystemExit as done:  # --help
        status = int(done.code or 0)
    assert status == 0
    assert capsys.readouterr().out


def test_what_is_not_run_is_named_by_a_document() -> None:
    named = {kind_of(shlex.split(command)) for _, command in commands()}
    assert set(NOT_RUN) <= named, f"no document names {sorted(set(NOT_RUN) - named)}"
    assert named <= RUN | set(NOT_RUN)
    assert {f"aimonk-hf {name}" for name in subcommands()} <= named, "a command without an example"


@pytest.mark.parametrize(("document", "code"), spans())
def test_inline_code_names_flags_that_exist(document: str, code: str) -> None:
    if code.startswith("make "):
        asked = {word for word in code.split()[1:] if re.fullmatch(r"[a-z-]+", word)}
        assert asked <= make_targets(), f"{document}: {code}"
    elif (match := re.match(r"aimonk-hf ([a-z-]+)", code)) or code.startswith("--"):
        parsers = subcommands()
        assert match is None or match[1] in parsers, f"{document}: {code}"
        asked = [parsers[match[1]]] if match else parsers.values()
        known = {option for parser in asked for option in parser._option_string_actions}
        flags = re.findall(r"(?<![\w-])--[a-z0-9-]+", code)
        if document == "SPEED.md":
            known |= {option for path in (ROOT / "benchmarks").glob("*.py") for option in options_of(str(path))}
        assert set(flags) <= known, f"{document}: `{code}` names {sorted(set(flags) - known)}"


@pytest.mark.parametrize(("document", "block"), texts("python"))
def test_python_compiles_and_its_names_exist(document: str, block: str) -> None:
    tree = ast.parse(block)
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "aimonk_hf":
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                known[alias.name] = getattr(module, alias.name)
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and (called := _called(call.func, known)) is not None:
            parameters = inspect.signature(called).parameters
            takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
            unknown = [word.arg for word in call.keywords if word.arg and word.arg not in parameters]
            assert takes_any or not unknown, f"{document}: {ast.unparse(call)} has no {unknown}"


def _called(function: ast.expr, known: dict[str, object]) -> object | None:
    """Return the function or class that a call names: an imported one, or a method of an imported class."""
    if isinstance(function, ast.Name):
        return known.get(function.id)
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id in known:
        return getattr(known[function.value.id], function.attr)
    return None


@pytest.mark.parametrize("path", LINKED, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    prose = re.sub(r"^ *```.*?^ *```|`[^`\n]*`", "", path.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), f"{path.name} links to {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)", linked.read_text(), re.M)
            assert anchor in {_anchor(title) for title in titles}, f"{path.name} links to {target}"


def _anchor(title: str) -> str:
    return re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-")


def test_the_readme_is_short_and_links_every_document() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 150
    for path in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{path.name})" in text
