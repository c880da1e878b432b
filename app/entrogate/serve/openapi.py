"""``/openapi.json``: what FastAPI knows of its routes, and `openapi.yaml` for all the others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from entrogate.serve.access import SCOPES

_WRITTEN = Path(__file__).with_name("openapi.yaml")
_METHODS = ("get", "post", "put", "patch", "delete")
_TAGS = {
    "/v1/": "Records",
    "/admin/fuses": "Fuses",
    "/admin/": "Weights",
    "/": "Status",
}
# OpenAPI writes no kind behind the name of a part of the path.
_SCOPES = {re.sub(r":\w+}", "}", path): scope for path, scope in SCOPES.items()}
_ERROR = {"$ref": "#/components/responses/Error"}


def describe_api(app: FastAPI) -> None:
    """Let ``app`` say the whole document; it is made when it is first asked for."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document


def _document(app: FastAPI) -> dict[str, Any]:
    made = get_openapi(title=app.title, version=app.version, routes=app.routes)
    written: dict[str, Any] = yaml.safe_load(_WRITTEN.read_text(encoding="utf-8"))
    for path, _, operation in operations(made["paths"]):
        operation.setdefault("tags", [next(t for at, t in _TAGS.items() if path.startswith(at))])
        operation["responses"].pop("422", None)  # an invalid body is answered with 400, our way
        operation["responses"]["default"] = _ERROR
    made["paths"] |= written["paths"]
    for path, method, operation in operations(made["paths"]):
        scope = _SCOPES.get(f"{method.upper()} {path}", _SCOPES[path])
        if scope is None:
            operation["security"] = []
            continue
        operation["security"] = [{"bearer": []}, {"apiKey": []}]
        said = operation.get("description", "")
        operation["description"] = f"{said}\n\nScope of the key: `{scope.value}`.".lstrip()
    components = made.setdefault("components", {})
    for kind, parts in written["components"].items():
        components[kind] = components.get(kind, {}) | parts
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    made["info"] |= written["info"]
    made["tags"] = written["tags"]
    return made


def operations(paths: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method and description of every operation of a document."""
    for path, methods in paths.items():
        for method in _METHODS:
            if method in methods:
                yield path, method, methods[method]
