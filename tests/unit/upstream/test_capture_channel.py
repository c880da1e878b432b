"""Who may listen and speak on the capture channel, and what it does with what no engine sends."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from entrogate.engine.channel import ChannelRefused, default_address, derive_keys, make_private
from entrogate.engine.frames import TOKEN, VERSION, Began, Ended, Gated, Message, encode
from entrogate.engine.sender import CaptureSender
from entrogate.errors import ConfigError
from entrogate.upstream.captures import CaptureChannel, RequestCapture

SECRET, OTHER = "a secret of both ends", "the secret of nobody"
BYTES = st.binary(max_size=60)
NUMBERS = st.integers(-(2**63), 2**64 - 1)
MESSAGES = st.builds(
    lambda *parts: encode(list(parts)),
    st.sampled_from([VERSION, VERSION + 1]) | NUMBERS,
    st.integers(0, 3) | NUMBERS,
    st.integers(0, 9) | NUMBERS,
    st.lists(
        st.tuples(
            st.integers(0, 5) | NUMBERS,
            st.sampled_from(["1", "2", "x"]),
            st.integers(0, 3) | NUMBERS,
            BYTES,
            st.integers(0, 3) | NUMBERS,
        ),
        max_size=4,
    ),
    BYTES | st.integers(0, 4).map(lambda n: bytes(TOKEN.itemsize * n)),
    st.lists(
        st.tuples(
            st.integers(0, 5),
            st.integers(-1, 5) | NUMBERS,
            st.sampled_from(["suppress", "force", "x"]),
            st.floats(),
            st.integers(-1, 5),
            st.floats(),
        ),
        max_size=2,
    ),
    st.lists(st.tuples(st.integers(0, 5), st.integers(-3, 5) | NUMBERS), max_size=3),
)
FRAMES = (
    st.lists(BYTES, max_size=4)
    | st.tuples(st.none(), BYTES | MESSAGES).map(list)
    | st.tuples(st.none(), MESSAGES, BYTES).map(list)
    | MESSAGES.map(lambda m: [None, m[: len(m) // 2]])
    | st.sampled_from([[None], [], [None, b"\x91" * 5_000], [None, b"", b""]])
)


@asynccontextmanager
async def joined(
    address: str, engine: str | None, gateway: str | None
) -> AsyncGenerator[tuple[CaptureSender, CaptureChannel]]:
    """An engine and a gateway on one address."""
    sender = CaptureSender(address, engine)
    try:
        async with CaptureChannel(sender.address, gateway) as channel:
            yield sender, channel
    finally:
        sender.close()


async def arrives(sender: CaptureSender, channel: CaptureChannel, tries: int = 100) -> bool:
    for _ in range(tries):
        with channel.follow() as request:
            stream = sender.began(channel.gateway, request.key, 0, [1], resumed=0)
            sender.ended(stream, 0)
            sender.flush()
            if await request.complete(1, 0.03):
                return True
    return False


async def test_the_same_secret_on_tcp() -> None:
    async with joined("tcp://127.0.0.1:*", SECRET, SECRET) as (sender, channel):
        assert await arrives(sender, channel)


@pytest.mark.parametrize("gateway", [OTHER, None])
async def test_who_does_not_know_the_secret_hears_nothing(gateway: str | None) -> None:
    sender = CaptureSender("tcp://127.0.0.1:*", SECRET)
    listener = zmq.Context.instance().socket(zmq.SUB)
    try:
        if gateway is not None:
            keys = derive_keys(gateway)
            listener.curve_serverkey = keys.engine_public
            listener.curve_publickey = keys.gateway_public
            listener.curve_secretkey = keys.gateway_secret
        listener.subscribe("")
        listener.connect(sender.address)
        async with CaptureChannel(sender.address, SECRET) as channel:
            assert await arrives(sender, channel)
            assert listener.poll(100) == 0
    finally:
        listener.close(linger=0)
        sender.close()


async def test_an_impostor_without_the_secret_is_not_heard() -> None:
    async with joined("tcp://127.0.0.1:*", OTHER, SECRET) as (sender, channel):
        assert not await arrives(sender, channel, tries=8)
        assert channel.malformed == 0


async def test_tcp_without_a_secret_is_refused_at_both_ends() -> None:
    with pytest.raises(ChannelRefused, match="ENTROGATE_ENGINE_SECRET"):
        CaptureSender("tcp://127.0.0.1:*")
    with pytest.raises(ConfigError, match="ENTROGATE_UPSTREAM__CAPTURE_SECRET"):
        async with CaptureChannel("tcp://127.0.0.1:9"):
            pass


@pytest.mark.parametrize("address", ["", "captures", "udp://1.2.3.4:5", "ipc://captures"])
async def test_an_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(ChannelRefused, match="neither"):
        CaptureSender(address)
    with pytest.raises(ConfigError, match="neither"):
        async with CaptureChannel(address, SECRET):
            pass


async def test_a_folder_that_others_may_enter_needs_a_secret(tmp_path: Path) -> None:
    open_folder = tmp_path / "open"
    open_folder.mkdir(mode=0o755)
    address = f"ipc://{open_folder}/captures"
    with pytest.raises(ChannelRefused, match="0755"):
        CaptureSender(address)
    with pytest.raises(ConfigError, match="0755"):
        async with CaptureChannel(address):
            pass
    async with joined(address, SECRET, SECRET) as (sender, channel):
        assert await arrives(sender, channel)


def test_a_private_folder_is_ours_and_no_link(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "captures"
    make_private(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    make_private(folder)
    link = tmp_path / "link"
    link.symlink_to(folder)
    with pytest.raises(ChannelRefused, match="not a folder of this user"):
        make_private(link)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ChannelRefused, match="file"):
        make_private(file)
    if os.getuid() == 0:
        os.chown(folder, 12345, 12345)
        with pytest.raises(ChannelRefused, match="not a folder of this user"):
            make_private(folder)


def test_the_default_is_a_private_folder() -> None:
    assert default_address().startswith("ipc:///")
    assert str(os.getuid()) in default_address()


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ChannelRefused, match="at least 16"):
        derive_keys("short")


@given(batches=st.lists(st.lists(FRAMES, min_size=1, max_size=8), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_whatever_comes_the_channel_lives_on(
    batches: list[list[list[bytes | None]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    asyncio.run(_send(batches, tmp_path_factory.mktemp("channel")))


async def _send(batches: list[list[list[bytes | None]]], folder: Path) -> None:
    address = f"ipc://{folder}/captures"
    sender = zmq.Context.instance().socket(zmq.PUB)
    sender.setsockopt(zmq.LINGER, 0)
    sender.bind(address)
    counted: list[None] = []
    try:
        async with CaptureChannel(address, on_malformed=lambda: counted.append(None)) as channel:
            gateway = channel.gateway.encode()
            sequence = itertools.count()
            assert await _heard(
                channel, lambda key: sender.send_multipart(whole(channel, key, next(sequence)))
            )
            with channel.follow() as first, channel.follow() as second:
                for batch in batches:
                    for frames in batch:
                        sender.send_multipart(
                            [gateway if f is None else f for f in frames] or [b""]
                        )
                    await asyncio.sleep(0)
                for request in (first, second):
                    for choice in request.choices.values():
                        assert len(choice.tokens()) == choice.n_tokens
                        assert len(np.frombuffer(choice.prompt_token_ids, "<i4")) >= 0
            # A message of ours still arrives, whatever its number makes of those under way.
            assert await _heard(
                channel, lambda key: sender.send_multipart(whole(channel, key, next(sequence)))
            )
            assert channel.malformed == len(counted)
    finally:
        sender.close()


def whole(channel: CaptureChannel, key: str, sequence: int) -> list[bytes]:
    """A request that begins and ends in one message, of a worker of its own."""
    message = Message(
        version=VERSION,
        worker=99,
        sequence=sequence,
        began=[Began(stream=7, request=key, choice=0, prompt_token_ids=bytes(8))],
        tokens=bytes(0),
        gated=[],
        ended=[Ended(stream=7, n_tokens=0)],
    )
    return [channel.gateway.encode(), encode(message)]


async def _heard(channel: CaptureChannel, send: Callable[[str], object]) -> bool:
    for _ in range(200):
        with channel.follow() as request:
            send(request.key)
            if await request.complete(1, 0.05):
                return True
    return False


MALFORMED = {
    "one frame": [None],
    "three frames": [None, b"x", b"y"],
    "another gateway, whose name begins like ours": [b"suffixed", b"\xc0"],
    "no message": [None, b""],
    "odd tokens": {"tokens": bytes(23)},
    "a prompt of three bytes": {"began": [Began(1, "1", 0, b"abc")]},
    "a negative id": {"tokens": np.array([(1, -5, 0, 0, 0, 0)], dtype=TOKEN).tobytes()},
    "a negative entropy": {"tokens": np.array([(1, 5, 0, -1, 0, 0)], dtype=TOKEN).tobytes()},
    "a negative choice": {"began": [Began(1, "1", -1, b"")]},
    "an unknown act": {"gated": [Gated(1, 0, "x", 0.0, 1, 0.5)]},
    "fewer than no tokens": {"ended": [Ended(1, -2)]},
    "deep": [None, b"\x91" * 100_000],
}


@pytest.mark.parametrize("what", MALFORMED)
async def test_malformed_messages_are_counted(what: str, tmp_path: Path) -> None:
    channel = CaptureChannel(f"ipc://{tmp_path}/captures")
    request: RequestCapture = channel.follow()
    form = MALFORMED[what]
    if isinstance(form, dict):
        parts = {"began": [], "tokens": b"", "gated": [], "ended": [], **form}
        message = Message(version=VERSION, worker=1, sequence=0, **parts)
        form = [None, msgspec.msgpack.encode(message)]
    name = channel.gateway.encode()
    frames = [name if f is None else name + f if f == b"suffixed" else f for f in form]
    channel._take_frames(frames)
    assert channel.malformed == 1
    assert not request.choices


async def test_a_flood_leaves_time_for_other_work(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/captures"
    sender = zmq.Context.instance().socket(zmq.PUB)
    sender.setsockopt(zmq.SNDHWM, 0)
    sender.setsockopt(zmq.LINGER, 0)
    sender.bind(address)
    try:
        async with CaptureChannel(address) as channel:
            assert await _heard(channel, lambda key: sender.send_multipart(whole(channel, key, 0)))
            before = channel.malformed
            for _ in range(5_000):
                sender.send_multipart([channel.gateway.encode(), b"x"])
            turns = 0
            while channel.malformed - before < 5_000 and turns < 100_000:
                await asyncio.sleep(0)
                turns += 1
            assert channel.malformed - before == 5_000
            assert turns > 10
    finally:
        sender.close()
