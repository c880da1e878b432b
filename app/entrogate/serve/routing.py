"""Routes that are found again in the scope of a request, whatever dispatches it."""

from __future__ import annotations

from starlette import routing
from starlette.types import Scope


class Route(routing.Route):
    """A route that notes itself as ``route`` in the scope, where errors, metrics and traces look.

    Starlette's router does that for every route; FastAPI's own dispatch (0.137 and later) for
    FastAPI's routes alone.
    """

    def matches(self, scope: Scope) -> tuple[routing.Match, Scope]:
        """How well the request fits, and what a fitting one adds to the scope: this route, too."""
        match, child_scope = super().matches(scope)
        if match is not routing.Match.NONE:
            child_scope["route"] = self
        return match, child_scope
