# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportMissingTypeStubs=false
"""Rows to Arrow tables and back, and a dataset's rows one row group at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from entrogate.errors import ExportError
from entrogate.export.dataset import Dataset, Entry
from entrogate.export.schema import SCHEMA, SCHEMA_VERSION

_ID = "trajectory_id"
Row = dict[str, Any]
"""Column name to value; token columns are numpy arrays, of which None is a missing one."""


def to_table(rows: Sequence[Row]) -> pa.Table:
    """Rows as one table of `schema.SCHEMA`."""
    if not rows:
        return SCHEMA.empty_table()
    return pa.table([_column(rows, field) for field in SCHEMA], schema=SCHEMA)


def iter_rows(
    dataset: Dataset, columns: Sequence[str] = tuple(SCHEMA.names)
) -> Iterator[list[Row]]:
    """The rows of a dataset with these columns, in the order in which they were exported.

    Rows of trajectories that were erased are left out. Memory holds one row group. Raises
    ExportError for a part that cannot be read, is of another schema version or lacks a column.
    """
    for entry in dataset.entries:
        yield from part_rows(dataset, entry, columns)


def part_rows(
    dataset: Dataset, entry: Entry, columns: Sequence[str] = tuple(SCHEMA.names)
) -> Iterator[list[Row]]:
    """As `iter_rows`, of one part."""
    path = dataset.path(entry.part)
    try:
        with dataset.fs.open(path, "rb") as source:
            file = pq.ParquetFile(source)
            _check(file, path, columns)
            asked = list(columns)
            if dataset.erased and _ID not in asked:
                asked.append(_ID)
            for number in range(file.num_row_groups):
                rows = _rows(file.read_row_group(number, columns=asked))
                yield (
                    [row for row in rows if not dataset.is_erased(row[_ID])]
                    if (dataset.erased)
                    else rows
                )
    except (pa.ArrowException, OSError) as error:
        raise ExportError(f"{path} is no readable Parquet: {_one_line(error)}") from None


def _check(file: pq.ParquetFile, path: str, columns: Sequence[str]) -> None:
    names = file.schema_arrow.names
    if "schema_version" in names:
        found = set(file.read(columns=["schema_version"])["schema_version"].to_pylist())
        if found - {SCHEMA_VERSION}:
            versions = ", ".join(str(version) for version in sorted(found, key=str))
            raise ExportError(
                f"{path} is of schema version {versions}; this Entrogate reads {SCHEMA_VERSION}"
            )
    missing = [name for name in ("schema_version", *columns) if name not in names]
    if missing:
        raise ExportError(
            f"{path} lacks the columns {', '.join(missing)}: not written by `entrogate export`"
        )


def _rows(table: pa.Table) -> list[Row]:
    columns = {name: _values(table[name].combine_chunks()) for name in table.column_names}
    names = list(columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _values(column: pa.Array) -> list[Any]:
    if not pa.types.is_list(column.type) or pa.types.is_struct(column.type.value_type):
        return column.to_pylist()
    flat, ends = column.values.to_numpy(zero_copy_only=False), column.offsets.to_numpy()
    there = column.is_valid().to_numpy(zero_copy_only=False)
    return [flat[a:b] if own else None for own, (a, b) in zip(there, pairwise(ends), strict=True)]


def _column(rows: Sequence[Row], field: pa.Field) -> pa.Array:
    values = [row[field.name] for row in rows]
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    if len(arrays) != len(values) or not pa.types.is_list(field.type):
        return pa.array(values, type=field.type)
    offsets = np.zeros(len(values) + 1, dtype=np.int32)
    np.cumsum([len(value) for value in arrays], out=offsets[1:])
    items = np.concatenate(arrays) if arrays else np.empty(0)
    missing = np.isnan(items) if field.name == "reward_dense" else None
    flat = pa.array(items, type=field.type.value_type, mask=missing)
    return pa.ListArray.from_arrays(pa.array(offsets), flat)


def _one_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
