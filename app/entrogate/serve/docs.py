"""``/docs``: `/openapi.json` as a page of our own, which loads nothing from anywhere else."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from entrogate.serve.openapi import operations
from entrogate.serve.routing import Route
from entrogate.ui.pages import HEADERS, page

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path, as the page shows it."""

    method: str
    path: str
    said: Json
    parameters: list[Json]
    body: str | None  # its schema
    answers: list[tuple[str, str]]  # status and what it means

    @property
    def anchor(self) -> str:
        """The fragment of the page's URL that leads to this operation."""
        return f"{self.method}-{self.path.strip('/').replace('/', '-') or 'root'}"


async def docs(request: Request) -> Response:
    """Every operation of the API."""
    app: FastAPI = request.app
    shown: str | None = getattr(app.state, "docs_page", None)
    if shown is None:
        shown = app.state.docs_page = _render(app.openapi())
    return HTMLResponse(shown, headers=HEADERS)


DOCS = (Route("/docs", docs),)


def _render(document: Json) -> str:
    by_tag: defaultdict[str, list[Operation]] = defaultdict(list)
    for path, method, said in operations(document["paths"]):
        shown = _operation(document, path, method, said)
        for tag in said.get("tags", ["Other"])[:1]:
            by_tag[tag].append(shown)
    schemas = {
        name: _pretty(schema) for name, schema in document["components"].get("schemas", {}).items()
    }
    return page(
        "docs.html",
        here="/docs",
        info=document["info"],
        tags=[(tag, by_tag[tag["name"]]) for tag in document["tags"] if tag["name"] in by_tag],
        schemas=schemas,
    )


def _operation(document: Json, path: str, method: str, said: Json) -> Operation:
    content: Json = _resolved(document, said.get("requestBody", {})).get("content", {})
    schema: Json | None = content.get("application/json", {}).get("schema")
    return Operation(
        method=method,
        path=path,
        said=said,
        parameters=[_resolved(document, each) for each in said.get("parameters", [])],
        body=None if schema is None else _pretty(schema),
        answers=[
            (status, _resolved(document, each).get("description", ""))
            for status, each in said["responses"].items()
        ],
    )


def _resolved(document: Json, part: Json) -> Json:
    """What a ``$ref`` of the document stands for."""
    found: Any = part
    while "$ref" in found:
        names = found["$ref"].removeprefix("#/").split("/")
        found = document
        for name in names:
            found = found[name]
    return found


def _pretty(value: object) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
