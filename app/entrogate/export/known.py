"""Which trajectories a dataset holds, in twelve bytes each."""

from __future__ import annotations

import hashlib

import numpy as np

from entrogate.export.dataset import Dataset


class Known:
    """Membership by hash; a hit is looked up in the manifest, so a collision misleads nobody.

    It does not see what is committed after it was made.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        entries = dataset.entries
        hashed = [_hashes(dataset.trajectory_ids(entry)) for entry in entries]
        hashes = np.concatenate([np.empty(0, dtype=np.uint64), *hashed])
        owners = np.repeat(np.arange(len(entries), dtype=np.int32), [len(own) for own in hashed])
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._owners = hashes[order], owners[order]

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, trajectory_id: str) -> bool:
        (hashed,) = _hashes((trajectory_id,))
        start = np.searchsorted(self._hashes, hashed, side="left")
        stop = np.searchsorted(self._hashes, hashed, side="right")
        owners: list[int] = self._owners[start:stop].tolist()
        entries = [self._dataset.entries[owner] for owner in owners]
        return any(trajectory_id in self._dataset.trajectory_ids(entry) for entry in entries)


def _hashes(ids: tuple[str, ...]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    digests = b"".join(hashlib.blake2b(id_.encode(), digest_size=8).digest() for id_ in ids)
    return np.frombuffer(digests, dtype=np.uint64)
