"""The channel from the engine's publisher to the gateway's requests, over a real socket."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import zmq

from entrogate.engine.frames import TOKEN, VERSION, Began, Ended, Gated, Message
from entrogate.engine.publisher import Publisher, packed
from entrogate.upstream.captures import CaptureChannel


@pytest.fixture
def publisher(tmp_path: Path) -> Generator[Publisher]:
    made = Publisher(f"ipc://{tmp_path}/captures")
    yield made
    made.close()


@pytest_asyncio.fixture
async def channel(publisher: Publisher) -> AsyncGenerator[CaptureChannel]:
    """Joined: what is published now arrives."""
    async with CaptureChannel(publisher.address) as made:
        for stream in range(1_000_000, 1_000_200):
            with made.follow() as probe:
                publisher.began(made.gateway, began(stream, probe.key))
                publisher.ended(made.gateway, Ended(stream=stream, n_tokens=0))
                publisher.flush()
                if await probe.complete(1, 0.05):
                    break
        yield made


def began(stream: int, request: str, choice: int = 0, resumed: int = 0) -> Began:
    prompt = np.array([7, 8, 9], dtype="<i4").tobytes()
    return Began(
        stream=stream, request=request, choice=choice, prompt_token_ids=prompt, resumed=resumed
    )


def tokens(stream: int, *ids: int) -> np.ndarray:
    n = len(ids)
    measured = np.array([[0.5] * n, [1.0] * n, [0.25] * n])
    return packed([stream] * n, list(ids), np.full(n, -0.1), measured)


async def test_a_request_arrives_whole(publisher: Publisher, channel: CaptureChannel) -> None:
    with channel.follow() as request:
        assert channel.argument(request, 5) == f"{channel.gateway}/{request.key}/5"
        gateway = channel.gateway
        publisher.began(gateway, began(1, request.key))
        publisher.tokens(gateway, tokens(1, 10, 11))
        publisher.flush()
        publisher.tokens(gateway, tokens(1, 12))
        gated = Gated(
            stream=1, position=2, action="suppress", value=0.5, n_tokens=2, p_tool_call=0.9
        )
        publisher.gated(gateway, gated)
        publisher.ended(gateway, Ended(stream=1, n_tokens=3))
        publisher.flush()
        assert await request.complete(1)
    choice = request.choices[0]
    assert choice.complete
    assert choice.tokens()["token_id"].tolist() == [10, 11, 12]
    assert choice.tokens()["entropy"].tolist() == [0.5] * 3
    assert np.frombuffer(choice.prompt_token_ids, dtype="<i4").tolist() == [7, 8, 9]
    assert choice.gated == [gated]


async def test_requests_and_choices_do_not_mix(
    publisher: Publisher, channel: CaptureChannel
) -> None:
    gateway = channel.gateway
    with channel.follow() as one, channel.follow() as two:
        publisher.began(gateway, began(1, one.key, 0))
        publisher.began(gateway, began(2, two.key, 1))
        publisher.began(gateway, began(3, two.key, 0))
        mixed = np.concatenate([tokens(2, 20), tokens(1, 10), tokens(3, 30), tokens(2, 21)])
        publisher.tokens(gateway, mixed)
        for stream, n in ((1, 1), (2, 2), (3, 1)):
            publisher.ended(gateway, Ended(stream=stream, n_tokens=n))
        publisher.flush()
        assert await one.complete(1)
        assert await two.complete(2)
    assert one.choices[0].tokens()["token_id"].tolist() == [10]
    assert two.choices[1].tokens()["token_id"].tolist() == [20, 21]
    assert two.choices[0].tokens()["token_id"].tolist() == [30]


async def test_a_preempted_choice_goes_on(publisher: Publisher, channel: CaptureChannel) -> None:
    gateway = channel.gateway
    with channel.follow() as request:
        publisher.began(gateway, began(1, request.key))
        publisher.tokens(gateway, tokens(1, 10, 11))
        publisher.ended(gateway, Ended(stream=1, n_tokens=2))
        publisher.began(gateway, began(2, request.key, resumed=2))
        publisher.tokens(gateway, tokens(2, 12))
        publisher.ended(gateway, Ended(stream=2, n_tokens=3))
        publisher.flush()
        assert await request.complete(1)
    assert request.choices[0].complete
    assert request.choices[0].tokens()["token_id"].tolist() == [10, 11, 12]


async def test_a_choice_that_resumes_elsewhere_than_it_stopped_is_not_whole(
    publisher: Publisher, channel: CaptureChannel
) -> None:
    with channel.follow() as request:
        publisher.began(channel.gateway, began(1, request.key, resumed=4))
        publisher.ended(channel.gateway, Ended(stream=1, n_tokens=4))
        publisher.flush()
        assert await request.complete(1)
    assert not request.choices[0].complete


async def test_a_lost_message_marks_what_was_under_way(
    publisher: Publisher, channel: CaptureChannel
) -> None:
    gateway = channel.gateway
    with channel.follow() as request:
        publisher.began(gateway, began(1, request.key))
        publisher.tokens(gateway, tokens(1, 10))
        publisher.flush()
        await asyncio.sleep(0.05)
        publisher._outgoing[gateway].sequence += 1
        publisher.tokens(gateway, tokens(1, 12))
        publisher.ended(gateway, Ended(stream=1, n_tokens=2))
        publisher.flush()
        assert await request.complete(1)
    assert not request.choices[0].complete


async def test_nothing_arrives_in_time(channel: CaptureChannel) -> None:
    with channel.follow() as request:
        assert not await request.complete(1, 0.01)


async def test_what_nobody_follows_leaves_nothing_behind(
    publisher: Publisher, channel: CaptureChannel
) -> None:
    gateway = channel.gateway
    with channel.follow() as gone:
        publisher.began(gateway, began(1, gone.key))
        publisher.flush()
        await asyncio.sleep(0.05)
    publisher.tokens(gateway, tokens(1, 10))
    publisher.began(gateway, began(2, "unheard"))
    publisher.flush()
    await asyncio.sleep(0.05)
    assert not channel._streams
    assert not channel._requests


async def test_a_message_of_another_version_is_refused(channel: CaptureChannel) -> None:
    message = Message(
        version=VERSION + 1, worker=1, sequence=0, began=[], tokens=b"", gated=[], ended=[]
    )
    with pytest.raises(ValueError, match="version"):
        channel._take(message)


def test_an_address_in_use_is_an_error(publisher: Publisher) -> None:
    port = zmq.Context.instance().socket(zmq.PUB)
    number = port.bind_to_random_port("tcp://127.0.0.1")
    try:
        with pytest.raises(zmq.ZMQError):
            Publisher(f"tcp://127.0.0.1:{number}")
    finally:
        port.close()


def test_a_token_takes_24_bytes() -> None:
    assert TOKEN.itemsize == 24
