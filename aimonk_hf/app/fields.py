"""File fields that take uploads and nothing else."""

from pathlib import Path
from typing import TypeVar

import gradio as gr

Field = TypeVar("Field", gr.Image, gr.File)


def uploads_only(field: Field) -> Field:
    """Let a field refuse addresses: gradio would fetch them, of any size, before this app sees anything."""
    take_upload = field.async_move_resource_to_block_cache

    async def refuse_address(place: str | Path | None) -> str | None:
        if str(place).startswith(("http://", "https://")):
            raise gr.Error("send the file itself, not its address", print_exception=False)
        return await take_upload(place)

    # On the instance: a subclass of a component makes gradio write a .pyi file beside its source.
    field.async_move_resource_to_block_cache = refuse_address  # type: ignore[assignment]
    return field
