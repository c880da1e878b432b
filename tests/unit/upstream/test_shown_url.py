"""A password in the upstream's URL stays out of messages."""

import pytest

from entrogate.upstream.client import shown_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://user:pa55@host:8000/base", "http://host:8000/base"),
        ("https://user:p@ss@host", "https://host"),
        ("http://user:pa55@[::1]:8000/a@b", "http://[::1]:8000/a@b"),
        ("http://token@host", "http://host"),
        ("user:pa55@host/v1", "host/v1"),
    ],
)
def test_shown_url(url: str, shown: str) -> None:
    assert shown_url(url) == shown
