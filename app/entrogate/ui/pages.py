"""Templates to HTML; every value that is put into one is escaped."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from entrogate.store.read.rows import Bounds
from entrogate.wire.body import to_json

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self';"
        " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # without one a browser says of a form: from nowhere
    "cache-control": "no-store",
}
"""Of every page: nothing but our own style and script runs, whatever a prompt may hold."""

SHOWN_CHARACTERS = 20_000
"""Of one message, one result or one call's arguments."""


def page(template: str, /, **values: Any) -> str:
    """The HTML of a template in ``templates/``."""
    return _environment.get_template(template).render(values)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _interval(bounds: Bounds | None, digits: int = 2) -> str:
    """Bounds as one number where they meet to that many digits."""
    if bounds is None:
        return "–"
    lower, upper = _number(bounds.lower, digits), _number(bounds.upper, digits)
    return lower if lower == upper else f"{lower} … {upper}"


def _signed(bounds: Bounds | None) -> str:
    if bounds is None:
        return "–"
    lower, upper = f"{bounds.lower:+.2f}", f"{bounds.upper:+.2f}"
    return lower if lower == upper else f"{lower} … {upper}"


def _said(content: object) -> str:
    """The text of a message's content; parts that are no text by their kind."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return to_json(content).decode()
    parts: list[str] = []
    for part in content:  # pyright: ignore[reportUnknownVariableType]
        if isinstance(part, dict) and part.get("type") == "text":  # pyright: ignore
            parts.append(str(part.get("text")))  # pyright: ignore
        else:
            parts.append(f"[{part.get('type', 'part') if isinstance(part, dict) else 'part'}]")  # pyright: ignore
    return "".join(parts)


def _cut(text: object) -> str:
    """A text as far as a page shows it."""
    whole = str(text)
    more = len(whole) - SHOWN_CHARACTERS
    if more <= 0:
        return whole
    return f"{whole[:SHOWN_CHARACTERS]}\n… {more} more characters: see /v1/trajectories"


_environment = Environment(
    loader=PackageLoader("entrogate.ui"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters.update(  # pyright: ignore[reportUnknownMemberType]
    {
        "time": _time,
        "number": _number,
        "interval": _interval,
        "signed": _signed,
        "said": _said,
        "cut": _cut,
    }
)
