"""The parts of gradio that it does not document: a version without one of them is told here by name."""

import ast
import inspect
from pathlib import Path

import gradio as gr
from gradio.state_holder import SessionState, StateHolder

from aimonk_hf.app import gradio_internals

APP = Path(gradio_internals.__file__).parent


def page_with_a_call() -> gr.Blocks:
    with gr.Blocks() as page:
        gr.Button().click(lambda image: None, gr.Image())
    StateHolder().set_blocks(page)
    return page


def test_gradio_has_the_undocumented_parts_that_the_app_touches_and_no_other_module_touches_them() -> None:
    page = page_with_a_call()
    touched = {
        "gr.Blocks": (page, "fns share_url preprocess_data temp_file_sets _queue state_holder"),
        "gr.Blocks.queue": (page._queue, "pending_messages_per_session event_ids_to_events pending_event_ids_session"),
        "gr.Blocks.state_holder": (page.state_holder, "lock session_data time_last_used"),
        "a session": (SessionState(page), "state_data"),
        "gr.Image": (gr.Image(), "data_model"),
        "gr.File": (gr.File(file_count="multiple"), "data_model"),
        "gr.Dataset": (gr.Dataset(components=["number"], samples=[[1]]), "samples"),
        "gr.EventData": (gr.EventData(None, {}), "_data"),
        "a function of gr.Blocks.fns": (page.fns[0], "inputs"),
    }
    for owner, (holder, names) in touched.items():
        for name in names.split():
            assert hasattr(holder, name), (
                f"gradio {gr.__version__}: {owner} has no {name}: gradio_internals.py needs it"
            )
    parts = {name for _, names in touched.values() for name in names.split()}
    for path in APP.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())) if path.name != "gradio_internals.py" else ():
            # private names of Python's own zipfile are another matter
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "zipfile"):
                is_private = node.attr.startswith("_") and not node.attr.startswith("__")
                assert not is_private, f"{path.name} touches {ast.unparse(node)}"
                assert node.attr not in parts, f"{path.name} touches {ast.unparse(node)}"
            elif isinstance(node, ast.ImportFrom):
                assert not str(node.module).startswith("gradio."), f"{path.name} imports {node.module}"


def test_gradio_reads_inputs_as_the_app_expects() -> None:
    found = list(inspect.signature(page_with_a_call().preprocess_data).parameters)[:2]
    assert found == ["block_fn", "inputs"], f"gradio {gr.__version__}: Blocks.preprocess_data takes {found}"
