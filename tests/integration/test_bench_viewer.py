"""The viewer's benchmark, at a small size: it opens the pages that it claims to."""

from entrogate_lab.bench.viewer import measure


def test_every_page_is_opened() -> None:
    said: list[str] = []
    result = measure(30, rounds=1, url=None, say=said.append)
    assert len(result["milliseconds"]) == 7
    assert all(lowest > 0 for lowest, _, _ in result["milliseconds"].values())
    assert result["long_page_bytes"] > 500_000  # 20,000 tokens
    assert said[0].startswith("stored 30 trajectories")
