"""Files set up to harm: nothing of them runs, nothing outside is read or written, no text of theirs becomes HTML."""

import ast
import io
import json
import os
import pickle
import re
import resource
import shutil
import socket
import stat
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loopback_hub import LoopbackHub
from markdown_it import MarkdownIt
from PIL import Image
from safetensors.torch import save_file

import aimonk_hf.modeling.model
from aimonk_hf import AimonkConfig, AimonkModel, AttributeDataset
from aimonk_hf.app.folder import app_folder
from aimonk_hf.app.model_tab import model_page
from aimonk_hf.app.space import write_space
from aimonk_hf.audit.checks import add_suspects, audit
from aimonk_hf.audit.contact_sheet import write_contact_sheet
from aimonk_hf.audit.report import audit_markdown
from aimonk_hf.cli.main import main
from aimonk_hf.data.images import read_image, shown_name
from aimonk_hf.errors import AimonkError, ImageError
from aimonk_hf.evaluation.report import build_report
from aimonk_hf.modeling.card import render_card
from aimonk_hf.modeling.convert import convert_checkpoint
from aimonk_hf.modeling.hub import download, push_model_folder
from aimonk_hf.modeling.prediction import Prediction
from aimonk_hf.modeling.weights import check_state, load_weights
from aimonk_hf.storage import atomic_path, staged_folder, write_text

ROOT = Path(__file__).parents[1]
ATTRIBUTES = ["collar", "belt"]
SCRIPT = "<script>alert('&')</script>"
# Attributes that are text on one line, and no more.
ATTACKS = [
    SCRIPT,
    "<img src=x onerror=alert(1)>",
    "a`<b>`|x",
    "[x](javascript:alert(1))",
    "../../up",
    "{{ 7 * 7 }}",
    "--- \\ %s",
]


