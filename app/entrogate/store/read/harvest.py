"""One round over what has settled, in the order of commits, with the place from which to go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from entrogate.store import postgres
from entrogate.store.commits import database_time, last_sequence
from entrogate.store.database import Database
from entrogate.store.filters import TrajectoryFilter
from entrogate.store.read.quiet import Sightings, uptime
from entrogate.store.read.settled import (
    Changed,
    Settling,
    StoredTrajectory,
    list_changed,
    read_cursor,
    read_settled,
)
from entrogate.store.read.trajectory import toolset_texts
from entrogate.types import Cursor

Toolsets = dict[bytes, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class HarvestOptions:
    """Which trajectories a round takes, and from where it goes on.

    ``after`` is where an earlier round ended (`Harvest.cursor`); everything is looked at again
    where the store does not have that history. ``skip`` says which trajectories not to read. They
    are listed a ``page`` at a time and read a ``batch`` at a time, each in a transaction of its
    own. With ``now``, in seconds since the epoch, ages are by that clock alone.
    """

    settling: Settling
    wanted: TrajectoryFilter
    after: Cursor | None = None
    now: float | None = None
    sightings: Sightings = field(default_factory=Sightings)  # the round adds its own
    skip: Callable[[Changed], bool] = lambda _: False
    page: int = 10_000
    batch: int = 64


class Harvest:
    """Iterate over it once, in one thread: settled trajectories with their toolsets."""

    def __init__(self, database: Database, options: HarvestOptions) -> None:
        self._database = database
        self._options = options
        self._passed = -1  # every number up to this is done with
        self._pending: int | None = None  # the first number of a trajectory that has to wait

    @property
    def cursor(self) -> Cursor | None:
        """Where a later round may begin: before it, all has been yielded or will never be."""
        passed = self._passed if self._pending is None else min(self._passed, self._pending - 1)
        return self._database.read(lambda connection: read_cursor(connection, passed))

    def __iter__(self) -> Iterator[tuple[StoredTrajectory, Toolsets]]:
        options = self._options
        until, is_final = self._horizon()
        if is_final and options.now is None:
            options.sightings.add(until, uptime())
        self._passed = self._begin()
        if not is_final:
            self._pending = self._passed + 1
        place = (self._passed, "\U0010ffff")
        taken: set[str] = set()
        while True:
            with self._database.reading() as connection:
                now = database_time(connection) if options.now is None else options.now
                listed = list_changed(
                    connection, options.wanted, after=place, until=until, limit=options.page
                )
            settled = [each for each in listed if self._has_settled(each, now)]
            if not is_final:  # a change that is on its way may show one of them a second time
                settled = [each for each in settled if each.trajectory_id not in taken]
                taken |= {each.trajectory_id for each in settled}
            yield from self._read([each for each in settled if not options.skip(each)])
            if len(listed) < options.page:
                self._passed = until
                return
            place = (listed[-1].sequence, listed[-1].trajectory_id)

    def _begin(self) -> int:
        """The number after which to look."""
        after = self._options.after
        if after is None:
            return -1
        known = self._database.read(lambda connection: read_cursor(connection, after.sequence))
        return after.sequence if known == after else -1

    def _horizon(self) -> tuple[int, bool]:
        """The highest number to look at, and whether all up to it have been committed or never
        will be."""
        if self._database.shared:
            return postgres.settled_sequence(self._database.glances)
        return self._database.read(last_sequence), True

    def _has_settled(self, each: Changed, now: float) -> bool:
        options = self._options
        age = now - each.written_at
        if options.now is None:
            age = options.sightings.age(each.sequence, age, uptime())
        has_settled = age >= options.settling.seconds(judged=each.judged)
        if not has_settled and self._pending is None:
            self._pending = each.sequence
        return has_settled

    def _read(self, settled: list[Changed]) -> Iterator[tuple[StoredTrajectory, Toolsets]]:
        batch = self._options.batch
        for start in range(0, len(settled), batch):
            with self._database.reading() as connection:
                found = read_settled(connection, settled[start : start + batch])
                texts = toolset_texts(connection, (t for each in found for t in each.turns))
            for each in found:
                self._passed = max(self._passed, each.listed.sequence - 1)  # others may share it
                yield each, texts
