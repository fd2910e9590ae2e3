"""Answer plain HTTP beside gradio's calls: /v1/predict, /v1/model, /v1/example, and their description at /docs."""

import asyncio
import html
import io
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, cast

import numpy as np
from anyio import CapacityLimiter, to_thread
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route, Router

from aimonk_hf.app.endpoints import model_facts, rounded, slugs
from aimonk_hf.app.gradio_internals import public_address
from aimonk_hf.app.heatmap import data_url, heat_map, overlay
from aimonk_hf.app.predict_tab import read_static
from aimonk_hf.app.scoring import Served
from aimonk_hf.app.uploads import MAX_AT_ONCE, Upload, sentence
from aimonk_hf.data.sample_data import draw_garment
from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.prediction import Prediction

PLACES = re.compile(r"/(v1/(predict|model|example)|docs|openapi\.json)")
MAX_FILES = 100  # in one request: each holds a file descriptor
AT_ONCE = 8  # images of one request on their way, so that the network gets whole batches and others have their turn
THREADS = 16  # that read images, for all requests
SPOOLED = 1 << 16  # bytes of a file in memory while it arrives; the rest waits on the disk


class _Parser(MultiPartParser):
    spool_max_size = SPOOLED


class PlainApi:
    """Answer the requests to `PLACES`, which the gate has let in."""

    def __init__(self, served: Served, examples: list[Path]) -> None:
        self.served = served
        self.parameters = slugs(served.stored)
        draw_garment(np.random.default_rng(0)).image.save(drawn := io.BytesIO(), "PNG")
        self.example = examples[0].read_bytes() if examples else drawn.getvalue()
        self.threads = CapacityLimiter(THREADS)
        self.router = Router(
            [
                Route("/v1/predict", self.predict, methods=["POST"]),
                Route("/v1/model", lambda _: JSONResponse(model_facts(served))),
                Route("/v1/example", lambda _: Response(self.example, media_type="image/png")),
                Route("/openapi.json", lambda request: JSONResponse(self._description(public_address(request)))),
                Route("/docs", lambda request: HTMLResponse(self._docs(public_address(request)))),
            ]
        )

    def longest_body(self, headers: Headers) -> tuple[int, str]:
        """Return how many bytes a request may have, an image or a form, and advice for one that has more."""
        most = self.served.limits.max_bytes
        return (MAX_AT_ONCE * most, "send the files in parts") if _is_form(headers) else (most, "send a smaller image")

    async def predict(self, request: Request) -> Response:
        """Score the image of the body, or those of a form."""
        async with self._sent(request) as (files, fields):
            try:
                thresholds, heatmap = self._settings(fields)
                if heatmap and len(files) > 1:
                    raise AimonkError("A heat map is drawn for one image at a time")
            except AimonkError as error:
                raise HTTPException(422, sentence(error)) from error
            turns = asyncio.Semaphore(AT_ONCE)

            async def score(file: UploadFile) -> dict[str, Any]:
                async with turns:
                    return await to_thread.run_sync(self._score, file, thresholds, heatmap, limiter=self.threads)

            rows = await asyncio.gather(*map(score, files))
        if len(rows) == 1 and "error" in rows[0]:
            raise HTTPException(422, rows[0]["error"])
        return JSONResponse({"model": self.served.name, "thresholds": thresholds, "predictions": rows})

    @asynccontextmanager
    async def _sent(self, request: Request) -> AsyncIterator[tuple[list[UploadFile], list[tuple[str, str]]]]:
        """Yield the files of a request, and the fields of its address and form."""
        fields = request.query_params.multi_items()
        async with AsyncExitStack() as opened:
            if _is_form(request.headers):
                most = len(self.parameters) + 1
                parser = _Parser(
                    request.headers, request.stream(), max_files=MAX_FILES, max_fields=most, max_part_size=4096
                )
                try:
                    form = await parser.parse()
                except MultiPartException as error:
                    raise HTTPException(400, error.message) from error
                opened.push_async_callback(form.close)
                files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
                fields += [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
            else:
                spool = opened.enter_context(SpooledTemporaryFile(SPOOLED))  # noqa: SIM115
                file = UploadFile(cast(BinaryIO, spool), size=0, filename="image")
                async for chunk in request.stream():
                    await file.write(chunk)
                files = [file] if file.size else []
            if not files:
                raise HTTPException(422, "No image was sent: send its bytes as the body, or files as a form.")
            yield files, fields

    def _settings(self, fields: list[tuple[str, str]]) -> tuple[dict[str, float], str | None]:
        """Return the thresholds, and the attribute whose heat map is wanted."""
        given: dict[str, float] = {}
        heatmap = None
        for name, value in fields:
            if name == "heatmap":
                heatmap = self.parameters.get(value, value)
            elif name not in self.parameters:
                known = ", ".join(list(self.parameters)[:50])
                raise AimonkError(f"There is no parameter {name[:60]!r}: there are heatmap, {known}")
            else:
                try:
                    given[self.parameters[name]] = float(value)
                except ValueError as error:
                    raise AimonkError(f"The threshold {name} must be a number, found {value[:60]!r}") from error
        return self.served.thresholds(given), heatmap

    def _score(self, file: UploadFile, thresholds: dict[str, float], heatmap: str | None) -> dict[str, Any]:
        """Return the row of an image: name, attributes, scores, notes and heat map, or its error."""

        def read() -> bytes:
            self.served.limits.check_size(file.size or 0)
            file.file.seek(0)
            return file.file.read()

        upload = Upload(file.filename or "image", read, file.size or 0)
        try:
            pixels, notes = self.served.read(upload)
            scores = self.served.scorer.score(pixels)
            row: dict[str, Any] = {"image": upload.name, "attributes": Prediction(scores, thresholds).attributes}
            row |= {"scores": rounded(scores)} | ({"notes": notes} if notes else {})
            if heatmap:
                heat = heat_map(self.served.scorer, pixels, heatmap)
                row["heatmap"] = data_url(overlay(pixels, heat), "PNG")
            return row
        except AimonkError as error:
            return {"image": upload.name, "error": sentence(error)}

    def _docs(self, address: str) -> str:
        """Return the page on the API, with examples that run as they are."""
        served, (first, *_) = self.served, self.parameters
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td><code>{slug}</code></td><td>{served.stored[name]:.3g}</td></tr>"
            for slug, name in self.parameters.items()
        )
        page = read_static("docs.html").replace("@NAME@", html.escape(served.name)).replace("@PARAMETER@", first)
        return page.replace("@APP@", html.escape(address)).replace("@ROWS@", rows)

    def _description(self, address: str) -> dict[str, Any]:
        """Return the OpenAPI description."""
        text, image = {"type": "string"}, {"type": "string", "format": "binary"}
        scores = {"type": "object", "additionalProperties": {"type": "number"}}
        row = {"image": text, "attributes": {"type": "array", "items": text}, "scores": scores, "notes": text}
        rows = {"type": "array", "items": {"type": "object", "properties": row | {"heatmap": text, "error": text}}}
        answer = {"type": "object", "properties": {"model": text, "thresholds": scores, "predictions": rows}}
        fields: dict[str, Any] = {
            slug: {"type": "number", "minimum": 0, "maximum": 1, "default": self.served.stored[name]}
            for slug, name in self.parameters.items()
        }
        fields["heatmap"] = text | {"enum": list(self.parameters), "description": "draw one, for one image"}
        form = {"type": "object", "properties": {"files": {"type": "array", "items": image}} | fields}
        bodies = {"application/octet-stream": {"schema": image}, "multipart/form-data": {"schema": form}}
        refused = {"description": "refused, for the reason in `detail`"}
        predict = {
            "summary": "Score the image of the body, or the files of a form; numbers are thresholds",
            "parameters": [{"name": name, "in": "query", "schema": schema} for name, schema in fields.items()],
            "requestBody": {"required": True, "content": bodies},
            "responses": _answer(answer) | dict.fromkeys(("400", "411", "413", "422", "507"), refused),
        }
        model = {"summary": "Tell attributes, thresholds and metrics", "responses": _answer({"type": "object"})}
        example = {"summary": "Give an image to try", "responses": _answer(image, "image/png")}
        return {
            "openapi": "3.1.0",
            "info": {"title": f"Attributes of images: {self.served.name}", "version": "1"},
            "servers": [{"url": address}],
            "paths": {"/v1/predict": {"post": predict}, "/v1/model": {"get": model}, "/v1/example": {"get": example}},
        }


def _is_form(headers: Headers) -> bool:
    return headers.get("content-type", "").lower().startswith("multipart/form-data")


def _answer(schema: dict[str, Any], kind: str = "application/json") -> dict[str, Any]:
    return {"200": {"description": "the answer", "content": {kind: {"schema": schema}}}}
