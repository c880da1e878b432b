# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportMissingTypeStubs=false
"""What a run was made of: data, settings, versions; written beside its result."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from entrogate import __version__
from entrogate.errors import ConfigError
from entrogate.export.dataset import Dataset
from entrogate.private import make_file, make_folder
from entrogate.train.data import DataReport
from entrogate.train.settings import TrainSettings

if TYPE_CHECKING:
    from entrogate.train.trainer import RunResult

RECORD = "record.json"
_VERSIONS = ("torch", "transformers", "peft", "accelerate", "numpy", "pyarrow")


def describe(settings: TrainSettings, report: DataReport) -> dict[str, Any]:
    """Everything known before the first step."""
    return {
        "entrogate": __version__,
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in _VERSIONS},
        "settings": settings.model_dump(),
        "data": {url: _parts(url) for url in settings.data},
        "report": _plain(report),
    }


def write_record(folder: Path, described: dict[str, Any], result: RunResult | None) -> None:
    """``result`` is None while the run goes on."""
    found = described | {"result": None if result is None else asdict(result)}
    make_folder(folder)
    temporary = folder / f"{RECORD}.tmp"
    make_file(temporary)
    temporary.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2))
    temporary.replace(folder / RECORD)


def check_same_run(folder: Path, described: dict[str, Any]) -> None:
    """Raise ConfigError when ``folder`` holds a run of other settings or data."""
    path = folder / RECORD
    if not path.exists():
        return
    before = orjson.loads(path.read_bytes())
    wanted = orjson.loads(orjson.dumps(described))
    for part in ("settings", "data"):
        for name in sorted({*before[part], *wanted[part]}):
            if before[part].get(name) != wanted[part].get(name):
                raise ConfigError(
                    f"{folder} holds another run ({part}: {name} differs); use another --out"
                )


def _plain(report: DataReport) -> dict[str, Any]:
    fields = {name: getattr(report, name) for name in DataReport.__slots__}
    found = {name: sorted(v) if isinstance(v, set) else v for name, v in fields.items()}
    return found | {"skipped": dict(report.skipped)}


def _parts(url: str) -> dict[str, str]:
    return {entry.part: entry.sha256 for entry in Dataset.reading(url).entries}
