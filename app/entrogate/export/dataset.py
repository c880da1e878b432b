# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportMissingTypeStubs=false
"""A dataset folder: Parquet parts by date, and a manifest that makes each of them happen once.

    DATASET/date=2026-11-23/part-000007.parquet     what readers read
    DATASET/_manifest/000007.json                   which trajectories are in it
    DATASET/_staged/000007.parquet                  a part on its way
    DATASET/_erased.json                            what our readers skip until it is taken out

A part is written under ``_staged``, then the manifest entry that names it is written (the commit),
then the part is renamed into its place. A run that died before the commit leaves a staged part
that the next run removes; one that died after it leaves a rename that the next run carries out.
Readers see ``date=*/*.parquet`` alone.
"""

from __future__ import annotations

import hashlib
import logging
import posixpath
from collections.abc import Generator, Iterable
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from entrogate.access import digest_of_trajectory
from entrogate.errors import ExportError
from entrogate.export.schema import SCHEMA_VERSION
from entrogate.export.targets import make_folders, open_new, sync
from entrogate.private import is_open_to_others, make_file, make_folder, warning_of
from entrogate.types import Cursor

_MANIFEST, _STAGED = "_manifest", "_staged"
CARD = "_card.json"
ERASED = "_erased.json"
_ROW_GROUP = 256

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One committed part."""

    number: int
    part: str  # path below the dataset
    rows: int
    sha256: str
    cursor: Cursor | None  # where the next export may begin; None: at the beginning
    wanted: str  # names the filter under which that holds
    counts: dict[str, float]  # what the card sums up


@dataclass(slots=True)
class Dataset:
    """A dataset folder, local or behind any URL that fsspec knows."""

    fs: Any
    root: str
    entries: list[Entry] = field(default_factory=list[Entry])
    erased: frozenset[str] = frozenset()  # digests of trajectories that are still in a part

    @classmethod
    @contextmanager
    def writing(cls, url: str) -> Generator[Dataset]:
        """Open for writing, alone (on a local folder), after carrying out what a crash left undone.

        Raises ExportError, in one line, when that is not possible.
        """
        try:
            fs, root = url_to_fs(url)
            local = isinstance(fs, LocalFileSystem)
            with _lock(Path(root)) if local else nullcontext():
                dataset = cls(fs, root)
                for name in (_MANIFEST, _STAGED):
                    make_folders(fs, dataset.path(name))
                dataset.entries = dataset._read_entries()
                dataset._recover()
                dataset.erased = dataset._read_erased()
                yield dataset
        except OSError as error:
            raise ExportError(f"cannot write to {url}: {error}") from None
        except (ImportError, ValueError) as error:
            raise ExportError(f"cannot use {url}: {error}") from None

    @classmethod
    def reading(cls, url: str) -> Dataset:
        """Open what is committed. ExportError when there is no dataset or it is half-written."""
        try:
            fs, root = url_to_fs(url)
            dataset = cls(fs, root)
            if not fs.exists(dataset.path(_MANIFEST)):
                raise ExportError(f"{url} is no dataset: it has no {_MANIFEST} folder")
            dataset.entries = dataset._read_entries()
            dataset.erased = dataset._read_erased()
            for entry in dataset.entries:
                if not fs.exists(dataset.path(entry.part)):
                    raise ExportError(
                        f"{url}: part {entry.part} is missing; run the export again to repair it"
                    )
        except (OSError, ImportError, ValueError) as error:
            raise ExportError(f"cannot read {url}: {error}") from None
        return dataset

    def path(self, *parts: str) -> str:
        """A path inside the dataset, as fsspec's file system takes it."""
        return posixpath.join(self.root, *parts)

    def cursor(self, wanted: str) -> Cursor | None:
        """How far the last part came, if it was exported under the same filter."""
        last = self.entries[-1] if self.entries else None
        return last.cursor if last is not None and last.wanted == wanted else None

    def trajectory_ids(self, entry: Entry) -> tuple[str, ...]:
        """The trajectories of a part: read again each time, for there may be millions of them."""
        return tuple(_read_json(self.fs, self._entry_path(entry.number))["trajectory_ids"])

    def sequences(self, entry: Entry) -> npt.NDArray[np.int64]:
        """The commit of the last change of each of them; -1 in parts of earlier versions."""
        fields = _read_json(self.fs, self._entry_path(entry.number))
        found = fields.get("sequences", [-1] * len(fields["trajectory_ids"]))
        return np.array(found, dtype=np.int64)

    def is_erased(self, trajectory_id: str) -> bool:
        """Whether readers are to skip this trajectory."""
        return bool(self.erased) and digest_of_trajectory(trajectory_id) in self.erased

    def kept(self, entry: Entry) -> list[tuple[str, int]]:
        """The trajectories of a part that nobody has erased, with the commits of `sequences`."""
        numbered = zip(self.trajectory_ids(entry), self.sequences(entry).tolist(), strict=True)
        return [(id_, sequence) for id_, sequence in numbered if not self.is_erased(id_)]

    def exported(self) -> set[str]:
        """The trajectories that are in it, all in memory."""
        return {id_ for entry in self.entries for id_ in self.trajectory_ids(entry)}

    def commit(
        self,
        table: pa.Table,
        *,
        day: str,
        cursor: Cursor | None,
        wanted: str,
        trajectory_ids: Iterable[str],
        sequences: Iterable[int],
        counts: dict[str, float],
    ) -> Entry:
        """Add one part, wholly or not at all."""
        number = self.entries[-1].number + 1 if self.entries else 0
        entry = Entry(
            number=number,
            part=f"date={day}/part-{number:06}.parquet",
            rows=table.num_rows,
            sha256=self._stage(number, table),
            cursor=cursor,
            wanted=wanted,
            counts=counts,
        )
        self._write_entry(entry, trajectory_ids, sequences)
        self.entries.append(entry)
        self._place(entry)
        return entry

    def replace(
        self,
        entry: Entry,
        table: pa.Table,
        *,
        trajectory_ids: Iterable[str],
        sequences: Iterable[int],
        counts: dict[str, float],
    ) -> Entry:
        """Give a part other rows, wholly or not at all."""
        digest = self._stage(entry.number, table)
        new = replace(entry, rows=table.num_rows, sha256=digest, counts=counts)
        self._write_entry(new, trajectory_ids, sequences)
        self.entries[self.entries.index(entry)] = new
        self._place(new)
        return new

    def _stage(self, number: int, table: pa.Table) -> str:
        """Write a part beside the others; its SHA-256."""
        staged = self.path(_STAGED, f"{number:06}.parquet")
        with open_new(self.fs, staged) as out:
            pq.write_table(table, out, compression="zstd", row_group_size=_ROW_GROUP)
            sync(out)
        return self._digest(staged)

    def _digest(self, path: str) -> str:
        with self.fs.open(path, "rb") as written:
            return hashlib.file_digest(written, "sha256").hexdigest()

    def _write_entry(
        self, entry: Entry, trajectory_ids: Iterable[str], sequences: Iterable[int]
    ) -> None:
        """The commit of a part."""
        written = _to_json(entry) | {
            "trajectory_ids": list(trajectory_ids),
            "sequences": [int(each) for each in sequences],
        }
        self._write(self._entry_path(entry.number), orjson.dumps(written))

    def _read_erased(self) -> frozenset[str]:
        return frozenset(self.read_note(ERASED).get("digests", ()))

    def read_card(self) -> dict[str, Any]:
        """What `write_card` wrote; empty where there is none."""
        return self.read_note(CARD)

    def read_note(self, name: str) -> dict[str, Any]:
        """What `write_note` kept under this name; empty where there is none."""
        path = self.path(name)
        return _read_json(self.fs, path) if self.fs.exists(path) else {}

    def write_note(self, name: str, note: dict[str, Any]) -> None:
        """Keep a small JSON object beside the parts."""
        self._write(self.path(name), orjson.dumps(note))

    def write_card(self, card: dict[str, Any]) -> None:
        """Write the dataset's description (`card`) as JSON; one that is there is replaced."""
        self._write(self.path(CARD), orjson.dumps(card, option=orjson.OPT_INDENT_2))

    def parts(self) -> list[str]:
        """The committed parts, as paths of ``fs``."""
        return [self.path(entry.part) for entry in self.entries]

    def _entry_path(self, number: int) -> str:
        return self.path(_MANIFEST, f"{number:06}.json")

    def _place(self, entry: Entry) -> None:
        target = self.path(entry.part)
        make_folders(self.fs, posixpath.dirname(target))
        self.fs.mv(self.path(_STAGED, f"{entry.number:06}.parquet"), target)

    def _write(self, path: str, content: bytes) -> None:
        """Write a small file so that it is there whole or not at all."""
        temporary = f"{path}.tmp"
        with open_new(self.fs, temporary) as out:
            out.write(content)
            sync(out)
        self.fs.mv(temporary, path)

    def _read_entries(self) -> list[Entry]:
        names = sorted(self.fs.glob(self.path(_MANIFEST, "*.json")))
        return [_from_json(name, _read_json(self.fs, name)) for name in names]

    def _recover(self) -> None:
        committed = {f"{entry.number:06}.parquet": entry for entry in self.entries}
        for left in self.fs.glob(self.path(_STAGED, "*.parquet")):
            entry = committed.get(posixpath.basename(left))
            # A part that the manifest names, or one that it names no more or not yet.
            if entry is not None and self._digest(left) == entry.sha256:
                self._place(entry)
        if self.entries and not self.fs.exists(self.path(self.entries[-1].part)):
            raise ExportError(
                f"part {self.entries[-1].part} is in the manifest and nowhere else: restore it, or "
                "remove its manifest entry to export it again"
            )
        for left in self.fs.glob(self.path(_STAGED, "*")):
            self.fs.rm_file(left)


