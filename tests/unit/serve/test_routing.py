"""Every route of ours is in the scope of what it answers, whichever FastAPI dispatches."""

from __future__ import annotations

import re

from fastapi import FastAPI
from starlette.routing import Match, Route

from entrogate.serve.app import add_routes


def test_every_route_notes_itself_in_the_scope() -> None:
    """FastAPI 0.137 and later set it for FastAPI's routes alone, so each does it by itself."""
    app = FastAPI(openapi_url=None)
    add_routes(app)
    checked = 0
    for route in app.routes:
        assert isinstance(route, Route)
        path = re.sub(r"\{[^}]*\}", "x", route.path)
        for method in route.methods or ():
            scope = {"type": "http", "path": path, "method": method, "path_params": {}}
            match, child_scope = route.matches(scope)
            assert match is Match.FULL
            assert child_scope.get("route") is route, route.path
            checked += 1
    assert checked > 20
    assert "route" not in app.routes[0].matches({**scope, "path": "/nowhere"})[1]
