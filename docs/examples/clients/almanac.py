"""What the examples share: a tool over the Almanac, the small world of the bundled model.

The model knows some people of that world by heart and has to look up the others.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from entrogate_lab.almanac.tools import execute, tool_schema
from entrogate_lab.almanac.world import make_world

WORLD = make_world(0)
LOOKUP: dict[str, Any] = tool_schema("lookup")["function"]  # its name, description, parameters
TURNS = 8  # as many as an agent takes before it gives up
DEFAULTS = ("http://127.0.0.1:8400", "Which guild does Keren Nemuek serve?")


def lookup(entity: str = "", attribute: str = "") -> str:
    """One fact about a person; a small model forgets arguments at times, and reads why."""
    return execute(WORLD, "lookup", {"entity": entity, "attribute": attribute})


def called(arguments: str | dict[str, Any]) -> str:
    """What a call brings. A model may write anything as its arguments: then it is told so."""
    try:
        given = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        given = None
    if not isinstance(given, dict):
        return "arguments are not an object"
    return execute(WORLD, "lookup", given)


def run(answer: Callable[..., Awaitable[str]]) -> None:
    """``python EXAMPLE.py [URL OF THE GATEWAY] [QUESTION]``."""
    gateway, question, *more = [*sys.argv[1:], *DEFAULTS[len(sys.argv) - 1 :]]
    print(asyncio.run(answer(gateway, question, *more)))