class Hostile:
    """Creates a file as soon as it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[Path]:
    """A place that code of a hostile file would write to."""
    yield tmp_path / "was-run"
    assert not (tmp_path / "was-run").exists()


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("saved") / "model"
    AimonkModel.from_timm("test_resnet", ATTRIBUTES, pretrained=False, image_size=32).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved_model, tmp_path / "model")


# The code itself

# Beginnings of calls, imports and attributes, as `ast.unparse` writes them.
_DANGER = re.compile(
    r"""(eval|exec|os\.system|os\.popen|tempfile\.mktemp|yaml\.load|yaml\.unsafe_load|pd\.read_pickle|torch\.jit\.load
    |torch\.hub\.load(_state_dict_from_url)?|shutil\.unpack_archive)\(
    |torch\.load\((?!.*\bweights_only=True)
    |.*\b(trust_remote_code=True|allow_pickle=True|shell=True|verify=False|weights_only=False)
    |(import|from)\ (_pickle|cPickle|dill|cloudpickle|joblib|marshal|shelve)\b|from\ pickle\b
    |pickle\.(?!UnpicklingError|PickleError)""",
    re.VERBOSE | re.DOTALL,
)
_DANGEROUS = """torch.load('x')
torch.load('x', weights_only=False)
torch.load('x', weights_only=flag)
pickle.loads(b'')
from pickle import loads
import joblib
np.load('x', allow_pickle=True)
from_pretrained('x', trust_remote_code=True)
subprocess.run('ls', shell=True)
eval('1')"""


def dangers(code: str) -> list[str]:
    """Return what in a module could run code from a file or from the network."""
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import | ast.ImportFrom | ast.Call)]
    nodes += [node for node in ast.walk(ast.parse(code)) if getattr(getattr(node, "value", None), "id", "") == "pickle"]
    return list(filter(_DANGER.match, map(ast.unparse, nodes)))


def test_no_module_unpickles_evaluates_or_trusts() -> None:
    assert all(map(dangers, _DANGEROUS.splitlines())), "the search finds what it is for"
    modules = [*ROOT.glob("aimonk_hf/**/*.py"), *ROOT.glob("benchmarks/*.py"), ROOT / "app.py", ROOT / "train.py"]
    assert len(modules) > 50
    assert {str(path): found for path in modules if (found := dangers(path.read_text(encoding="utf-8")))} == {}


# Pickles


def pickles(trace: Path) -> dict[str, bytes]:
    """Files that would make `trace` when unpickled without care."""
    tensors = {"fc.weight": torch.zeros(2, 3), "fc.bias": torch.zeros(2)}
    files = {f"protocol {protocol}": pickle.dumps(Hostile(trace), protocol) for protocol in range(6)}
    hidden = {"epoch": 3, "state_dict": OrderedDict(tensors), "optimizer": {"state": [(1, {"deep": [Hostile(trace)]})]}}
    for is_zip in (True, False):
        for name, content in (
            ("beside", hidden),
            ("in place of a tensor", tensors | {"fc.bias": Hostile(trace)}),
            ("alone", Hostile(trace)),
        ):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=is_zip)
            files[f"{name}, {'zip' if is_zip else 'legacy'}"] = buffer.getvalue()
    array = io.BytesIO()
    np.save(array, np.array([Hostile(trace)], dtype=object), allow_pickle=True)
    files["object array"] = array.getvalue()
    files["builtins"] = b"cbuiltins\nexec\n(S'import os; os.mkdir(%r)'\ntR." % str(trace)
    scripted = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(3, 2)), scripted)
    files["TorchScript"] = scripted.getvalue()
    return files


@pytest.mark.filterwarnings("ignore")
def test_no_pickle_in_a_checkpoint_runs(tmp_path: Path, trace: Path) -> None:
    for name in ("protocol 0", "protocol 5", "builtins"):  # they are hostile indeed
        pickle.loads(pickles(tmp_path / "ran")[name])
        (tmp_path / "ran").rmdir()
    for name, content in pickles(trace).items():
        (tmp_path / "hostile.pth").write_bytes(content)
        with pytest.raises(AimonkError, match=r"hostile\.pth ") as caught:
            convert_checkpoint(tmp_path / "hostile.pth", "test_resnet")
        assert "\n" not in str(caught.value), name
        flags = ["--architecture", "test_resnet", "--output", str(tmp_path / "new")]
        assert main(["convert", str(tmp_path / "hostile.pth"), *flags]) == 2
        assert not (tmp_path / "new").exists(), name
        assert not trace.exists(), name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({1: torch.zeros(2)}, "holds no state dict"),
        ({"fc.bias": torch.tensor(1.0), "fc.weight": torch.zeros(1, 3)}, "has no linear head"),
        ({"fc.bias": torch.zeros(1).expand(10**12)}, "fc.bias is not a plain tensor with all its values in the file"),
        ({"fc.bias": torch.zeros(2).to_sparse()}, "fc.bias is not a plain tensor"),
        ({"fc.bias": torch.zeros(0)}, "at least one attribute"),
        ([torch.zeros(2)], "holds no state dict"),
        ({}, "holds no state dict"),
        ({"state_dict": {"state_dict": {}}}, "holds no state dict"),
    ],
)
def test_checkpoints_that_claim_what_they_do_not_hold_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "strange.pth")
    with pytest.raises(AimonkError, match=message):
        convert_checkpoint(tmp_path / "strange.pth", "test_resnet")


def test_packed_checkpoints_folders_and_pipes_are_refused_at_once(tmp_path: Path) -> None:
    torch.save({"fc.bias": torch.zeros(200_000)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry.filename))
    with pytest.raises(AimonkError, match="is compressed, which PyTorch does not do"):
        convert_checkpoint(tmp_path / "packed.pth", "test_resnet")
    os.mkfifo(tmp_path / "pipe.pth")
    for name in ("pipe.pth", "."):
        with pytest.raises(AimonkError, match="is not a file"):
            convert_checkpoint(tmp_path / name, "test_resnet")
    with pytest.raises(AimonkError, match="There is no checkpoint"):
        convert_checkpoint(tmp_path / "none.pth", "test_resnet")


@pytest.mark.filterwarnings("ignore")
def test_damaged_checkpoints_are_told_in_one_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for is_zip in (True, False):
        buffer = io.BytesIO()
        tensors = {"fc.weight": torch.zeros(2, 3), "fc.bias": torch.zeros(2)}
        torch.save(tensors, buffer, _use_new_zipfile_serialization=is_zip)
        for _ in range(100):
            content = bytearray(buffer.getvalue())
            for place in rng.integers(0, len(content), rng.integers(1, 5)):
                content[place] = rng.integers(256)
            kept = rng.integers(1, len(content)) if rng.random() < 0.1 else len(content)
            (tmp_path / "damaged.pth").write_bytes(content[:kept])
            with pytest.raises(AimonkError) as caught:  # undamaged it would not fit the architecture
                convert_checkpoint(tmp_path / "damaged.pth", "test_resnet")
            assert "\n" not in str(caught.value)


# config.json


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def no_network(*arguments: Any, **options: Any) -> None:
    raise AssertionError(f"a connection was tried: {arguments}")


_HOSTILE_CONFIGS: list[dict[str, Any]] = [
    {"auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "user/repo--evil.Evil"}},
    {"custom_pipelines": {"x": {"impl": "evil.Evil"}}},
    {"model_args": {"checkpoint_path": "evil.pth"}},
    {"model_args": {"pretrained_cfg_overlay": {"file": "evil.pth"}}},
    {"model_args": {"cache_dir": "/"}},
    {"model_args": {"device": "meta"}},
    {"pretrained_cfg": {"url": "http://127.0.0.1:9/evil.pth", "input_size": [3, 32, 32]}},
    {"pretrained_cfg": {"file": "evil.pth", "custom_load": True, "input_size": [3, 32, 32]}},
    {"pretrained_cfg": {"hf_hub_id": "user/evil", "hf_hub_filename": "evil.pth", "input_size": [3, 32, 32]}},
    {"pretrained_cfg": {"state_dict": {"fc.bias": [1]}, "input_size": [3, 32, 32]}},
    {"architecture": "hf-hub:user/evil"},
    {"architecture": "../evil"},
    {"architecture": "os.system"},
    {"model_args": {"act_layer": "os.system"}},
    {"model_args": {"channels": {}}},
    {"model_args": {"stem_width": 10**30}},
    {"model_args": {"self": 1}},
    {"num_classes": 10**9},
    {"thresholds": {"collar": 10**400}},
    {"pretrained_cfg": {"input_size": [3, 10**6, 10**6]}},
    {"pretrained_cfg": {"input_size": [3, 32, 32], "crop_pct": 1e-300}},
]


@pytest.mark.parametrize("changes", _HOSTILE_CONFIGS, ids=lambda changes: json.dumps(changes)[:60])
def test_a_hostile_config_runs_and_fetches_nothing(
    changes: dict[str, Any], folder: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(trace)!r})\nclass Evil: ...\n")
    (folder / "evil.pth").write_bytes(pickle.dumps(Hostile(trace)))
    change_config(folder, **changes)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    opened: list[str] = []
    real_open = open
    monkeypatch.setattr(
        "builtins.open", lambda file, *rest, **options: opened.append(str(file)) or real_open(file, *rest, **options)
    )
    for load in (AimonkModel.from_pretrained, lambda place: AimonkModel.from_timm(f"local-dir:{place}", ["x"])):
        try:
            load(str(folder)).save_pretrained(folder.parent / "again")
        except AimonkError as error:
            assert "\n" not in str(error), error  # noqa: PT017 - some of them may load, harmlessly
        else:
            again = (folder.parent / "again" / "config.json").read_text()
            assert "evil.Evil" not in again, "a folder saved here asks no reader to run code"
    assert "evil" not in sys.modules
    assert not [name for name in opened if "evil" in name]
    assert not trace.exists()


_FAR_TOO_LARGE: list[dict[str, Any]] = [
    {"architecture": "vit_giant_patch14_dinov2"},
    {"architecture": "vit_tiny_patch16_224", "model_args": {"depth": 10**9}},
    {"architecture": "vit_tiny_patch16_224", "model_args": {"embed_dim": 3 * 2**14}},
    {"architecture": "resnet18", "model_args": {"layers": [10**9, 1, 1, 1]}},
]


@pytest.mark.parametrize("changes", _FAR_TOO_LARGE, ids=json.dumps)
def test_an_architecture_far_larger_than_its_weights_takes_no_memory(changes: dict[str, Any], folder: Path) -> None:
    change_config(folder, **changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(AimonkError, match="holds far fewer numbers than the architecture|no network has numbers above"):
        AimonkModel.from_pretrained(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kilobytes"


@pytest.mark.parametrize("name", ["test_byobnet", pytest.param("swinv2_tiny_window8_256", marks=pytest.mark.soak)])
def test_a_loaded_network_is_the_saved_one_to_the_last_buffer(name: str, tmp_path: Path) -> None:
    saved_model = AimonkModel.from_timm(name, ["a"], pretrained=False)
    saved_model.save_pretrained(tmp_path)
    network, loaded = saved_model.timm_model, AimonkModel.from_pretrained(tmp_path).timm_model
    wanted = dict([*network.named_parameters(), *network.named_buffers()])
    found = dict([*loaded.named_parameters(), *loaded.named_buffers()])
    assert all(torch.equal(wanted[key], found[key]) for key in wanted | found)


def test_keys_of_others_stay_and_those_that_run_code_go(folder: Path) -> None:
    change_config(folder, auto_map={"AutoModel": "evil.Evil"}, custom_pipelines={}, trust_remote_code=True, note="kept")
    assert AimonkModel.from_pretrained(folder).config.extra == {"note": "kept"}


def test_attribute_names_lead_to_no_file(tmp_path: Path) -> None:
    names = ["../../up", "/etc/up", "..", "a/b", "CON", "x\\..\\y"]
    model = AimonkModel.from_timm("test_resnet", names, pretrained=False, image_size=32)
    place = tmp_path / "deep" / "deeper" / "model"
    model.save_pretrained(place)
    assert AimonkModel.from_pretrained(place).config.attributes == names
    written = {path.relative_to(place).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {"README.md", "config.json", "model.safetensors"}


# model.safetensors


def safetensors(header: Any, body: bytes = bytes(64), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def tensor(start: int, end: int, shape: Any = None, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


_HOSTILE_WEIGHTS = {
    "nothing": b"",
    "no header": struct.pack("<Q", 0),
    "a header of 2**63 bytes": safetensors({}, length=2**63),
    "a header of 2**64 - 1 bytes": safetensors({}, length=2**64 - 1),
    "a header longer than the file": safetensors({}, length=1000),
    "a list": safetensors([]),
    "no JSON": safetensors(b"{'a': 1}"),
    "no text": safetensors(b"\xff\xfe\0"),
    "deep nesting": safetensors(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "an offset behind the end": safetensors({"a": tensor(0, 4096)}),
    "an offset of 2**62": safetensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [2**62, 2**62 + 16]}}),
    "overlapping tensors": safetensors({"a": tensor(0, 48), "b": tensor(16, 64)}),
    "a hole": safetensors({"a": tensor(0, 16), "b": tensor(32, 64)}),
    "a shape larger than its bytes": safetensors({"a": tensor(0, 64, [1000])}),
    "a shape that overflows": safetensors({"a": tensor(0, 64, [2**32, 2**32])}),
    "a negative shape": safetensors({"a": tensor(0, 64, [-16])}),
    "an unknown kind of number": safetensors({"a": tensor(0, 64, [16], "PICKLE")}),
    "a kind that is no word": safetensors({"a": tensor(0, 64, [16], {"__reduce__": 1})}),
    "a pickle": pickle.dumps({"a": 1}),
    "metadata that is no text": safetensors({"__metadata__": {"format": ["pt"]}, "a": tensor(0, 64)}),
}


@pytest.mark.parametrize("name", _HOSTILE_WEIGHTS)
def test_hostile_safetensors_headers_are_refused(name: str, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(_HOSTILE_WEIGHTS[name])
    with pytest.raises(AimonkError, match=r"model\.safetensors is damaged") as caught:
        AimonkModel.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(AimonkError, match="timm cannot build test_resnet"):
        AimonkModel.from_timm(f"local-dir:{folder}", ["x"])


def test_a_well_formed_header_is_read_and_its_tensors_are_held_against_the_network(tmp_path: Path) -> None:
    network = torch.nn.Linear(3, 2)
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(2, 3), "bias": torch.zeros(2, dtype=torch.int64)}, path)
    with pytest.raises(AimonkError, match="bias holds integers of shape .*, wanted: floats of shape"):
        check_state(network, load_weights(path, {}), path)
    save_file({"weight": torch.zeros(2, 3).half(), "bias": torch.zeros(2)}, path)
    check_state(network, load_weights(path, {}), path)


# The Hub


def test_a_hub_repository_runs_nothing_and_only_the_model_s_files_come(
    hub: LoopbackHub, trace: Path, tmp_path: Path
) -> None:
    model = AimonkModel.from_timm("test_resnet", ATTRIBUTES, pretrained=False, image_size=32)
    model.push_to_hub("user/evil")
    repo = hub.repos["model", "user/evil"]
    code = f"import os\nos.mkdir({str(trace)!r})\n".encode()
    auto_map = {"AutoModelForImageClassification": "modeling_evil.Evil"}
    config = json.loads(repo.files()["config.json"]) | {"auto_map": auto_map}
    hostile = dict.fromkeys(("modeling_evil.py", "__init__.py", "hubconf.py", "../../up.py", "handler.py"), code)
    hostile |= {name: pickle.dumps(Hostile(trace)) for name in ("pytorch_model.bin", "model.pth", "training_args.bin")}
    repo.commit("main", repo.files() | hostile | {"config.json": json.dumps(config).encode()}, "evil")
    hub.requests.clear()
    loaded = AimonkModel.from_pretrained("user/evil", cache_dir=tmp_path / "cache")
    assert "auto_map" not in loaded.config.extra
    AimonkModel.from_timm("hf-hub:user/evil", ["x"])
    fetched = {path.rpartition("/")[2] for _, path in hub.requests if "/resolve/" in path}
    assert fetched <= {"config.json", "model.safetensors", "README.md", "metrics.json"}
    assert {"config.json", "model.safetensors"} <= fetched
    cached = [path for path in (tmp_path / "cache").rglob("*") if path.is_symlink()]
    assert {path.name for path in cached} == {"config.json", "model.safetensors", "README.md"}
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".py", ".bin", ".pth")]
    assert not any("evil" in name for name in sys.modules)
    loaded.push_to_hub("user/clean")
    assert "auto_map" not in json.loads(hub.repos["model", "user/clean"].files()["config.json"])


@pytest.mark.parametrize("name", ["README.md", "metrics.json", "onnx/model.onnx"])
def test_a_link_to_a_file_elsewhere_is_not_published(name: str, folder: Path, hub: LoopbackHub, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(tmp_path / "secret")
    with pytest.raises(AimonkError, match=f"{name} is a link to a file outside"):
        push_model_folder(folder, "user/secret")
    assert not hub.repos
    if "/" not in name:
        with pytest.raises(AimonkError, match=f"{name} is a link to a file outside"):
            write_space(tmp_path / "space", str(folder))
        assert not (tmp_path / "space").exists()


def test_the_hub_s_own_cache_whose_files_are_links_can_be_pushed(
    folder: Path, hub: LoopbackHub, tmp_path: Path
) -> None:
    push_model_folder(folder, "user/first")
    snapshot = download("user/first", ["*"], cache_dir=tmp_path / "cache")
    assert (snapshot / "config.json").is_symlink()
    push_model_folder(snapshot, "user/second")
    assert "config.json" in hub.repos["model", "user/second"].files()


# Pictures that start programs


def test_postscript_starts_no_program(tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    ghost = tmp_path / "bin" / "gs"
    ghost.write_text(f"#!/bin/sh\nmkdir {trace}\n")
    ghost.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    picture = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    for name in ("a.jpg", "a.eps", "a.png"):
        (tmp_path / name).write_bytes(picture)
        for source in (tmp_path / name, picture):
            with pytest.raises(ImageError, match="(?i)not an? (picture|image)"):
                read_image(source)
    assert not trace.exists()


# HTML


def html_of(markdown: str) -> list[str]:
    """Return what a Markdown reader that lets HTML through would take for HTML or for a link that runs code."""
    found = []
    for token in MarkdownIt("commonmark", {"html": True}).enable("table").parse(markdown):
        for part in [token, *(token.children or [])]:
            if part.type in ("html_block", "html_inline"):
                found.append(part.content)
            if part.type == "link_open" and "script" in str(part.attrs.get("href")):
                found.append(str(part.attrs))
    return found


@pytest.fixture(scope="module")
def hostile_data(tmp_path_factory: pytest.TempPathFactory) -> AttributeDataset:
    """Pictures whose names and attributes are HTML, some of them copies, one of them missing."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "images").mkdir()
    names = ["<script>alert(1)<b>.png", "`<img src=x onerror=alert(2)>`.png", "\\|<img src=x onerror=alert(4)>.png"]
    names += ["\\[a](javascript:b).png", "two\n\n<b>lines.png", "[a](javascript:b).png", "\x1b[2J.png"]
    rng = np.random.default_rng(0)
    for number, name in enumerate(names):
        picture = Image.fromarray(rng.integers(0, 255, (20, 20 + number % 2, 3), np.uint8))
        picture.save(folder / "images" / name)
        picture.save(folder / "images" / f"copy {name}")
    (folder / "images" / "<i>bad.png").write_bytes(b"\x89PNG\r\n\x1a\n<script>alert(3)</script>")
    names += [f"copy {name}" for name in names] + ["<u>gone.png", "<i>bad.png"]
    header = ",".join(f'"{name}"' for name in ["image", *ATTACKS])
    cells = [",".join(str((number + k) % 2) for k in range(len(ATTACKS))) for number in range(len(names))]
    rows = [f'"{name}",{each}' for name, each in zip(names, cells, strict=True)]
    (folder / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    return AttributeDataset.from_folder(folder)


@pytest.mark.usefixtures("real_plots")
def test_an_audit_of_hostile_names_holds_no_html(hostile_data: AttributeDataset, tmp_path: Path) -> None:
    assert html_of(f"a {SCRIPT} b")
    assert html_of("| a |\n| --- |\n| <b>x</b> |\n")
    assert not html_of(f"a `{SCRIPT}` b")
    split = tmp_path / "<b>split.csv"
    lines = [f'"{name}",<b>{k % 2}</b>\n' for k, name in enumerate(hostile_data.labels.images)]
    split.write_text("image,part\n" + "".join(lines))
    audited = audit(hostile_data, split)
    add_suspects(audited, np.full(hostile_data.labels.values.shape, 0.5), f"the scores of {SCRIPT}")
    audited.findings["suspects"]["labels"] = [
        {"image": name, "attribute": ATTACKS[0], "label": "1", "suggested": 0, "score": 0.1}
        for name in hostile_data.labels.images
    ]
    audited.findings["probe"] = {
        "verdict": SCRIPT,
        "method": SCRIPT,
        "per_attribute": {name: {"auroc": 0.5, "p_value": 1.0} for name in ATTACKS},
    }
    markdown = audit_markdown(audited.findings)
    assert html_of(markdown) == []
    assert "\x1b" not in markdown
    assert "alert" in markdown, "the names are told"
    assert write_contact_sheet(audited, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        sheet.load()


def test_the_audit_command_prints_no_terminal_codes(
    hostile_data: AttributeDataset, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["audit", "--data-dir", str(hostile_data.images_dir.parent), "--output", str(tmp_path)]) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert html_of((tmp_path / "audit.md").read_text()) == []


def test_names_on_a_terminal_are_one_line_of_printable_text() -> None:
    assert shown_name("a\x1b[2J\nb\r.jpg") == r"a\x1b[2J\x0ab\x0d.jpg"
    assert shown_name(os.fsdecode(b"caf\xe9.jpg")) == r"caf\xe9.jpg"
    assert shown_name("größe 袖.jpg") == "größe 袖.jpg"
    assert "\x1b" not in str(Prediction({"a": 0.5}, {"a": 0.5}, "\x1b[2J\n.jpg"))


def test_predictions_in_a_notebook_are_escaped() -> None:
    scores = dict.fromkeys(ATTACKS, 0.9)
    name = SCRIPT + "\n" + os.fsdecode(b"caf\xe9") + ".jpg"
    shown = Prediction(scores, dict.fromkeys(ATTACKS, 0.5), name)._repr_html_()
    for attack in ("<script", "<img", "<b>"):
        assert attack not in shown
    shown.encode("utf-8")


def hostile_metrics() -> dict[str, Any]:
    """Metrics in the right form, whose every text is HTML."""
    labels = np.array([[1, 0] * 4, [0, 1] * 4, [1, 1] * 4], dtype=np.float32)[:, : len(ATTACKS)]
    scores = np.linspace(0.1, 0.9, labels.size).reshape(labels.shape)
    metrics = build_report(labels, scores, scores >= 0.5, ATTACKS, dict.fromkeys(ATTACKS, 0.5))
    for row in metrics["per_attribute"].values():
        row |= {"threshold_fallback": SCRIPT, "threshold_spread95": None}
    return metrics | {
        "verdict": SCRIPT,
        "measured_on": {"images": SCRIPT, "note": SCRIPT},
        "thresholds_tuned": True,
        "calibration": {"n_calibrated": 1, "ece_before": 0.1, "ece_after": 0.1, "fitted_on": SCRIPT},
        "macro": metrics["macro"] | {"calibration_error": 0.1},
        "training": {
            **dict.fromkeys(("recipe", "backbone"), f"`{SCRIPT}`"),
            **dict.fromkeys(("epochs", "n_train", "n_validation", "n_report"), 1),
            "data": {"labels": {SCRIPT: [1, 2, 3]}, "findings": [SCRIPT]},
        },
    }


def test_a_card_of_hostile_names_and_metrics_holds_no_html_and_its_metadata_stays() -> None:
    from huggingface_hub import ModelCard

    config = AimonkConfig("test_resnet", ATTACKS)
    plain, card = render_card(config, None), render_card(config, hostile_metrics())
    for text in (plain, card):
        assert html_of(text.split("---\n", 2)[2]) == []
        assert "{{ 7 * 7 }}" in text
        data = ModelCard(text).data.to_dict()
        assert (data["library_name"], data["pipeline_tag"]) == ("timm", "image-classification")
    assert card.count("alert(") > 10, "they are told, as text"


def changed_metrics(*path: str, value: Any) -> str:
    """Metrics of the model in `folder` with one value replaced, as JSON."""
    labels = np.array([[1, 0], [0, 1], [1, 1]], dtype=np.float32)
    scores = np.array([[0.9, 0.1], [0.2, 0.6], [0.7, 0.7]])
    metrics = build_report(labels, scores, scores >= 0.5, ATTRIBUTES, dict.fromkeys(ATTRIBUTES, 0.5))
    place = metrics
    for key in path[:-1]:
        place = place.setdefault(key, {})
    place[path[-1]] = value
    return json.dumps(metrics)


_MALFORMED_METRICS = {
    "no JSON": "{",
    "a list": "[]",
    "null": "null",
    "a key twice": '{"n_images": 1, "n_images": 2}',
    "deep nesting": '{"a":' * 50_000,
    "empty": "{}",
    "a count that is HTML": changed_metrics("n_images", value="<img src=x onerror=alert(1)>"),
    "a count that no float can hold": changed_metrics("n_images", value=10**400),
    "a verdict that is a list": changed_metrics("verdict", value=[SCRIPT]),
    "a number for a table": changed_metrics("macro", value=5),
    "a text for a figure": changed_metrics("macro", "f1", value="high"),
    "a figure beyond 1": changed_metrics("per_attribute", "belt", "auroc", value=7.5),
    "an interval of one end": changed_metrics("per_attribute", "belt", "auroc_ci95", value=[0.5]),
    "rows that are a list": changed_metrics("per_attribute", value=[]),
    "a row without counts": changed_metrics("per_attribute", "belt", value={}),
    "an attribute of another model": changed_metrics("per_attribute", "hat", value={}),
    "null for the trivial predictors": changed_metrics("trivial", value=None),
    "a source that is a number": changed_metrics("measured_on", value=5),
    "label counts that are words": changed_metrics(
        "training", "data", value={"labels": {"belt": "abc"}, "findings": []}
    ),
}


@pytest.mark.parametrize("name", _MALFORMED_METRICS)
def test_malformed_metrics_are_told_and_the_model_is_used_without_them(
    name: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "metrics.json").write_text(_MALFORMED_METRICS[name])
    model = AimonkModel.from_pretrained(folder)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert str(folder) in warning
    assert "metrics.json" in warning
    assert "\n" not in warning
    shown = model_page("model", model.config, model.metrics, model.metrics_problem)
    assert "The figures of this model are not shown: metrics.json" in shown
    for unwanted in (str(folder), "<img", "<table"):
        assert unwanted not in shown
    assert model.metrics is None
    model.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again" / "metrics.json").exists()


def test_metrics_are_kept_if_well_formed_and_checked_before_they_are_saved(folder: Path, tmp_path: Path) -> None:
    written = changed_metrics("folds", value={"n_folds": 5})
    (folder / "metrics.json").write_text(written)
    model = AimonkModel.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "metrics.json").read_text()) == json.loads(written)
    model.metrics = {"n_images": 1, "macro": {"f1": 0.5}}
    with pytest.raises(AimonkError, match=r"metrics\.json: trivial must be an object"):
        model.save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_texts_of_metrics_cannot_free_the_html_of_a_later_name(folder: Path) -> None:
    names = ["a", "<img src=x onerror=alert(1)>", "b|<b>", "[c](javascript:alert(1))"]
    metrics = build_report(np.eye(4, dtype=np.float32), np.eye(4), np.eye(4) > 0, names, dict.fromkeys(names, 0.5))
    for text in ("`", "\\", "\\`", "\\[x](javascript:alert(1))", "``", "\\|"):
        for row in metrics["per_attribute"].values():
            row |= {"threshold_fallback": text, "threshold_spread95": None}
        card = render_card(AimonkConfig("test_resnet", names), metrics | {"thresholds_tuned": True, "verdict": text})
        assert html_of(card.split("---\n", 2)[2]) == []


# Temporary files


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_folders_are_private_until_they_are_whole(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "new") as stage:
        assert mode(stage) == 0o700
        (stage / "a").write_text("1")
    assert mode(tmp_path / "new") & 0o700 == 0o700


def test_what_is_pushed_is_written_into_a_private_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []

    def look(place: Path, *arguments: Any) -> Any:
        modes.append(mode(place.parent) if mode(place) & 0o077 else mode(place))
        raise AimonkError("looked")

    monkeypatch.setattr(aimonk_hf.modeling.hub, "push_model_folder", look)
    with pytest.raises(AimonkError, match="looked"):
        AimonkModel.from_timm("test_resnet", ["a"], pretrained=False).push_to_hub("user/x")
    assert modes == [0o700]


def test_the_app_keeps_uploads_in_a_private_folder() -> None:
    with app_folder() as place:
        assert mode(place) & 0o077 == 0
    assert not place.exists()


def test_a_temporary_file_cannot_be_foreseen(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    with atomic_path(target) as first, atomic_path(target) as second:
        assert first != second
        assert str(os.getpid()) not in first.name
        first.write_text("1")
        second.write_text("2")
    write_text(target, "3")
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert target.read_text() == "3"
