"""The endpoints as tools of a real MCP client, where the package mcp is installed; its absence is told."""

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from app_support import HTTP, RunningApp, bad_images, model_folder, running_app, upload, write_images

from aimonk_hf.cli.main import main
from aimonk_hf.modeling.model import AimonkModel

__all__ = ["model_folder"]  # a fixture


def test_without_the_package_the_flag_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys.modules["aimonk_hf.app.serve"], "find_spec", lambda name: None)
    assert main(["app", "--mcp"]) == 2
    assert "--mcp needs the package mcp: pip install 'aimonk_hf[mcp]'" in capsys.readouterr().err


def test_no_address_of_it_is_open_without_the_flag(model_folder: Path) -> None:
    with running_app(model_folder) as app:
        for path in ("mcp", "mcp/", "mcp/http", "mcp/sse", "mcp/messages/", "mcp/schema"):
            for method in ("GET", "POST", "DELETE"):
                assert HTTP.request(method, f"{app.url}/gradio_api/{path}", json={}).status_code == 404, path


def ask(app: RunningApp, calls: list[tuple[str, dict[str, Any]]]) -> tuple[dict[str, list[str]], list[Any]]:
    """Return the tools with their parameters, and the answer to each call as a real client reads it."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def talk() -> tuple[dict[str, list[str]], list[Any]]:
        async with (
            streamablehttp_client(f"{app.url}/gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = {tool.name: list(tool.inputSchema["properties"]) for tool in (await session.list_tools()).tools}
            return tools, [await session.call_tool(name, arguments) for name, arguments in calls]

    return asyncio.run(talk())


def test_a_client_predicts_explains_and_is_refused_what_is_no_upload(
    tiny_model: AimonkModel, model_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("mcp", reason="no package mcp, for which gradio wants an older pydantic: aimonk_hf[mcp]")
    image, bad = write_images(tmp_path / "images", 1)[0], bad_images(tmp_path / "bad")
    expected = tiny_model.predict(image)
    with running_app(model_folder, mcp=True) as app:
        place = f"{app.url}/gradio_api/file="
        sent = place + upload(app.url, image)["path"]
        text = place + upload(app.url, bad["text.png"])["path"]
        data = f"data:image/png;base64,{base64.b64encode(image.read_bytes()).decode()}"
        moved = {"collar": 0.0, "belt": 1.0, "sleeves": 1.0, "stripes": 1}
        good = [{"image": sent}, {"image": data}, {"image": sent, **moved}]
        refused = {
            "http://127.0.0.1:9/a.png": "Send the file itself, not its address.",
            "http://169.254.169.254/latest/meta-data/": "Send the file itself, not its address.",
            f"{place}/etc/passwd": "The file was not uploaded to this app.",
            f"{place}{app.folder}/../../etc/passwd": "The file was not uploaded to this app.",
            f"{place}http://127.0.0.1:9/a.png": "Send the file itself, not its address.",
            text: "Not an image file.",
            "data:image/png;base64,@@@": "The file is empty.",
            "/etc/passwd": "Invalid file data format",
        }
        calls = [("predict", arguments) for arguments in good]
        calls += [("predict", {"image": address}) for address in refused]
        calls += [("heatmap", {"image": sent, "attribute": "belt"}), ("heatmap", {"image": sent, "attribute": "hat"})]
        calls += [("model", {}), ("predict_batch", {"files": [sent]}), ("decide", {})]
        tools, answers = ask(app, calls)
        assert tools == {"predict": ["image", *expected.scores], "heatmap": ["image", "attribute"], "model": []}
        for answer, present in zip(answers, [expected.attributes, expected.attributes, ["collar"]], strict=False):
            assert not answer.isError
            assert str(present) in answer.content[0].text
            assert f"'belt': {expected.scores['belt']:.4f}"[:-1] in answer.content[0].text
        for answer, words in zip(answers[3:], refused.values(), strict=False):
            assert (answer.isError, answer.content[0].text.startswith(words)) == (True, True), answer
        drawn, unknown, facts, *closed = answers[3 + len(refused) :]
        assert base64.b64decode(drawn.content[0].data).startswith(b"\x89PNG")
        assert "'hat' is not one of" in unknown.content[0].text
        assert "test_resnet" in facts.content[0].text
        assert all(answer.isError for answer in closed)

        mcp, wanted = f"{app.url}/gradio_api/mcp/", {"Accept": "application/json, text/event-stream"}
        for headers, content, status in (
            ({"Host": "evil.example"}, b"{}", 400),
            ({}, b"no JSON", 400),
            ({}, b" " * 16_000_000, 413),
            ({}, json.dumps({"jsonrpc": "2.0", "id": 1, "method": "nothing"}).encode(), 200),
        ):
            answer = HTTP.post(mcp, content=content, headers=wanted | {"Content-Type": "application/json"} | headers)
            assert answer.status_code == status
            assert "Traceback" not in answer.text
        for path in ("sse", "schema", "messages/"):
            assert HTTP.get(f"{mcp}{path}").status_code == 404
        assert HTTP.get(mcp).status_code == 404
