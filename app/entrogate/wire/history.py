"""The message history of a request: what was called before, and a fingerprint to link by."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from entrogate.wire.body import to_json
from entrogate.wire.canonical import Canonical
from entrogate.wire.minted import is_minted

Json = dict[str, Any]
Content = str | list[Any]
"""A message's content as clients write it: a text or a list of parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierCall:
    """A call in the history, with its result when the client sent one."""

    call_id: str
    name: str
    key: bytes  # of name and canonical arguments
    result: str | None  # as text, for the record
    turn: int  # index of its assistant message
    content: Content | None = None  # the result as it was sent, to feed back; None: there is none
    failed: bool = False  # the client said beside the result that it is an error
    run: int = 0  # how often the user spoke after an answer before it: where the agent began anew
    dated_by: str = ""  # where its result was replayed: the id of the call that it was first for


class CallHistory:
    """The calls of a history in order, indexed by what the gate asks of them."""

    def __init__(self, calls: Iterable[EarlierCall] = (), run: int = 0) -> None:
        self.calls: list[EarlierCall] = []
        self.run = run  # of a call that is made now
        self._repeats: Counter[bytes] = Counter()
        self._by_name: Counter[str] = Counter()
        self._answered: dict[bytes, EarlierCall] = {}
        for call in calls:
            self.add(call)

    @classmethod
    def of(cls, messages: Sequence[Json], failed: Container[str] = ()) -> CallHistory:
        """The calls in ``messages``; ``failed`` are the ids whose results are errors."""
        return cls(*_read(messages, failed))

    def add(self, call: EarlierCall) -> None:
        """Take a call that came after all the others."""
        self.calls.append(call)
        self._repeats[call.key] += 1
        self._by_name[call.name] += 1
        if call.result is not None:
            self._answered[call.key] = call

    def repeats(self, key: bytes) -> int:
        """How many earlier calls are identical (`call_key`)."""
        return self._repeats[key]

    def result_for(self, key: bytes) -> EarlierCall | None:
        """The latest identical call that has its result."""
        return self._answered.get(key)

    def count(self, name: str) -> int:
        """How many earlier calls are of the tool ``name``."""
        return self._by_name[name]

    def last_called(self) -> set[str]:
        """The tools that the last assistant message with calls called."""
        return last_called(self.calls)

    def minted_ids(self, limit: int = 64) -> list[str]:
        """The latest call ids that have the form of ours, the last one first; none twice."""
        found: dict[str, None] = {}
        for call in reversed(self.calls):
            if len(found) == limit:
                break
            if is_minted(call.call_id):
                found[call.call_id] = None
        return list(found)

    def __iter__(self) -> Iterator[EarlierCall]:
        return iter(self.calls)

    def __len__(self) -> int:
        return len(self.calls)


def call_key(name: str, arguments: str, canonical: Canonical | None = None) -> bytes:
    """Identity of a call: its name and its arguments, however the same JSON is written.

    No arguments are those of an empty object. ``canonical`` bounds the work over several calls.
    """
    form = (canonical or Canonical()).of(arguments.strip() or "{}")
    spelled = name.encode(errors="surrogatepass")
    return b"%d:%b" % (len(spelled), spelled) + form


def last_called(earlier: Sequence[EarlierCall]) -> set[str]:
    """The tools that the last assistant message with calls called."""
    called: set[str] = set()
    for call in reversed(earlier):
        if call.turn != earlier[-1].turn:
            break
        called.add(call.name)
    return called


def earlier_calls(messages: Sequence[Json]) -> list[EarlierCall]:
    """All tool calls of the history in order, each with the result that belongs to it.

    That is the first one after the call which names its id. Where several calls of one message
    share an id, they take as many results in order, or none; an id that a later message uses again
    belongs to the later call. Calls and results without an id belong to nothing.
    """
    return _read(messages, ())[0]


def _read(messages: Sequence[Json], failed: Container[str]) -> tuple[list[EarlierCall], int]:
    """The `earlier_calls`, and the run of what is called next."""
    canonical = Canonical()
    run, answered_in_text = 0, False
    calls: list[tuple[str, str, bytes, int, int]] = []
    asked: dict[str, _Asked] = {}
    answered: dict[int, Content] = {}
    for turn, message in enumerate(messages):
        called = tool_calls(message)
        if message.get("role") == "user" and answered_in_text:
            run, answered_in_text = run + 1, False
        elif message.get("role") == "assistant":
            answered_in_text = not called
        for call in called:
            name, arguments = _function(call)
            call_id: str = call.get("id") or ""
            if call_id:
                _ask(asked, call_id, turn, len(calls), answered)
            key = call_key(name, arguments, canonical)
            calls.append((call_id, name, key, turn, run))
        if message.get("role") == "tool" and (
            open_ := asked.get(message.get("tool_call_id") or "")
        ):
            open_.results.append(message.get("content") or "")
    for waiting in asked.values():
        waiting.settle(answered)
    joined = [_joined(call, answered.get(position), failed) for position, call in enumerate(calls)]
    return joined, run


