# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportMissingTypeStubs=false
"""A dataset to one file of another trainer's format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from entrogate.errors import ExportError
from entrogate.export.dataset import Dataset
from entrogate.export.formats import FORMATS
from entrogate.export.schema import SCHEMA_VERSION
from entrogate.export.tables import Row, iter_rows
from entrogate.export.targets import open_new, sync
from entrogate.wire.body import to_json


@dataclass(slots=True)
class Conversion:
    """Rows of the dataset that were read, and rows of the other format made of them."""

    read: int = 0
    made: int = 0


def convert(dataset: Dataset, name: str, target: str) -> Conversion:
    """Write the dataset to the file ``target`` in the format ``name``; memory holds a row group.

    Raises ExportError when a part is unreadable or nothing in it is of use.
    """
    format_, done = FORMATS[name], Conversion()

    def batches() -> Iterator[list[Row]]:
        for rows in iter_rows(dataset, format_.columns):
            made = [new for row in rows for new in format_.adapt(row)]
            done.read += len(rows)
            done.made += len(made)
            yield made

    fs, path = url_to_fs(target)
    with open_new(fs, path) as out:
        if format_.schema is None:
            _write_lines(out, batches())
        else:
            about = {"entrogate.schema_version": str(SCHEMA_VERSION), "entrogate.format": name}
            _write_parquet(out, format_.schema.with_metadata(about), batches())
        sync(out)
    if not done.made:
        raise ExportError(f"nothing to convert to {name}: of {done.read} rows none {format_.wants}")
    return done


def _write_parquet(out: Any, schema: pa.Schema, batches: Iterator[list[Row]]) -> None:
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        for rows in batches:
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _write_lines(out: Any, batches: Iterator[list[Row]]) -> None:
    """JSON has no NaN: it becomes null."""
    for rows in batches:
        for row in rows:
            out.write(to_json(row) + b"\n")
