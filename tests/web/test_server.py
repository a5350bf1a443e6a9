"""The server of HTTP: bounded, patient with nobody, and ended at once."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from hypothesis import example, given
from hypothesis import strategies as st
from worlds import simulated

from qmpballoon.web.server import Request, Response, Server

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

GET = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"


class Listener(trio.abc.Listener[trio.abc.Stream]):
    """Accepts the streams that a test makes."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[trio.abc.Stream](100)

    async def accept(self) -> trio.abc.Stream:
        return await self._receive.receive()

    async def aclose(self) -> None:
        self._receive.close()

    def connect(
        self,
    ) -> trio.StapledStream[trio.abc.SendStream, trio.abc.ReceiveStream]:
        """Connect by a stream on which sending waits until the other end reads."""
        ours, theirs = trio.testing.lockstep_stream_pair()
        self._send.send_nowait(theirs)
        return ours


async def answer(request: Request) -> Response:
    if request.path == "/stream":
        return Response(200, "text/event-stream", repeat())
    if request.path == "/bug":
        raise RuntimeError("a bug")
    if request.path == "/late-bug":
        return Response(200, "text/event-stream", fail())
    said = f"{request.method} {request.path} {dict(request.query)} {len(request.body)}"
    return Response(200, "text/plain", said.encode())


ended: list[str] = []
dropped: list[int] = []


async def repeat() -> AsyncGenerator[bytes]:
    try:
        while True:
            yield b"data: x\n\n"
            await trio.sleep(1)
    finally:
        ended.append("stream")


async def fail() -> AsyncGenerator[bytes]:
    yield b"data: x\n\n"
    raise RuntimeError("a bug")


@asynccontextmanager
async def serving() -> AsyncGenerator[tuple[Server, Listener]]:
    ended.clear()
    dropped.clear()
    server, listener = Server(answer, dropped.append), Listener()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, [listener])
        yield server, listener
        nursery.cancel_scope.cancel()


async def read_all(stream: trio.abc.ReceiveStream) -> str:
    return b"".join([bytes(piece) async for piece in stream]).decode()


async def read_until(stream: trio.abc.ReceiveStream, text: str) -> str:
    seen = ""
    while text not in seen:
        piece = bytes(await stream.receive_some(1000)).decode()
        assert piece, f"no {text!r} in {seen!r}"
        seen += piece
    return seen


@simulated
async def test_several_requests_on_one_connection() -> None:
    async with serving() as (server, listener):
        stream = listener.connect()
        for name in (b"one", b"two?a=%41&b=c"):
            await stream.send_all(GET % name)
            seen = await read_until(stream, " 0")
            assert seen.startswith("HTTP/1.1 200 OK\r\n")
        assert seen.endswith("GET /two {'a': 'A', 'b': 'c'} 0")
        assert server.open == 1
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert server.open == 0


@simulated
async def test_a_body_is_read_and_bounded() -> None:
    async with serving() as (_, listener):
        for size, status in ((16 * 1024, "200 OK"), (16 * 1024 + 1, "413 ")):
            stream = listener.connect()
            head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
            await stream.send_all(head.encode())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, b"x" * size)
                assert status in await read_until(stream, "\r\n\r\n")
                nursery.cancel_scope.cancel()
            await stream.aclose()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", "400"),
        (b"GET / HTTP/1.1\r\n\r\n", "400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000, "431"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", "400"),
    ],
)
@simulated
async def test_what_is_no_request(sent: bytes, status: str) -> None:
    async with serving() as (_, listener):
        stream = listener.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, stream, sent)
            assert f"HTTP/1.1 {status} " in await read_all(stream)
            nursery.cancel_scope.cancel()


async def send(stream: trio.abc.SendStream, data: bytes) -> None:
    with suppress(trio.BrokenResourceError):
        await stream.send_all(data)


@simulated
async def test_a_request_that_does_not_come_is_not_waited_for() -> None:
    async with serving() as (server, listener):
        stream = listener.connect()
        await stream.send_all(b"GET / HTTP/1.1\r\n")
        with trio.fail_after(30):
            assert await read_all(stream) == ""
        assert server.dropped == 0


@simulated
async def test_a_bug_ends_its_request_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as (_, listener):
        stream = listener.connect()
        await stream.send_all(GET % b"bug")
        assert "500" in await read_until(stream, "log says why")
        await stream.send_all(GET % b"")
        assert "200" in await read_until(stream, " 0")
    assert "a bug" in caplog.text


