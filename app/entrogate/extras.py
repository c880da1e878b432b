"""How to install what the base install lacks, as a command for the way this one was installed."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit

LAB = "entrogate-lab"
_LAB_FOLDER = "app/entrogate_lab"


def install_command(extra: str) -> str:
    """The pip command for an extra (``calibrate``), or for entrogate-lab and its extras
    (``entrogate-lab``, ``entrogate-lab[experiment]``)."""
    return command_for(extra, _source())


def command_for(extra: str, source: str | None) -> str:
    """The same for an install from ``source``: a URL, or None from a package index."""
    is_lab = extra.startswith(LAB)
    name = extra if is_lab else f"entrogate[{extra}]"
    if source is None:
        return f"pip install '{name}'"
    folder = _clone(source)
    place = "." if folder is None else str(folder)
    wanted = f"{place}/{_LAB_FOLDER}{extra.removeprefix(LAB)}" if is_lab else f"{place}[{extra}]"
    return f"pip install '{wanted}'" + (" in a clone" if folder is None else "")


def _source() -> str | None:
    """The URL that pip noted for an install that is not from an index."""
    try:
        noted = distribution("entrogate").read_text("direct_url.json")
    except PackageNotFoundError:  # run from the sources
        return ""
    return None if noted is None else str(json.loads(noted).get("url", ""))


def _clone(source: str) -> Path | None:
    """The folder that was installed from, if it is still there."""
    parts = urlsplit(source)
    folder = Path(unquote(parts.path))
    return folder if parts.scheme == "file" and (folder / "pyproject.toml").is_file() else None
