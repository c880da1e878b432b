"""What is read of the answers of model servers."""

from __future__ import annotations

import pytest

from entrogate.wire.chunks import decode_completion


@pytest.mark.parametrize(("said", "read"), [(b'""', None), (b"null", None), (b'"stop"', "stop")])
def test_an_empty_finish_reason_of_a_resumed_answer_ends_nothing(
    said: bytes, read: str | None
) -> None:
    event = b'{"choices":[{"index":0,"text":"a","finish_reason":%b}]}' % said
    assert decode_completion(event).choices[0].finish_reason == read
