"""Where the app's model comes from, and the repository as a Space."""

from pathlib import Path

import gradio as gr
import pytest
import yaml
from hub_support import hub
from loopback_hub import LoopbackHub

from aimonk_hf.app.serve import app_folder, open_page
from aimonk_hf.modeling.model import AimonkModel

__all__ = ["hub"]

ROOT = Path(__file__).parents[1]


def shown(page: gr.Blocks, name: str) -> str:
    """Return the text of the page's block with that id."""
    return next(block.value for block in page.blocks.values() if getattr(block, "elem_id", None) == name)


def test_a_hub_repository_is_served(hub: LoopbackHub, tiny_model: AimonkModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model.push_to_hub("user/garments")
    monkeypatch.setenv("AIMONK_MODEL", "user/garments")
    for wanted in ("user/garments", None):
        with app_folder() as folder:
            page = open_page(wanted, folder)
            assert "<h1>user/garments</h1>" in shown(page, "title")
            assert "<code>test_resnet</code>" in shown(page, "model-page")


def test_a_hub_repository_that_is_not_there_gives_the_page_without_a_model(hub: LoopbackHub) -> None:
    with app_folder() as folder:
        text = shown(open_page("user/nothing", folder), "missing")
    assert "user/nothing" in text
    assert "aimonk-hf train" in text
    assert "Traceback" not in text


def test_the_repository_is_a_space() -> None:
    front = yaml.safe_load((ROOT / "README.md").read_text().split("---")[1])
    assert front["sdk"] == "gradio"
    assert front["sdk_version"].split(".")[0] == gr.__version__.split(".")[0]
    assert (ROOT / front["app_file"]).is_file()
    assert len(front["short_description"]) <= 60  # the Hub refuses longer ones
    assert {front["colorFrom"], front["colorTo"]} <= {
        "red",
        "yellow",
        "green",
        "blue",
        "indigo",
        "purple",
        "pink",
        "gray",
    }
