"""Compressed answers are decoded in bounded steps, to the last byte."""

from __future__ import annotations

import zlib

import pytest

from entrogate.upstream.answer import _Decoder  # pyright: ignore[reportPrivateUsage]

STEP = 2**20


@pytest.mark.parametrize("beyond", [0, 1, 50, 150, 195, 1000, STEP])
@pytest.mark.parametrize(
    ("coding", "wbits"),
    [("deflate", -15), ("deflate", 15), ("gzip", 31)],
    ids=["raw", "zlib", "gzip"],
)
def test_what_zlib_still_holds_at_the_end_is_asked_for(
    coding: str, wbits: int, beyond: int
) -> None:
    """Raw deflate has no trailer: all its input may be consumed with output left inside zlib."""
    packer = zlib.compressobj(9, wbits=wbits)
    data = packer.compress(bytes(STEP + beyond)) + packer.flush()
    decoder = _Decoder("upstream", coding)
    sizes = [len(decoder.feed(data))]
    while more := decoder.more():
        sizes.append(len(more))
    assert sum(sizes) == STEP + beyond
    assert max(sizes) <= STEP
    assert decoder.whole
