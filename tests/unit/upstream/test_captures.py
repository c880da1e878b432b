"""The channel from the engine's publisher to the gateway's requests, over a real socket."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from entrogate.engine.channel import ChannelRefused
from entrogate.engine.frames import TOKEN, VERSION, Gated, Message, encode
from entrogate.engine.gate import GateNumbers, GateState
from entrogate.engine.publisher import Publisher, Stream
from entrogate.upstream.captures import CaptureChannel

GATE = GateNumbers(
    call_id=5,
    think_open_id=3,
    think_close_id=4,
    statistic=0,
    threshold=1.0,
    min_tokens=1,
    suppress_certain=True,
    suppress_uncertain=False,
    force_above=float("inf"),
    blank_ids=frozenset(),
    control_ids=frozenset(),
    call_close_id=-1,
)


@pytest.fixture
def publisher(tmp_path: Path) -> Generator[Publisher]:
    made = Publisher(f"ipc://{tmp_path}/captures")
    yield made
    made.close()


@pytest_asyncio.fixture
async def channel(publisher: Publisher) -> AsyncGenerator[CaptureChannel]:
    """Joined: what is published now arrives."""
    async with CaptureChannel(publisher.address) as made:
        for _ in range(200):
            with made.follow() as probe:
                publisher.ended(begin(publisher, made, probe.key), 0)
                publisher.flush()
                if await probe.complete(1, 0.05):
                    break
        yield made


def begin(
    publisher: Publisher,
    channel: CaptureChannel,
    request: str,
    choice: int = 0,
    resumed: int = 0,
) -> Stream:
    return publisher.began(channel.gateway, request, choice, [7, 8, 9], resumed=resumed)


def send(publisher: Publisher, *pairs: tuple[Stream, int]) -> None:
    """One step that samples for each stream its token id."""
    n = len(pairs)
    measured = np.array([[0.5] * n, [1.0] * n, [0.25] * n])
    streams, token_ids = zip(*pairs, strict=True)
    publisher.tokens(streams, token_ids, np.full(n, -0.1), measured)


async def test_a_request_arrives_whole(publisher: Publisher, channel: CaptureChannel) -> None:
    gate = GateState(GATE, starts=True)
    gate.take(9, 0.5, 1.0)
    gate.take(9, 0.25, 1.0)
    with channel.follow() as request:
        assert channel.argument(request, 5) == f"{channel.gateway}/{request.key}/5"
        stream = begin(publisher, channel, request.key)
        send(publisher, (stream, 10))
        send(publisher, (stream, 11))
        publisher.flush()
        send(publisher, (stream, 12))
        publisher.gated(stream, gate, position=2, action="suppress", p_tool_call=0.9)
        publisher.ended(stream, 3)
        publisher.step()
        assert await request.complete(1)
    choice = request.choices[0]
    assert choice.complete
    assert choice.tokens()["token_id"].tolist() == [10, 11, 12]
    assert choice.tokens()["entropy"].tolist() == [0.5] * 3
    assert np.frombuffer(choice.prompt_token_ids, dtype="<i4").tolist() == [7, 8, 9]
    (gated,) = choice.gated
    assert gated == Gated(
        stream=stream.number, position=2, action="suppress", value=0.5, n_tokens=2, p_tool_call=0.9
    )


async def test_requests_and_choices_do_not_mix(
    publisher: Publisher, channel: CaptureChannel
) -> None:
    with channel.follow() as one, channel.follow() as two:
        first = begin(publisher, channel, one.key)
        second = begin(publisher, channel, two.key, choice=1)
        third = begin(publisher, channel, two.key, choice=0)
        send(publisher, (second, 20), (first, 10), (third, 30))
        send(publisher, (second, 21))
        for stream, n in ((first, 1), (second, 2), (third, 1)):
            publisher.ended(stream, n)
        publisher.step()
        assert await one.complete(1)
        assert await two.complete(2)
    assert one.choices[0].tokens()["token_id"].tolist() == [10]
    assert two.choices[1].tokens()["token_id"].tolist() == [20, 21]
    assert two.choices[0].tokens()["token_id"].tolist() == [30]


async def test_gateways_get_only_their_own(publisher: Publisher, channel: CaptureChannel) -> None:
    async with CaptureChannel(publisher.address) as other:
        with channel.follow() as ours, other.follow() as theirs:
            await asyncio.sleep(0.2)  # until the second subscription has arrived
            mine = begin(publisher, channel, ours.key)
            foreign = begin(publisher, other, theirs.key)
            send(publisher, (mine, 10), (foreign, 20))
            send(publisher, (foreign, 21))
            publisher.ended(mine, 1)
            publisher.ended(foreign, 2)
            publisher.step()
            assert await ours.complete(1)
            assert await theirs.complete(1)
    assert ours.choices[0].tokens()["token_id"].tolist() == [10]
    assert theirs.choices[0].tokens()["token_id"].tolist() == [20, 21]


async def test_a_preempted_choice_goes_on(publisher: Publisher, channel: CaptureChannel) -> None:
    with channel.follow() as request:
        before = begin(publisher, channel, request.key)
        send(publisher, (before, 10))
        send(publisher, (before, 11))
        publisher.ended(before, 2)
        after = begin(publisher, channel, request.key, resumed=2)
        send(publisher, (after, 12))
        publisher.ended(after, 3)
        publisher.step()
        assert await request.complete(1)
    assert request.choices[0].complete
    assert request.choices[0].tokens()["token_id"].tolist() == [10, 11, 12]


async def test_a_choice_that_resumes_elsewhere_than_it_stopped_is_not_whole(
    publisher: Publisher, channel: CaptureChannel
) -> None:
    with channel.follow() as request:
        publisher.ended(begin(publisher, channel, request.key, resumed=4), 4)
        publisher.step()
        assert await request.complete(1)
    assert not request.choices[0].complete


async def test_a_lost_message_marks_what_was_under_way(
    publisher: Publisher, channel: CaptureChannel
) -> None:
    with channel.follow() as request:
        stream = begin(publisher, channel, request.key)
        send(publisher, (stream, 10))
        publisher.flush()
        await asyncio.sleep(0.05)
        publisher._outgoing[channel.gateway].sequence += 1
        send(publisher, (stream, 12))
        publisher.ended(stream, 2)
        publisher.step()
        assert await request.complete(1)
    assert not request.choices[0].complete


async def test_nothing_arrives_in_time(channel: CaptureChannel) -> None:
    with channel.follow() as request:
        assert not await request.complete(1, 0.01)


async def test_what_nobody_follows_leaves_nothing_behind(
    publisher: Publisher, channel: CaptureChannel
) -> None:
    with channel.follow() as gone:
        stream = begin(publisher, channel, gone.key)
        publisher.flush()
        await asyncio.sleep(0.05)
    send(publisher, (stream, 10))
    begin(publisher, channel, "unheard")
    publisher.flush()
    await asyncio.sleep(0.05)
    assert not channel._streams
    assert not channel._requests


async def test_a_message_of_another_version_is_left_out(channel: CaptureChannel) -> None:
    message = Message(
        version=VERSION + 1, worker=1, sequence=0, began=[], tokens=b"", gated=[], ended=[]
    )
    channel._take_frames([channel.gateway.encode(), encode(message)])
    assert channel.malformed == 1


async def test_a_second_engine_at_the_address_is_refused(publisher: Publisher) -> None:
    with pytest.raises(ChannelRefused, match="another vLLM"):
        Publisher(publisher.address)
    path = Path(publisher.address.removeprefix("ipc://"))
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_token_takes_24_bytes() -> None:
    assert TOKEN.itemsize == 24
