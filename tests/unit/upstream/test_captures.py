"""The channel from the engine's sender to the gateway's requests, over a real socket."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from entrogate.engine.channel import ChannelRefused
from entrogate.engine.frames import TOKEN, VERSION, Gated, Message, encode
from entrogate.engine.gate import GateNumbers, GateState
from entrogate.engine.sender import CaptureSender, Stream
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
def sender(tmp_path: Path) -> Generator[CaptureSender]:
    made = CaptureSender(f"ipc://{tmp_path}/captures")
    yield made
    made.close()


@pytest_asyncio.fixture
async def channel(sender: CaptureSender) -> AsyncGenerator[CaptureChannel]:
    """Joined: what is published now arrives."""
    async with CaptureChannel(sender.address) as made:
        for _ in range(200):
            with made.follow() as probe:
                sender.ended(begin(sender, made, probe.key), 0)
                sender.flush()
                if await probe.complete(1, 0.05):
                    break
        yield made


def begin(
    sender: CaptureSender,
    channel: CaptureChannel,
    request: str,
    choice: int = 0,
    resumed: int = 0,
) -> Stream:
    return sender.began(channel.gateway, request, choice, [7, 8, 9], resumed=resumed)


def send(sender: CaptureSender, *pairs: tuple[Stream, int]) -> None:
    """One step that samples for each stream its token id."""
    n = len(pairs)
    measured = np.array([[0.5] * n, [1.0] * n, [0.25] * n])
    streams, token_ids = zip(*pairs, strict=True)
    sender.tokens(streams, token_ids, np.full(n, -0.1), measured)


async def test_a_request_arrives_whole(sender: CaptureSender, channel: CaptureChannel) -> None:
    gate = GateState(GATE, starts=True)
    gate.take(9, 0.5, 1.0, -0.1)
    gate.take(9, 0.25, 1.0, -0.1)
    with channel.follow() as request:
        assert channel.argument(request, 5) == f"{channel.gateway}/{request.key}/5"
        stream = begin(sender, channel, request.key)
        send(sender, (stream, 10))
        send(sender, (stream, 11))
        sender.flush()
        send(sender, (stream, 12))
        sender.gated(stream, gate, position=2, action="suppress", p_tool_call=0.9, p_sampled=0.75)
        sender.ended(stream, 3)
        sender.step()
        assert await request.complete(1)
    choice = request.choices[0]
    assert choice.complete
    assert choice.tokens()["token_id"].tolist() == [10, 11, 12]
    assert choice.tokens()["entropy"].tolist() == [0.5] * 3
    assert np.frombuffer(choice.prompt_token_ids, dtype="<i4").tolist() == [7, 8, 9]
    (gated,) = choice.gated
    assert gated == Gated(
        stream=stream.number,
        position=2,
        action="suppress",
        value=0.5,
        n_tokens=2,
        p_tool_call=0.9,
        p_sampled=0.75,
    )


async def test_requests_and_choices_do_not_mix(
    sender: CaptureSender, channel: CaptureChannel
) -> None:
    with channel.follow() as one, channel.follow() as two:
        first = begin(sender, channel, one.key)
        second = begin(sender, channel, two.key, choice=1)
        third = begin(sender, channel, two.key, choice=0)
        send(sender, (second, 20), (first, 10), (third, 30))
        send(sender, (second, 21))
        for stream, n in ((first, 1), (second, 2), (third, 1)):
            sender.ended(stream, n)
        sender.step()
        assert await one.complete(1)
        assert await two.complete(2)
    assert one.choices[0].tokens()["token_id"].tolist() == [10]
    assert two.choices[1].tokens()["token_id"].tolist() == [20, 21]
    assert two.choices[0].tokens()["token_id"].tolist() == [30]


async def test_gateways_get_only_their_own(sender: CaptureSender, channel: CaptureChannel) -> None:
    async with CaptureChannel(sender.address) as other:
        with channel.follow() as ours, other.follow() as theirs:
            await asyncio.sleep(0.2)  # until the second subscription has arrived
            mine = begin(sender, channel, ours.key)
            foreign = begin(sender, other, theirs.key)
            send(sender, (mine, 10), (foreign, 20))
            send(sender, (foreign, 21))
            sender.ended(mine, 1)
            sender.ended(foreign, 2)
            sender.step()
            assert await ours.complete(1)
            assert await theirs.complete(1)
    assert ours.choices[0].tokens()["token_id"].tolist() == [10]
    assert theirs.choices[0].tokens()["token_id"].tolist() == [20, 21]


async def test_a_preempted_choice_goes_on(sender: CaptureSender, channel: CaptureChannel) -> None:
    with channel.follow() as request:
        before = begin(sender, channel, request.key)
        send(sender, (before, 10))
        send(sender, (before, 11))
        sender.ended(before, 2)
        after = begin(sender, channel, request.key, resumed=2)
        send(sender, (after, 12))
        sender.ended(after, 3)
        sender.step()
        assert await request.complete(1)
    assert request.choices[0].complete
    assert request.choices[0].tokens()["token_id"].tolist() == [10, 11, 12]


async def test_a_choice_that_resumes_elsewhere_than_it_stopped_is_not_whole(
    sender: CaptureSender, channel: CaptureChannel
) -> None:
    with channel.follow() as request:
        sender.ended(begin(sender, channel, request.key, resumed=4), 4)
        sender.step()
        assert await request.complete(1)
    assert not request.choices[0].complete


async def test_a_lost_message_marks_what_was_under_way(
    sender: CaptureSender, channel: CaptureChannel
) -> None:
    with channel.follow() as request:
        stream = begin(sender, channel, request.key)
        send(sender, (stream, 10))
        sender.flush()
        await asyncio.sleep(0.05)
        sender._outgoing[channel.gateway].sequence += 1
        send(sender, (stream, 12))
        sender.ended(stream, 2)
        sender.step()
        assert await request.complete(1)
    assert not request.choices[0].complete


async def test_nothing_arrives_in_time(channel: CaptureChannel) -> None:
    with channel.follow() as request:
        assert not await request.complete(1, 0.01)


async def test_what_nobody_follows_leaves_nothing_behind(
    sender: CaptureSender, channel: CaptureChannel
) -> None:
    with channel.follow() as gone:
        stream = begin(sender, channel, gone.key)
        sender.flush()
        await asyncio.sleep(0.05)
    send(sender, (stream, 10))
    begin(sender, channel, "unheard")
    sender.flush()
    await asyncio.sleep(0.05)
    assert not channel._streams
    assert not channel._requests


async def test_a_message_of_another_version_is_left_out(channel: CaptureChannel) -> None:
    message = Message(
        version=VERSION + 1, worker=1, sequence=0, began=[], tokens=b"", gated=[], ended=[]
    )
    channel._take_frames([channel.gateway.encode(), encode(message)])
    assert channel.malformed == 1


async def test_a_second_engine_at_the_address_is_refused(sender: CaptureSender) -> None:
    with pytest.raises(ChannelRefused, match="another vLLM"):
        CaptureSender(sender.address)
    path = Path(sender.address.removeprefix("ipc://"))
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_token_takes_24_bytes() -> None:
    assert TOKEN.itemsize == 24