@simulated
async def test_a_bug_in_a_stream_ends_its_connection_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving() as (server, listener):
        stream = listener.connect()
        await stream.send_all(GET % b"late-bug")
        assert "data: x" in await read_all(stream)
        assert server.open == 0
        assert "a bug" in caplog.text
        assert await is_served(listener)


async def is_served(listener: Listener) -> bool:
    stream = listener.connect()
    await stream.send_all(GET % b"")
    return "200" in await read_until(stream, " 0")


LINES = st.builds(
    "{} /{} HTTP/{}\r\n{}\r\n\r\n{}".format,
    st.sampled_from(["GET", "HEAD", "POST", "CONNECT", "OPTIONS", "get", ""]),
    st.sampled_from(["", "stream", "late-bug", "bug", "%00%0a", "\xff", "?a&=&%", "*"]),
    st.sampled_from(["1.1", "1.0", "2.0", "9"]),
    st.lists(
        st.sampled_from(
            [
                *("Host: x", "Connection: Upgrade", "Upgrade: websocket"),
                *(
                    "Content-Length: 3",
                    "Transfer-Encoding: chunked",
                    "Expect: 100-continue",
                ),
                *("Connection: close", "Cookie: \xff", "X:" + "y" * 20_000),
            ]
        ),
        max_size=4,
    ).map("\r\n".join),
    st.sampled_from(["", "abc", "3\r\nabc\r\n0\r\n\r\n", "\0", "x" * 20_000]),
)


@example(requests=["HEAD /stream HTTP/1.1\r\nHost: x\r\n\r\n"])
@example(requests=["CONNECT / HTTP/1.1\r\nHost: x\r\n\r\n"])
@given(requests=st.lists(LINES, min_size=1, max_size=3))
@simulated
async def test_whatever_a_client_sends_ends_its_connection_alone(
    requests: list[str],
) -> None:
    async with serving() as (server, listener):
        stream = listener.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, stream, "".join(requests).encode("latin-1"))
            with trio.move_on_after(60):
                async for _ in stream:
                    pass
            nursery.cancel_scope.cancel()
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert server.open == 0
        assert await is_served(listener)


@simulated
async def test_who_connects_and_says_nothing_keeps_nobody_out() -> None:
    async with serving() as (server, listener):
        silent = [listener.connect() for _ in range(100)]
        await trio.testing.wait_all_tasks_blocked()
        assert server.open == 100
        assert await is_served(listener)
        assert await read_all(silent[0]) == ""  # who had waited longest
        assert server.open == 100


@simulated
async def test_there_are_so_many_connections_and_no_more() -> None:
    async with serving() as (server, listener):
        streams = [listener.connect() for _ in range(100)]
        for stream in streams:
            await stream.send_all(GET % b"stream")
            await read_until(stream, "data: x\n\n")
        assert server.open == 100
        more = listener.connect()
        assert await read_all(more) == ""
        await streams[0].aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert await is_served(listener)


@simulated
async def test_a_stream_ends_with_its_reader() -> None:
    async with serving() as (server, listener):
        stream = listener.connect()
        await stream.send_all(GET % b"stream")
        await read_until(stream, "data: x\n\n")
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert ended == ["stream"]
        assert (server.open, server.dropped) == (0, 0)


@simulated
async def test_a_reader_that_does_not_read_is_dropped_and_counted() -> None:
    async with serving() as (server, listener):
        stream, other = listener.connect(), listener.connect()
        for each in (stream, other):
            await each.send_all(GET % b"stream")
        with trio.move_on_after(30):
            while True:  # it reads
                await read_until(other, "data: x\n\n")
        assert (server.open, server.dropped) == (1, 1)
        assert ended == ["stream"]
        await other.aclose()
        whole = listener.connect()
        await whole.send_all(GET % b"")
        await trio.sleep(30)
        assert server.dropped == 2
        assert dropped == [1, 2]


@simulated
async def test_the_end_waits_for_nobody() -> None:
    async with serving() as (_, listener):
        for name in (b"stream", b""):
            stream = listener.connect()
            await stream.send_all(GET % name)
        listener.connect()
        await trio.sleep(1)
        began = trio.current_time()
    assert trio.current_time() - began < 1
    assert ended == ["stream"]


@simulated
async def test_a_head_has_no_body() -> None:
    async with serving() as (_, listener):
        stream = listener.connect()
        await stream.send_all(
            b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        assert (await read_all(stream)).endswith("\r\n\r\n")