@dataclass(slots=True)
class _Asked:
    """The calls of one message under one id, and what came for that id since."""

    turn: int
    positions: list[int]
    results: list[Content]

    def settle(self, answered: dict[int, Content]) -> None:
        """Give each call its result, unless which is whose would be a guess."""
        if len(self.positions) == 1 or len(self.positions) == len(self.results):
            answered.update(zip(self.positions, self.results, strict=False))


def _ask(
    asked: dict[str, _Asked], call_id: str, turn: int, position: int, answered: dict[int, Content]
) -> None:
    before = asked.get(call_id)
    if before is not None and before.turn == turn:
        before.positions.append(position)
        return
    if before is not None:
        before.settle(answered)
    asked[call_id] = _Asked(turn=turn, positions=[position], results=[])


def _joined(
    call: tuple[str, str, bytes, int, int], content: Content | None, failed: Container[str]
) -> EarlierCall:
    """A call with its result; with ``content`` None there is none."""
    call_id, name, key, turn, run = call
    return EarlierCall(
        call_id=call_id,
        name=name,
        key=key,
        result=None if content is None else text_of(content),
        turn=turn,
        content=content,
        failed=call_id != "" and call_id in failed,
        run=run,
    )


def last_assistant(messages: Sequence[Json]) -> int | None:
    """Index of the last assistant message that is followed by something."""
    for index in range(len(messages) - 2, -1, -1):
        if messages[index].get("role") == "assistant":
            return index
    return None


def fingerprint(messages: Sequence[Json], tenant: str = "") -> bytes:
    """blake2b-128 of what the messages say, however a client writes that down.

    Equal are: a text and the parts that add up to it; no content, null and an empty one; arguments
    that are the same JSON; a system and a developer message. Ids, reasoning and names of speakers
    are left out (clients drop them). What two tenants say is never the same.
    """
    said = Fingerprint(tenant)
    for message in messages:
        said.add(message)
    return said.digest()


class Fingerprint:
    """A `fingerprint` that grows message by message; a copy grows on its own."""

    __slots__ = ("_canonical", "_digest")

    def __init__(self, tenant: str = "") -> None:
        key = hashlib.blake2b(tenant.encode(errors="surrogatepass"), digest_size=32).digest()
        self._digest = hashlib.blake2b(digest_size=16, key=key)
        self._canonical = Canonical()

    def copy(self) -> Fingerprint:
        """The same so far."""
        other = Fingerprint()
        other._digest, other._canonical = self._digest.copy(), self._canonical.copy()
        return other

    def add(self, message: Json) -> None:
        """What was said next."""
        role = message.get("role")
        self._take(b"role", to_json("system" if role == "developer" else role))
        for part in _parts(message.get("content")):
            if isinstance(part, str):
                self._take(b"text", part.encode(errors="surrogatepass"))
            else:
                self._take(b"part", self._canonical.of(to_json(part).decode()))
        for call in tool_calls(message):
            self._take(b"call", call_key(*_function(call), self._canonical))

    def digest(self) -> bytes:
        """Of what was said so far."""
        return self._digest.digest()

    def _take(self, kind: bytes, what: bytes) -> None:
        self._digest.update(b"%b%d:" % (kind, len(what)))
        self._digest.update(what)


def text_of(content: object) -> str:
    """The text of a message's content: what its text parts say; other parts stand as JSON."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return to_json(content).decode()
    return "".join(
        part if isinstance(part, str) else to_json(part).decode()
        for part in _merged(cast("list[Any]", content))
    )


def _parts(content: object) -> list[Any]:
    """The parts of a content, texts side by side as one; none for an empty one."""
    parts = cast("list[Any]", content) if isinstance(content, list) else [content or ""]
    return [part for part in _merged(parts) if part != ""]


def _merged(parts: list[Any]) -> Iterator[Any]:
    """``parts`` with neighbouring texts put together."""
    texts: list[str] = []
    for part in parts:
        text = _text_part(part)
        if text is not None:
            texts.append(text)
            continue
        if texts:
            yield "".join(texts)
            texts = []
        yield part
    if texts:
        yield "".join(texts)


def _text_part(part: object) -> str | None:
    """What a text part says; None for a part of another kind."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        return None
    known = cast("Json", part)
    if known.get("type") not in ("text", "input_text", "output_text", None):
        return None
    text = known.get("text")
    return text if isinstance(text, str) else None


def _function(call: Json) -> tuple[str, str]:
    function: Json = call.get("function") or {}
    return function.get("name") or "", function.get("arguments") or ""


def tool_calls(message: Json) -> list[Json]:
    """The calls of an assistant's message; of no other role's."""
    calls = message.get("tool_calls")
    if message.get("role") != "assistant" or not isinstance(calls, list):
        return []
    return [call for call in cast("list[Any]", calls) if isinstance(call, dict)]
