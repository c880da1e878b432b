"""What the history says of the calls of a turn: repeats, near-duplicates, fresh results, circles.

Nothing is worked out that no rule of the policy asks for, and what is the same for every call of a
request is worked out once.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice

from entrogate.gate.circles import WINDOW, circle_rounds
from entrogate.gate.failures import is_cleared, is_failure
from entrogate.gate.normalise import Normaliser
from entrogate.gate.schema import OnRepeat, Policy, ToolRule
from entrogate.wire.history import CallHistory, EarlierCall, call_key
from entrogate.wire.minted import minted_at

MAX_CALLED_SINCE = 64
MAX_FAILURES = 8  # so many errors in a row are counted
NEAR_WINDOW = 1024  # among so many of the latest calls near-duplicates are looked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the history says of one proposed call; the fields are those of `Features`."""

    known: EarlierCall | None = None  # whose result would be replayed
    repeats: int = 0
    near_repeats: int = 0
    result_age_seconds: float | None = None
    result_failed: bool = False
    failures: int = 0
    called_since: tuple[str, ...] = ()
    circle_rounds: int = 0


UNSEEN = Seen()


class Loops:
    """Looks at the calls of one request in the light of its history, as ``policy`` asks."""

    __slots__ = ("_forms", "_history", "_normaliser", "_policy", "_table")

    def __init__(self, policy: Policy, history: CallHistory) -> None:
        self._policy = policy
        self._history = history
        self._normaliser = Normaliser()
        self._forms: dict[bytes, bytes] = {}
        self._table: _Table | None = None

    def look(self, calls: Sequence[tuple[str, str]], now: float) -> tuple[Seen, ...]:
        """What is seen of each of ``calls``: name and arguments, whole and in order.

        ``now`` in seconds since the epoch is what ages are measured from.
        """
        names = [name for name, _ in calls]
        keys = [call_key(name, arguments) for name, arguments in calls]
        rounds = self._rounds(names, keys)
        return tuple(
            self._seen(names, position, key, rounds[position], now)
            for position, key in enumerate(keys)
        )

    def known(self, name: str, arguments: str) -> EarlierCall | None:
        """The earlier call whose result answers this one: the latest one that has a result."""
        found = self._found(self._asking(name), call_key(name, arguments))
        return found.known

    def _asking(self, name: str) -> ToolRule | None:
        """The rule of the tool, where it asks for repeats at all."""
        rule = self._policy.rule(name)
        return None if rule is None or rule.on_repeat is OnRepeat.ALLOW else rule

    def _seen(
        self, names: Sequence[str], position: int, key: bytes, rounds: int, now: float
    ) -> Seen:
        rule = self._asking(names[position])
        found = self._found(rule, key)
        if rule is None or found.known is None or found.position is None:
            return Seen(
                known=found.known,
                repeats=self._history.repeats(key),
                near_repeats=found.near_repeats,
                circle_rounds=rounds,
            )
        others = [*names[:position], *names[position + 1 :]]
        return Seen(
            known=found.known,
            repeats=self._history.repeats(key),
            near_repeats=found.near_repeats,
            result_age_seconds=self._tables().age(found.position, now),
            result_failed=_failed(found.known),
            failures=self._tables().failures(found.position, self._history.run),
            called_since=self._called_since(found.position, others, rule),
            circle_rounds=rounds,
        )

    def _found(self, rule: ToolRule | None, key: bytes) -> _Found:
        history = self._history
        if rule is None or not (history.repeats(key) or rule.normalise.changes):
            known = history.result_for(key)
            return _Found(known=known, position=None, near_repeats=history.repeats(key))
        form = self._form(rule, key)
        table = self._tables()
        position = table.answered.get(form)
        return _Found(
            known=None if position is None else history.calls[position],
            position=position,
            near_repeats=table.repeats.get(form, 0),
        )

    def _form(self, rule: ToolRule | None, key: bytes) -> bytes:
        """What calls are compared by, this one having ``key`` and its tool ``rule``.

        The same for equal keys as long as the request lasts, whatever is left of the bounds.
        """
        if rule is None or not rule.normalise.changes:
            return key
        form = self._forms.get(key)
        if form is None:
            form = self._forms[key] = self._normaliser.of(key, rule.normalise)
        return form

    def _tables(self) -> _Table:
        """The history as it is now: a replay has added to it."""
        if self._table is None or len(self._table.forms) != len(self._history):
            rule, calls = self._policy.rule, self._history.calls
            # The latest calls come first: what is read of them all is bounded.
            late = [
                self._form(rule(call.name), call.key) for call in reversed(calls[-NEAR_WINDOW:])
            ]
            early = [self._forms.get(call.key, call.key) for call in calls[:-NEAR_WINDOW]]
            self._table = _Table(calls, early + late[::-1])
        return self._table

    def _called_since(
        self, position: int, others: Sequence[str], rule: ToolRule
    ) -> tuple[str, ...]:
        """The tools called after the result came, or beside its call or this one.

        Sorted; where there are too many, those that the rule asks for are kept.
        """
        asked = set(rule.invalidated_by)
        names = self._tables().called_since(position, asked) | set(others)
        if len(names) > MAX_CALLED_SINCE:
            names = set([*sorted(asked & names), *sorted(names - asked)][:MAX_CALLED_SINCE])
        return tuple(sorted(names))

    def _rounds(self, names: Sequence[str], keys: Sequence[bytes]) -> list[int]:
        """For each proposed call the complete rounds of the circle that it is in."""
        rounds = [0] * len(keys)
        if self._policy.circle is None:
            return rounds
        rules = [self._policy.rule(name) for name in names]
        counted = [i for i, rule in enumerate(rules) if rule is None or not rule.polling]
        if not any((rule := rules[i]) is not None and not rule.side_effects for i in counted):
            return rounds
        last = rules[counted[-1]]
        if not (self._history.repeats(keys[counted[-1]]) or (last and last.normalise.changes)):
            return rounds  # it repeats nothing, so it closes no circle
        forms = [self._form(rules[i], keys[i]) for i in counted]
        for i, found in zip(counted, circle_rounds(self._steps(), forms), strict=True):
            rounds[i] = found
        return rounds

    def _steps(self) -> list[tuple[bytes, str | None]]:
        """The calls since the agent last began anew, or saw by polling that something changed.

        Polling itself is left out.
        """
        table, calls = self._tables(), self._history.calls
        run = self._history.run
        steps: list[tuple[bytes, str | None]] = []
        polled: dict[bytes, str] = {}
        for call, form in zip(calls[-WINDOW:], table.forms[-WINDOW:], strict=True):
            if call.run != run:
                continue
            rule = self._policy.rule(call.name)
            if rule is None or not rule.polling:
                steps.append((form, _result(call)))
                continue
            result = _result(call)
            if result is not None and polled.setdefault(form, result) != result:
                steps.clear()
                polled[form] = result
        return steps


