"""The four tools, as schemas for the model and as functions over a `Source`."""

import json
import re
from collections.abc import Mapping
from typing import Any

from entrogate_lab.almanac.world import PLACE_ATTRIBUTES, Source

Arguments = Mapping[str, Any]

_PARAMETERS: dict[str, dict[str, str]] = {
    "lookup": {
        "entity": "full name of a person",
        "attribute": "city, guild, ship, mentor, partner",
    },
    "calculator": {"expression": "two whole numbers with +, - or * between"},
    "search": {"query": "name of a place and founder or river"},
    "read": {"page": "number of a page"},
}
_DESCRIPTIONS = {
    "lookup": "One fact about a person.",
    "calculator": "Works out one operation.",
    "search": "Finds pages of the library.",
    "read": "The text of one page.",
}
DOMAIN_TOOLS: dict[str, tuple[str, ...]] = {
    "facts": ("lookup",),
    "sums": ("calculator",),
    "walk": ("search", "read"),
}
ALL_TOOLS = tuple(_PARAMETERS)

_EXPRESSION = re.compile(r"\s*(\d{1,12})\s*([-+*])\s*(\d{1,12})\s*")


def tool_schema(name: str) -> dict[str, Any]:
    """The tool in the shape of OpenAI's `tools` parameter."""
    properties = {
        key: {"type": "string", "description": text} for key, text in _PARAMETERS[name].items()
    }
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": _DESCRIPTIONS[name],
            "parameters": {
                "type": "object",
                "properties": properties,
                "required": list(properties),
            },
        },
    }


def calculate(expression: str) -> int | None:
    """The value of `a op b` with op one of + - *, or None when it is not of that form."""
    match = _EXPRESSION.fullmatch(expression)
    if match is None:
        return None
    left, operator, right = int(match[1]), match[2], int(match[3])
    if operator == "+":
        return left + right
    return left - right if operator == "-" else left * right


def search(source: Source, query: str) -> str:
    """Snippets for the place and attribute in the query, a similarly named place's among them."""
    words = set(query.split())
    lines: list[tuple[int, str]] = []
    wanted = [attribute for attribute in PLACE_ATTRIBUTES if attribute in words]
    for place in source.places():
        if not set(place.split()) <= words:
            continue
        for name in (place, source.twin(place)):
            for attribute in wanted or PLACE_ATTRIBUTES:
                entry = source.entry(name, attribute) if name is not None else None
                if entry is not None:
                    lines.append((entry.page, entry.snippet()))
    return "\n".join(line for _, line in sorted(set(lines))) or "nothing found"


def read(source: Source, page: str) -> str:
    """The text of a page."""
    entry = source.on_page(int(page)) if page.isascii() and page.isdigit() else None
    return entry.text(int(page)) if entry is not None else "no such page"


def execute(source: Source, name: str, arguments: Arguments) -> str:
    """Run one call as the client of an agent does; what goes wrong comes back as text."""
    if name not in _PARAMETERS:
        return f"no tool {name}"
    values = {key: str(arguments[key]).strip() for key in _PARAMETERS[name] if key in arguments}
    missing = [key for key in _PARAMETERS[name] if key not in values]
    if missing:
        return f"missing {missing[0]}"
    if name == "lookup":
        value = source.fact(values["entity"], values["attribute"])
        return "no record" if value is None else f"{values['attribute']}: {value}"
    if name == "calculator":
        result = calculate(values["expression"])
        return "cannot work that out" if result is None else f"= {result}"
    return search(source, values["query"]) if name == "search" else read(source, values["page"])


def call_key(name: str, arguments: Arguments) -> str:
    """Name and arguments in one canonical string: equal strings are the same call."""
    return f"{name} {json.dumps(dict(arguments), sort_keys=True)}"
