"""Which trajectories a dataset holds, in twenty bytes each."""

from __future__ import annotations

import hashlib

import numpy as np

from entrogate.export.dataset import Dataset

_RECENT = 8  # parts of 5,000 trajectories


class Known:
    """Membership by hash; a hit is looked up in the manifest, so a collision misleads nobody.

    It does not see what is committed after it was made.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._recent: dict[int, frozenset[str]] = {}
        entries = dataset.entries
        hashed = [_hashes(dataset.trajectory_ids(entry)) for entry in entries]
        hashes = np.concatenate([np.empty(0, dtype=np.uint64), *hashed])
        owners = np.repeat(np.arange(len(entries), dtype=np.int32), [len(own) for own in hashed])
        changed = [dataset.sequences(entry) for entry in entries]
        sequences = np.concatenate([np.empty(0, dtype=np.int64), *changed])
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._owners = hashes[order], owners[order]
        self._sequences = sequences[order]

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, trajectory_id: str) -> bool:
        owners: list[int] = self._owners[self._hits(trajectory_id)].tolist()
        return any(trajectory_id in self._ids(owner) for owner in owners)

    def is_later(self, trajectory_id: str, sequence: int) -> bool:
        """Has it changed since it was exported? For a trajectory that it holds."""
        found = self._sequences[self._hits(trajectory_id)]
        return bool((found >= 0).all() and (found < sequence).all())

    def _ids(self, owner: int) -> frozenset[str]:
        """Those that are asked for together are in the same few parts."""
        if owner not in self._recent:
            if len(self._recent) >= _RECENT:
                self._recent.clear()
            self._recent[owner] = frozenset(
                self._dataset.trajectory_ids(self._dataset.entries[owner])
            )
        return self._recent[owner]

    def _hits(self, trajectory_id: str) -> slice:
        (hashed,) = _hashes((trajectory_id,))
        start = np.searchsorted(self._hashes, hashed, side="left")
        stop = np.searchsorted(self._hashes, hashed, side="right")
        return slice(int(start), int(stop))


def _hashes(ids: tuple[str, ...]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    digests = b"".join(hashlib.blake2b(id_.encode(), digest_size=8).digest() for id_ in ids)
    return np.frombuffer(digests, dtype=np.uint64)
