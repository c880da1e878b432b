"""The store as the rest of Entrogate sees it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from sqlalchemy import Connection

from entrogate.access import Key, belongs
from entrogate.errors import StoreError, UnknownRecord
from entrogate.model_hashes import ModelHashes
from entrogate.settings import StoreSettings
from entrogate.store.admin.administration import Administration
from entrogate.store.admin.erasure import all_digests
from entrogate.store.admin.keys import note_uses, read_keys
from entrogate.store.database import Database
from entrogate.store.filters import EVERY, TrajectoryFilter
from entrogate.store.heads import (
    HeadCache,
    head_of_record,
    read_head_of_call,
    read_head_of_fingerprint,
    read_head_of_trajectory,
    read_heads_of_calls,
)
from entrogate.store.policies import PolicyRecords
from entrogate.store.read.conversation import Conversation, read_answer, read_conversation
from entrogate.store.read.decisions import (
    DecidedTurn,
    iter_decisions,
    read_latest_decisions,
    read_policy,
)
from entrogate.store.read.harvest import Harvest, HarvestOptions
from entrogate.store.read.listing import Page, list_trajectories
from entrogate.store.read.logged import LoggedTrajectory, iter_logged
from entrogate.store.read.overview import read_overview
from entrogate.store.read.paired import PairedTrajectory, iter_paired
from entrogate.store.read.rows import Overview, Trajectory
from entrogate.store.read.slices import SlicedTokens, TokenSlice, read_token_slices
from entrogate.store.read.trajectory import get_trajectory
from entrogate.store.shadows import ShadowStore
from entrogate.store.write.feedback import Feedback, add_feedback
from entrogate.store.write.fuses import FuseRecords
from entrogate.store.write.models import remember_model
from entrogate.store.write.weights import (
    ChangeWeights,
    change_weights,
    delete_weights,
    read_weights,
)
from entrogate.store.write.writer import Batch, Deferred, Job, Writer
from entrogate.types import Mode, PublishedWeights, StoredAnswer, TurnHead, TurnRecord

T = TypeVar("T")

READERS = 8  # as many as the database has connections to read with

CommitHook = Callable[[float, int], None]
"""Called in the event loop after a commit: seconds it took, turns in it."""

LossHook = Callable[[StoreError, int], None]
"""Called in the event loop when turns acknowledged before their commit are lost."""


class Store:
    """Trajectories in a database. One event loop uses it; a thread of its own writes."""

    def __init__(
        self,
        database: Database,
        settings: StoreSettings,
        *,
        on_commit: CommitHook | None = None,
        on_loss: LossHook | None = None,
    ) -> None:
        self.on_commit = on_commit
        self.on_loss = on_loss
        self._database = database
        self._settings = settings
        self._heads = HeadCache(settings.head_cache)
        self._writer: Writer | None = None
        self.admin = Administration(
            database, write=self._write, read=self._read, forget=self._heads.clear
        )
        self.shadows = ShadowStore(write=self._write, read=self._read)
        self.fuses = FuseRecords(write=self._write, read=self._read)
        self.policies = PolicyRecords(shared=database.shared, write=self._write, read=self._read)
        self._watching = AsyncExitStack()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="entrogate-read")

    @classmethod
    def open(
        cls,
        settings: StoreSettings,
        *,
        read_only: bool = False,
        alone: bool = False,
        on_commit: CommitHook | None = None,
        on_loss: LossHook | None = None,
    ) -> Store:
        """Open the database, creating and migrating it unless ``read_only``.

        A gateway opens an SQLite file ``alone``, as its only gateway. Raises `StoreError`, in one
        line, when it cannot be used.
        """
        database = Database(settings, migrating=not read_only, alone=alone)
        return cls(database, settings, on_commit=on_commit, on_loss=on_loss)

    async def start(self) -> None:
        """Start the writer on the running loop."""
        self._writer = Writer(
            self._database.writer,
            asyncio.get_running_loop(),
            self._settle,
            interval_seconds=self._settings.commit_interval_seconds,
            queue_limit=self._settings.queue_limit,
            patience_seconds=self._settings.patience_seconds,
        )
        await self._watching.enter_async_context(self.admin.watching())

    async def aclose(self) -> None:
        """Write what is waiting, then close the database."""
        await self._watching.aclose()
        if self._writer is not None:
            await self._writer.close()
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Close the database of a store that was not started. Blocks.

        Lets reads end whose callers have gone, so that no connection stays open.
        """
        self._readers.shutdown()
        self._database.close()

    @property
    def queue_depth(self) -> int:
        """Writes taken on and not yet committed."""
        return 0 if self._writer is None else self._writer.depth

    @property
    def deferred(self) -> int:
        """Those among them that wait for a database that could not take them."""
        return 0 if self._writer is None else self._writer.deferred

    async def commit_turns(self, records: Sequence[TurnRecord]) -> list[TurnHead]:
        """Store the turns in one transaction; returns when they are durable, with their heads.

        A record may have an earlier one of the same call as its parent. With durability ``off`` it
        returns at once, and while the database is away after some patience: the indices in those
        heads are then guesses, the stored ones are right. Raises `StoreError` when the turns are
        not stored and never will be. Turns of a trajectory that was erased are not stored either,
        and have no head.
        """
        if self._settings.durability == "off":
            self._submit(Job(records=records))
            return [self._guess(record) for record in records]
        future: asyncio.Future[list[TurnHead | None]] = asyncio.get_running_loop().create_future()
        self._submit(Job(records=records, future=future))
        return [head for head in await future if head is not None]

    async def head_of_call(self, call_id: str) -> TurnHead | None:
        """The turn that proposed the call with this id."""
        head = self._heads.by_call.get(call_id)
        return head or await self._glance(read_head_of_call, call_id)

    async def heads_of_calls(self, call_ids: Sequence[str]) -> list[TurnHead]:
        """The turns that proposed the calls with these ids, in their order; unknown ids are left
        out. One query at most: bound the number of ids."""
        known = {id_: self._heads.by_call.get(id_) for id_ in call_ids}
        unknown = [id_ for id_, head in known.items() if head is None]
        if unknown:
            known |= await self._glance(read_heads_of_calls, unknown)
        return [head for head in map(known.get, call_ids) if head is not None]

    async def head_of_fingerprint(self, fingerprint: bytes) -> TurnHead | None:
        """The latest turn whose history, response included, has this fingerprint."""
        known = self._heads.by_fingerprint.get(fingerprint)
        return await self._latest(known, read_head_of_fingerprint, fingerprint)

    async def head_of_trajectory(self, trajectory_id: str) -> TurnHead | None:
        """The latest turn of the trajectory that did not break off."""
        known = self._heads.by_trajectory.get(trajectory_id)
        return await self._latest(known, read_head_of_trajectory, trajectory_id)

    def erased(self) -> frozenset[str]:
        """The digests of all trajectories that were erased. Blocks."""
        return self._database.read(all_digests)

    async def is_erased(self, trajectory_id: str) -> bool:
        """Whether a trajectory of this id was erased."""
        return await self.admin.is_erased(trajectory_id)

    async def conversation(self, response_id: str, tenant: str) -> Conversation | None:
        """What was said up to the tenant's answer with this id, if it may be gone on with."""
        return await self._read(read_conversation, response_id, tenant)

    async def keys(self) -> list[Key]:
        """All API keys, revoked and expired ones too."""
        return await self._read(read_keys)

    async def note_key_uses(self, uses: Mapping[str, float]) -> None:
        """When API keys were last used, in seconds since the epoch, by id."""
        await self._write(lambda connection: note_uses(connection, uses))

    def has_keys(self) -> bool:
        """Was an API key ever made? Blocks."""
        return bool(self._database.read(read_keys))

    async def answer(self, response_id: str, tenant: str) -> StoredAnswer | None:
        """The answer with this id, under the same condition as `conversation`."""
        return await self._read(read_answer, response_id, tenant)

    async def add_feedback(
        self,
        *,
        trajectory_id: str | None = None,
        response_id: str | None = None,
        tool_call_id: str | None = None,
        score: float | None = None,
        answer: str | None = None,
        gold: str | Sequence[str] | None = None,
        comment: str | None = None,
        tenant: str | None = None,
        key_id: str | None = None,
    ) -> dict[str, Any]:
        """Record an outcome and compute the rewards of the trajectory it belongs to.

        Names one target and either a score in [0, 1] or an answer with its gold (SQuAD F1). The
        last feedback of a trajectory counts; earlier ones are kept. Raises ValueError for a bad
        combination, `UnknownRecord` for an id that is not stored, or not for ``tenant``,
        `ErasedRecord` for a trajectory that was erased. ``key_id``: who says so.
        """
        given = await asyncio.to_thread(  # hundreds of thousands of words may be compared
            Feedback.of,
            targets={
                "trajectory_id": trajectory_id,
                "response_id": response_id,
                "tool_call_id": tool_call_id,
            },
            score=score,
            answer=answer,
            gold=gold,
            comment=comment,
        )
        return await self._write(lambda connection: add_feedback(connection, given, tenant, key_id))

    async def remember_policy(self, version: str, name: str, mode: Mode | str, text: str) -> None:
        """Keep the policy of this version, so that its decisions can be replayed."""
        await self.policies.remember(version, name, str(mode), text)

    async def remember_model(self, names: Sequence[str], hashes: ModelHashes) -> None:
        """Note which tokenizer and chat template are served under these names from now on."""
        await self._write(lambda connection: remember_model(connection, names, hashes))

    async def weights(self, model: str) -> list[PublishedWeights]:
        """What is published over the base model ``model``, the oldest first."""
        return await self._read(read_weights, model)

    async def change_weights(self, model: str, change: ChangeWeights) -> list[PublishedWeights]:
        """Store what ``change`` makes of the published weights, in one transaction; all of them.

        What it raises (an `EntrogateError`) is raised here, and nothing is changed then.
        """
        return await self._write(lambda connection: change_weights(connection, model, change))

    async def delete_weights(self, model: str, version: str) -> list[PublishedWeights]:
        """Forget this version; what remains."""
        return await self._write(lambda connection: delete_weights(connection, model, version))

    async def list_trajectories(
        self,
        wanted: TrajectoryFilter = EVERY,
        *,
        limit: int = 50,
        cursor: str | None = None,
        oldest_first: bool = False,
    ) -> Page:
        """A page of summaries, newest first. ValueError for a bad limit or cursor."""
        return await self._read(
            list_trajectories, wanted, limit=limit, cursor=cursor, oldest_first=oldest_first
        )

    async def get_trajectory(
        self, trajectory_id: str, *, tokens: bool = False, tenant: str | None = None
    ) -> Trajectory:
        """Everything stored of one trajectory; token arrays only with ``tokens``.

        Raises `UnknownRecord` when there is none, or not for ``tenant`` (None: any tenant).
        """
        if not belongs(trajectory_id, tenant):
            raise UnknownRecord(f"no trajectory {trajectory_id!r} is stored")
        return await self._read(get_trajectory, trajectory_id, tokens=tokens)

    async def token_slices(self, slices: Sequence[TokenSlice]) -> dict[str, SlicedTokens]:
        """Tokens of turns that `get_trajectory` named, by the turn's id."""
        return await self._read(read_token_slices, slices)

    async def overview(self, tenant: str | None, window: int) -> Overview:
        """Figures over the latest ``window`` trajectories."""
        return await self._read(read_overview, tenant, window)

    async def latest_decisions(self, tenant: str | None, limit: int) -> Sequence[DecidedTurn]:
        """The latest turns with calls, the newest first."""
        return await self._read(read_latest_decisions, tenant, limit)

    def iter_decisions(self, batch: int = 500) -> Iterator[DecidedTurn]:
        """Every turn with calls, with the features and the decisions of each. Blocks."""
        return iter_decisions(self._database, batch)

    def iter_paired(self, wanted: TrajectoryFilter = EVERY) -> Iterator[PairedTrajectory]:
        """Every trajectory with calls, beside its shadows. Blocks."""
        return iter_paired(self._database, wanted)

    def iter_logged(self, wanted: TrajectoryFilter = EVERY) -> Iterator[LoggedTrajectory]:
        """Every trajectory with its decisions and what they cost, by id. Blocks."""
        return iter_logged(self._database, wanted)

    def settled(self, options: HarvestOptions) -> Harvest:
        """Trajectories that have settled, in the order of commits. Iterating over it blocks."""
        return Harvest(self._database, options)

    def policy_text(self, version: str) -> str | None:
        """What `remember_policy` was given for this version. Blocks."""
        with self._database.reading() as connection:
            return read_policy(connection, version)

    async def _latest(
        self, known: TurnHead | None, query: Callable[..., TurnHead | None], key: Any
    ) -> TurnHead | None:
        """Another gateway may know a later one; one that is not stored yet (``off``), only we."""
        if known is not None and not self._database.shared:
            return known
        return await self._glance(query, key) or known

    async def _glance(self, query: Callable[..., T], *args: Any) -> T:
        """What a query of one statement reads."""
        return await self._in_thread(lambda connection: query(connection, *args), glance=True)

    async def _read(self, query: Callable[..., T], *args: Any, **options: Any) -> T:
        return await self._in_thread(lambda connection: query(connection, *args, **options))

    async def _in_thread(self, query: Callable[[Connection], T], *, glance: bool = False) -> T:
        read = functools.partial(self._database.read, query, glance=glance)
        return await asyncio.get_running_loop().run_in_executor(self._readers, read)

    async def _write(self, work: Callable[[Connection], T]) -> T:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._submit(Job(work=work, future=future))
        return await future

    def _submit(self, job: Job) -> None:
        if self._writer is None:
            raise StoreError("store: not started")
        self._writer.submit(job)

    def _settle(self, batch: Batch) -> None:
        n_turns = 0
        for job, outcome in zip(batch.jobs, batch.outcomes, strict=True):
            if isinstance(outcome, Deferred):
                job.settle([self._guess(record) for record in job.records])
                continue
            told = job.settle(outcome)
            if not job.records:
                continue
            if isinstance(outcome, StoreError):
                if not told and self.on_loss is not None:
                    self.on_loss(outcome, len(job.records))
                continue
            n_turns += len(job.records)
            for record, head in zip(job.records, outcome, strict=True):
                if head is not None:
                    self._heads.remember(record, head)
                else:  # erased, as what we remember of it may be
                    self._heads.clear()
        if n_turns and self.on_commit is not None:
            self.on_commit(batch.seconds, n_turns)

    def _guess(self, record: TurnRecord) -> TurnHead:
        """The head of a turn before it is stored: as if it continued its parent's branch."""
        turn_index = record.parent.turn_index + 1 if record.parent else 0
        branch_index = record.parent.branch_index if record.parent else record.choice_index
        head = head_of_record(record, turn_index, branch_index)
        self._heads.remember(record, head)
        return head
