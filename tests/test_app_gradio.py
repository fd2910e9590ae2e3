"""The parts of gradio that it does not document: a version without one of them is told here by name."""

import ast
import inspect
from pathlib import Path

import gradio as gr
import pytest
from gradio.state_holder import StateHolder

from aimonk_hf.app import gradio_internals

APP = Path(gradio_internals.__file__).parent
PARTS = {
    "gr.Blocks": "fns share_url get_api_info preprocess_data temp_file_sets _queue state_holder",
    "gr.Blocks._queue": "pending_messages_per_session event_ids_to_events pending_event_ids_session",
    "gr.Blocks.state_holder": "lock session_data time_last_used",
    "gr.Image": "data_model",
    "gr.File": "data_model",
    "gr.Dataset": "samples",
    "gr.EventData": "_data",
    "a function of gr.Blocks.fns": "inputs",
}


@pytest.fixture(scope="module")
def page() -> gr.Blocks:
    with gr.Blocks() as page:
        gr.Button().click(lambda image: None, gr.Image())
    StateHolder().set_blocks(page)
    return page


@pytest.mark.parametrize("owner", PARTS)
def test_gradio_has_the_undocumented_parts_that_the_app_touches(owner: str, page: gr.Blocks) -> None:
    holder = {
        "gr.Blocks": page,
        "gr.Blocks._queue": page._queue,
        "gr.Blocks.state_holder": page.state_holder,
        "gr.Image": gr.Image(),
        "gr.File": gr.File(file_count="multiple"),
        "gr.Dataset": gr.Dataset(components=["number"], samples=[[1]]),
        "gr.EventData": gr.EventData(None, {}),
        "a function of gr.Blocks.fns": page.fns[0],
    }[owner]
    for name in PARTS[owner].split():
        assert hasattr(holder, name), f"gradio {gr.__version__}: {owner} has no {name}; mend app/gradio_internals.py"


def test_gradio_reads_inputs_as_the_app_expects(page: gr.Blocks) -> None:
    found = list(inspect.signature(page.preprocess_data).parameters)[:2]
    assert found == ["block_fn", "inputs"], f"gradio {gr.__version__}: Blocks.preprocess_data takes {found}"


def test_no_other_module_of_the_app_touches_them() -> None:
    """Private names of Python's own zipfile are another matter."""
    parts = {name for names in PARTS.values() for name in names.split()}
    for path in APP.glob("*.py"):
        if path.name == "gradio_internals.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "zipfile"):
                is_private = node.attr.startswith("_") and not node.attr.startswith("__")
                is_touched = is_private or node.attr in parts
                assert not is_touched, f"{path.name} touches {ast.unparse(node)}"
            elif isinstance(node, ast.ImportFrom):
                assert not str(node.module).startswith("gradio."), f"{path.name} imports {node.module}"
