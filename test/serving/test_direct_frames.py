"""Frames read straight into memory are the messages that were sent, however they arrive."""

import asyncio
import itertools
import os
import ssl
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import Close, Frame, Opcode

from pi05_ros.serving.access import tls_context
from pi05_ros.serving.direct_frames import DirectConnection

DATA = Path(__file__).parent / "data"
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
LIMIT = 5000


class EagerConnection(DirectConnection):
    """Reads small frames directly too."""

    smallest = 100
    largest = 3000


async def received(segments, leave=False):
    """Messages that a server reads from a connection of these segments, and how it closed."""
    messages, done = [], asyncio.get_running_loop().create_future()

    async def handler(connection):
        try:
            async for message in connection.frames():
                messages.append(message if isinstance(message, str) else bytes(message))
        except ConnectionClosed as error:
            done.set_result(error.sent.code if error.sent else 1006)
        else:
            done.set_result(1000)

    async with serve(
        handler,
        "127.0.0.1",
        0,
        compression=None,
        max_size=LIMIT,
        create_connection=EagerConnection,
    ) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        first, *others = segments
        writer.write(HANDSHAKE + first)
        await reader.readuntil(b"\r\n\r\n")
        for segment in others:
            writer.write(segment)
            await writer.drain()
            await asyncio.sleep(0)
        if not leave:
            await asyncio.wait_for(reader.read(), 60)  # until the server has closed
        writer.close()
        return messages, await asyncio.wait_for(done, 60)


def frames(opcode, payload, fragments):
    """Masked frames of one message, with a ping between the fragments."""
    cuts = [len(payload) * i // fragments for i in range(fragments + 1)]
    for i in range(fragments):
        if i:
            yield Frame(Opcode.PING, b"p").serialize(mask=True)
        yield Frame(
            opcode if not i else Opcode.CONT, payload[cuts[i] : cuts[i + 1]], i == fragments - 1
        ).serialize(mask=True)


@settings(max_examples=40, deadline=None)
@given(
    messages=st.lists(
        st.tuples(
            st.sampled_from([Opcode.BINARY, Opcode.BINARY, Opcode.TEXT]),
            st.sampled_from([0, 1, 99, 100, 101, 125, 126, 127, 1000, 2999, 3000, 3001, LIMIT]),
            st.integers(1, 3),
        ),
        max_size=6,
    ),
    cuts=st.lists(st.integers(0, 12000), max_size=12),
)
def test_messages_arrive_as_sent(messages, cuts):
    sent = [
        (opcode, (b"t" * size if opcode is Opcode.TEXT else os.urandom(size)), fragments)
        for opcode, size, fragments in messages
    ]
    stream = b"".join(part for one in sent for part in frames(*one))
    end = Frame(Opcode.CLOSE, Close(1000, "").serialize()).serialize(mask=True)
    places = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    segments = [stream[a:b] for a, b in itertools.pairwise(places)]
    found, code = asyncio.run(received([*segments, end]))
    assert found == [p.decode() if opcode is Opcode.TEXT else p for opcode, p, _ in sent]
    assert code == 1000


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (Frame(Opcode.BINARY, b"x" * 500).serialize(mask=False), 1002),
        (b"\xc2\xfe\x01\xf4" + bytes(504), 1002),
        (Frame(Opcode.CONT, b"x" * 500).serialize(mask=True), 1002),
        (Frame(Opcode.BINARY, b"x" * (LIMIT + 1)).serialize(mask=True), 1009),
        (b"\x82\xff" + b"\xff" * 12, 1009),
        (Frame(Opcode.BINARY, b"x" * 500, fin=False).serialize(mask=True)
         + Frame(Opcode.BINARY, b"x" * 500).serialize(mask=True), 1002),
        (Frame(Opcode.BINARY, b"x" * 500).serialize(mask=True)[:-1], 1006),
    ],
    ids=["unmasked", "reserved", "continues_nothing", "large", "huge", "not_continued", "cut"],
)  # fmt: skip
def test_wrong_frames_end_the_connection_as_ever(frame, code):
    first = Frame(Opcode.BINARY, b"y" * 500).serialize(mask=True)
    found, ended = asyncio.run(received([first, frame], leave=code == 1006))
    assert found == [b"y" * 500]
    assert ended == code


def test_large_frames_through_tls():
    cert = DATA / "cert.pem"
    payload = os.urandom(2_000_003)

    async def run():
        got = asyncio.get_running_loop().create_future()

        async def handler(connection):
            async for message in connection.frames():
                got.set_result(bytes(message))

        async with serve(
            handler, "127.0.0.1", 0, ssl=tls_context(cert, DATA / "key.pem"), compression=None,
            max_size=None, create_connection=DirectConnection,
        ) as server:  # fmt: skip
            port = next(iter(server.sockets)).getsockname()[1]
            trust = ssl.create_default_context(cafile=str(cert))
            async with connect(
                f"wss://127.0.0.1:{port}", ssl=trust, compression=None, max_size=None
            ) as client:
                await client.send(payload)
                return await asyncio.wait_for(got, 60)

    assert asyncio.run(run()) == payload