def _result(call: EarlierCall) -> str | None:
    """The result of ``call``; None where the history does not have it, or not any more."""
    return None if call.result is None or is_cleared(call.result) else call.result


def _failed(call: EarlierCall) -> bool:
    """Was the result of ``call`` an error?"""
    return call.failed or is_failure(call.result or "")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What an index of the history says of one call; ``position`` is that of ``known``."""

    known: EarlierCall | None
    position: int | None
    near_repeats: int


class _Table:
    """The history by the form in which its calls are compared."""

    def __init__(self, calls: Sequence[EarlierCall], forms: Sequence[bytes]) -> None:
        self.forms = forms
        self.repeats: dict[bytes, int] = {}
        self.answered: dict[bytes, int] = {}  # position of the latest call with a result
        self._calls = calls
        self._failures: dict[bytes, int] = {}  # by form
        self._latest: dict[str, int] = {}  # position of each tool's latest call
        self._previous: list[int] = []  # of each call, that of the one before by its tool, or -1
        for position, form in enumerate(forms):
            call = calls[position]
            self.repeats[form] = self.repeats.get(form, 0) + 1
            if _result(call) is not None:
                self.answered[form] = position
            self._previous.append(self._latest.get(call.name, -1))
            self._latest[call.name] = position
        self._names = sorted(self._latest)
        self._earliest: list[float] | None = None

    def failures(self, position: int, run: int) -> int:
        """How many results in a row, up to that of the call at ``position``, were errors.

        Of calls in its form and of ``run``: a user who goes on may want another try. Those without
        a result do not count, nor those more than `NEAR_WINDOW` calls back.
        """
        form, found = self.forms[position], 0
        if form in self._failures:
            return self._failures[form]
        for place in range(position, max(-1, position - NEAR_WINDOW), -1):
            call = self._calls[place]
            if self.forms[place] != form or _result(call) is None:
                continue
            if call.run != run or not _failed(call):
                break
            found += 1
            if found == MAX_FAILURES:
                break
        self._failures[form] = found
        return found

    def age(self, position: int, now: float) -> float | None:
        """Seconds since the call at ``position`` was proposed, so at least the age of its result.

        None where its id holds no time, or one that cannot be: later than now, or than that of a
        call made after it, as where a clock was set back.
        """
        calls = self._calls
        call = calls[position]
        asked = minted_at(call.dated_by or call.call_id)
        if asked is None or asked > now:
            return None
        after = bisect_right(calls, call.turn, position, key=_turn)
        return None if self._earliest_from()[after] < asked else now - asked

    def called_since(self, position: int, asked: Collection[str]) -> set[str]:
        """The tools called after the call at ``position``, or beside it.

        Of many, the first by name, and those of ``asked``.
        """
        first = bisect_left(self._calls, self._calls[position].turn, 0, position, key=_turn)

        def called(name: str) -> bool:
            at = self._latest.get(name, -1)
            return (self._previous[at] if at == position else at) >= first

        return {*islice(filter(called, self._names), MAX_CALLED_SINCE), *filter(called, asked)}

    def _earliest_from(self) -> list[float]:
        """For each position the earliest time in the ids of the calls from there on."""
        if self._earliest is None:
            times = (minted_at(call.call_id) for call in reversed(self._calls))
            known = (math.inf if at is None else at for at in times)
            self._earliest = list(accumulate(known, min, initial=math.inf))[::-1]
        return self._earliest


def _turn(call: EarlierCall) -> int:
    return call.turn