def check_writable(url: str) -> None:
    """Raise ExportError where a dataset cannot be written to; leaves an empty one, or as it was."""
    with Dataset.writing(url) as dataset:
        probe = dataset.path(_STAGED, "probe")
        with open_new(dataset.fs, probe) as out:
            out.write(b"x")
        dataset.fs.rm_file(probe)


def _to_json(entry: Entry) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "number": entry.number,
        "part": entry.part,
        "rows": entry.rows,
        "sha256": entry.sha256,
        "commit": None if entry.cursor is None else asdict(entry.cursor),
        "wanted": entry.wanted,
        "counts": entry.counts,
    }


def _read_json(fs: Any, path: str) -> dict[str, Any]:
    try:
        return orjson.loads(fs.cat_file(path))
    except orjson.JSONDecodeError:
        raise ExportError(f"{path} is no manifest entry") from None


def _from_json(name: str, fields: dict[str, Any]) -> Entry:
    try:
        version = fields["schema_version"]
        if version != SCHEMA_VERSION:
            raise ExportError(
                f"{name} is of schema version {version}; this Entrogate reads and writes "
                f"{SCHEMA_VERSION}"
            )
        commit = fields.get("commit")  # earlier versions noted a time instead: no place to go on
        return Entry(
            number=fields["number"],
            part=fields["part"],
            rows=fields["rows"],
            sha256=fields["sha256"],
            cursor=None if commit is None else Cursor(**commit),
            wanted=fields.get("wanted", ""),
            counts=fields["counts"],
        )
    except (KeyError, TypeError):
        raise ExportError(f"{name} is no manifest entry") from None


@contextmanager
def _lock(root: Path) -> Generator[None]:
    """One writer at a time; the lock goes with the process that holds it."""
    import fcntl

    if is_open_to_others(root):
        _log.warning("export.open_to_others %s", warning_of(root))
    make_folder(root)
    make_file(root / "_lock")
    with (root / "_lock").open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ExportError(f"another export is writing to {root}") from None
        yield
