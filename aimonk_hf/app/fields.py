"""What the fields of the page and the API take: values of the right form, and uploads; an address is never fetched."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from pydantic import ValidationError

from aimonk_hf.app.uploads import MAX_FILES

FORM_OF_A_FILE = '{"path": what /upload answered, "meta": {"_type": "gradio.FileData"}}'
MAX_DEPTH = 20  # of a value: a table or a list of files has three levels


def uploads_only(page: gr.Blocks, folder: Path) -> None:
    """Let every call be refused in words whose inputs are not of the right form, or hold files that do not lie in `folder`.

    Otherwise gradio fetches an address that stands in a file's place, in any field and of any size, before this app sees anything; and it
    answers a value of another form with the text of an internal error, and a traceback in the log.
    """
    take_inputs = page.preprocess_data

    async def checked(block_fn: Any, inputs: list[Any], *rest: Any, **options: Any) -> list[Any]:
        if len(inputs) < len(block_fn.inputs):
            raise _refused(f"{len(block_fn.inputs)} values are wanted, found {len(inputs)}")
        for block, value in zip(block_fn.inputs, inputs, strict=False):
            _check_files(value, folder)
            _check_form(block, value)
        return await take_inputs(block_fn, inputs, *rest, **options)

    # On the instance, as gradio offers no other way in front of its own reading.
    page.preprocess_data = checked  # type: ignore[method-assign]


def _check_files(value: Any, folder: Path) -> None:
    for number, file in enumerate(_files(value)):
        if number > MAX_FILES:
            raise _refused(f"a batch takes at most {MAX_FILES} files; send them in parts")
        path = file.get("path")
        if path is None:
            continue
        if not isinstance(path, str):
            raise _refused(f"a file is wanted as {FORM_OF_A_FILE}")
        if "://" in path[:20]:
            raise _refused("send the file itself, not its address")
        try:
            place = Path(path).resolve()
            is_upload = place.is_relative_to(folder.resolve()) and not place.is_dir()
        except (
            OSError,
            ValueError,
            RuntimeError,
        ):  # zero bytes, surrogates, names that are too long, links in a circle
            is_upload = False
        if not is_upload:
            raise _refused("the file was not uploaded to this app")


def _files(value: Any, depth: int = 0) -> Iterator[dict[Any, Any]]:
    """Yield every mapping with a path, or marked as a file, however deep."""
    if depth > MAX_DEPTH:
        raise _refused("the values are nested too deeply")
    if isinstance(value, dict):
        if "path" in value or "meta" in value:
            yield value
        for each in value.values():
            yield from _files(each, depth + 1)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _files(each, depth + 1)


def _check_form(block: Any, value: Any) -> None:
    if isinstance(block, gr.Dataset) and not (isinstance(value, int) and 0 <= value < len(block.samples)):
        raise _refused("there is no such example")
    model = getattr(block, "data_model", None)
    if value is not None and isinstance(block, gr.Image | gr.File) and model is not None:
        try:
            model.model_validate(value, context={"validate_meta": True})
        except ValidationError as error:
            raise _refused(f"a file is wanted as {FORM_OF_A_FILE}") from error


def _refused(words: str) -> gr.Error:
    return gr.Error(words, print_exception=False)
