"""The fixture that points the real client at a loopback Hub."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from loopback_hub import WRITER, LoopbackHub, serve_hub


@pytest.fixture
def hub(monkeypatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """A Hub that this process talks to, with a clean cache and the writer's token."""
    with serve_hub() as server:
        files = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", WRITER)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        yield server
