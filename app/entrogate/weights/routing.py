"""Which weights answer a trajectory, by share, and the rules by which shares change. Pure.

Shares are drawn by weighted rendezvous hashing (Efraimidis and Spirakis, 2006): each version draws
an exponential time at the rate of its share from a hash of the trajectory's id, and the first one
wins. So the choice needs no memory, is the same in every replica, and a share that grows takes
trajectories in and gives none away.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

from entrogate.errors import RequestError
from entrogate.types import BASE_WEIGHTS, PublishedWeights, WeightsState

_ROUNDING = 1e-9
_HASHES = 2.0**64


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Weights that answer: their version, and what the model server calls them (None: the base
    model, under the name that the client used)."""

    version: str
    name: str | None
    share: float = 0.0


class Routes:
    """A picture of the routing at one moment; a change makes another one."""

    def __init__(
        self, published: Sequence[PublishedWeights] = (), ready: Collection[str] = ()
    ) -> None:
        """``ready`` are the versions that the model server serves now; others get nothing."""
        serving = [
            each
            for each in published
            if each.state is WeightsState.SERVING and each.version in ready
        ]
        promoted = [(each.promoted_at, each) for each in serving if each.promoted_at is not None]
        canaries = [each for each in serving if each.promoted_at is None]
        rest = max(0.0, 1.0 - sum(each.share for each in canaries))
        self.stable = Target(version=BASE_WEIGHTS, name=None, share=rest)
        self._by_version = {BASE_WEIGHTS: Target(version=BASE_WEIGHTS, name=None)}
        for each in serving:
            share = each.share if each.promoted_at is None else 0.0
            target = Target(version=each.version, name=each.name, share=share)
            self._by_version[each.version] = target
        if promoted:
            latest = max(promoted, key=lambda pair: pair[0])[1]
            self.stable = Target(version=latest.version, name=latest.name, share=rest)
        self._by_version[self.stable.version] = self.stable
        self._by_name = {each.name: each.version for each in published}
        self._drawn = [target for target in self._by_version.values() if target.share > 0.0]

    def target(self, trajectory_id: str, began_on: str = "") -> Target:
        """Where a turn of this trajectory goes; ``began_on`` is the version of its parent turn.

        A trajectory stays on its version while that is served and then moves to the stable one.
        """
        if began_on:
            return self._by_version.get(began_on, self.stable)
        if len(self._drawn) < 2:
            return self._drawn[0] if self._drawn else self.stable
        return min(self._drawn, key=lambda target: _time(target, trajectory_id))

    def version_of(self, name: str) -> str | None:
        """The version that the model server serves as ``name``; None: not published here."""
        return self._by_name.get(name)

    def share_of(self, version: str) -> float:
        """What the version gets of new trajectories; 0 when it is not served."""
        target = self._by_version.get(version)
        return 0.0 if target is None else target.share


def _time(target: Target, trajectory_id: str) -> float:
    key = f"{target.version} {trajectory_id}".encode()
    drawn = int.from_bytes(blake2b(key, digest_size=8).digest(), "little")
    return -math.log((drawn + 0.5) / _HASHES) / target.share


def find(published: Sequence[PublishedWeights], version: str) -> PublishedWeights:
    """The weights of this version or name; RequestError (404) when there are none."""
    for each in published:
        if version in (each.version, each.name):
            return each
    known = ", ".join(each.version for each in published) or "none"
    raise RequestError(f"no weights {version!r} are published; published: {known}", status=404)


def add(
    published: Sequence[PublishedWeights], new: PublishedWeights, share: float | None, now: float
) -> Sequence[PublishedWeights]:
    """Publish ``new`` with this share (None: what it has already, 0 when it is new).

    A version that is published keeps its name; its folder may have moved.
    """
    known = [each for each in published if each.version == new.version]
    for each in published:
        if each.version == new.version:
            continue
        if each.name == new.name:
            raise _conflict(f"the name {new.name} is taken by version {each.version}")
        if each.folder == new.folder:
            raise _conflict(
                f"{new.folder} held version {each.version} when it was published, and vLLM may"
                " read it again: write every version into a folder of its own"
            )
    if not known:
        return _checked(published, _with_share(new, share or 0.0, now))
    _check_serving(known[0])
    moved = replace(known[0], folder=new.folder, updated_at=now)
    return [moved] if share is None else _checked(published, _with_share(moved, share, now))


def set_share(
    published: Sequence[PublishedWeights], version: str, share: float, now: float
) -> Sequence[PublishedWeights]:
    """Give a version a share; 1 promotes it: it then gets what later canaries leave."""
    found = find(published, version)
    _check_serving(found)
    return _checked(published, _with_share(found, share, now))


def roll_back(
    published: Sequence[PublishedWeights], version: str, now: float
) -> Sequence[PublishedWeights]:
    """Take a version out of routing for good; again is no error."""
    found = find(published, version)
    if found.state is WeightsState.DRAINING:
        return []
    return [
        replace(found, state=WeightsState.DRAINING, share=0.0, promoted_at=None, updated_at=now)
    ]


def _check_serving(found: PublishedWeights) -> None:
    if found.state is WeightsState.DRAINING:
        raise _conflict(
            f"version {found.version} is being rolled back; publish it again after that"
        )


def _with_share(weights: PublishedWeights, share: float, now: float) -> PublishedWeights:
    if not 0.0 <= share <= 1.0:
        raise RequestError(f"share is {share}; want 0 to 1", param="share")
    return replace(weights, share=share, promoted_at=now if share == 1.0 else None, updated_at=now)


def _checked(
    published: Sequence[PublishedWeights], changed: PublishedWeights
) -> Sequence[PublishedWeights]:
    """``changed``, when the other canaries and it want no more than there is."""
    shares = {
        each.version: each.share
        for each in published
        if each.promoted_at is None and each.share > 0.0 and each.version != changed.version
    }
    total = sum(shares.values()) + changed.share
    if total > 1.0 + _ROUNDING:
        taken = ", ".join(f"{version} has {share:g}" for version, share in shares.items())
        raise RequestError(
            f"the shares would add up to {total:g}: {taken}; lower or roll back that first",
            param="share",
        )
    return [changed]


def _conflict(message: str) -> RequestError:
    return RequestError(message, status=409, code="conflict")
