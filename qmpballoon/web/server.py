"""A small HTTP/1.1 server on trio: h11 reads and writes the protocol.

It trusts no client. The number of connections and the size of requests are bounded, and
each wait for a client has a deadline, even while something is sent: a reader that does
not read is cut off, and counted. Everything ends at once when it is cancelled.

ASGI servers that run on trio shield sending from cancellation, without a deadline
(hypercorn 0.18, anycorn 0.20). So one reader that does not read would keep the command
from ending, and from giving guests their memory back.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, unquote

import h11
import trio
from attrs import define, field, frozen

from qmpballoon._printable import describe_bug, make_printable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence

__all__ = ["Request", "Response", "Server"]

# Connections at a time. A browser opens up to six to a host, and keeps one for each
# page that is open.
_MOST_CONNECTIONS: Final = 100
_READ_SIZE: Final = 16 * 1024  # bytes
_LARGEST_HEAD: Final = 16 * 1024  # bytes of a request without its body
_LARGEST_BODY: Final = 16 * 1024  # bytes; a change is a few words
_REQUEST_TIMEOUT: Final = 15.0  # seconds for a request, from the end of the last one
# Seconds for a client to read a piece of a stream, or a whole answer.
_SEND_TIMEOUT: Final = 10.0
_LOG: Final = logging.getLogger("qmpballoon.web")


@frozen
class Request:
    """What a client asks for.

    Attributes:
        method: ``"GET"`` for example.
        path: The path, decoded.
        query: What follows the question mark, decoded.
        headers: The headers, their names in lower case.
        body: The body.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(factory=dict[str, str])
    headers: Mapping[str, str] = field(factory=dict[str, str], repr=False)
    body: bytes = field(default=b"", repr=False)


@frozen
class Response:
    """What a client is answered.

    Attributes:
        status: HTTP's.
        content_type: The media type.
        body: The body; or its pieces, one after the other, until the client leaves.
        headers: Other headers.
    """

    status: int
    content_type: str
    body: bytes | AsyncGenerator[bytes] = field(repr=False)
    headers: Sequence[tuple[str, str]] = ()


@define
class Server:
    """Serves what a function answers.

    Attributes:
        answer: The function.
        on_drop: Called with the number of readers that were cut off, whenever one is.
        dropped: How many readers were cut off because they did not read.
        open: How many connections there are.
    """

    answer: Callable[[Request], Awaitable[Response]]
    on_drop: Callable[[int], None] = lambda _: None
    dropped: int = 0
    open: int = 0
    # Connections that read no stream, the one that has waited longest first.
    _idle: dict[trio.CancelScope, None] = field(
        factory=dict["trio.CancelScope", None], repr=False
    )

    async def serve(
        self, listeners: Sequence[trio.abc.Listener[trio.abc.Stream]]
    ) -> None:
        """Serve until cancelled."""
        await trio.serve_listeners(self._serve_client, list(listeners))

    async def _serve_client(self, stream: trio.abc.Stream) -> None:
        self.open += 1
        scope = trio.CancelScope()
        try:
            if self.open <= _MOST_CONNECTIONS or self._end_oldest():
                with scope:
                    await self._converse(stream, scope)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has left
        except Exception as error:  # noqa: BLE001 - one client's end is no other's
            _LOG.exception("a connection ends: %s", describe_bug(error))
        finally:
            self.open -= 1
            self._idle.pop(scope, None)
            # No goodbye: whoever does not read would have to be waited for.
            await trio.aclose_forcefully(stream)

    def _end_oldest(self) -> bool:
        """End a connection for another one; return whether there is one to end.

        So nobody is kept out by those who connect and then say nothing. A stream is
        read by somebody who was let in.
        """
        oldest = next(iter(self._idle), None)
        if oldest is None:
            return False
        del self._idle[oldest]
        oldest.cancel()
        return True

    async def _converse(self, stream: trio.abc.Stream, scope: trio.CancelScope) -> None:
        client = _Client(stream)
        while True:
            self._idle.pop(scope, None)
            self._idle[scope] = None  # as the last one
            try:
                with trio.fail_after(_REQUEST_TIMEOUT):
                    request = await client.receive_request()
            except trio.TooSlowError:
                return
            except h11.RemoteProtocolError as error:
                status = error.error_status_hint
                await self._send(client, _explain(status, "this is no good request"))
                return
            if request is None:
                return
            response = await self._answer(request)
            if not isinstance(response.body, bytes):
                self._idle.pop(scope, None)
            is_sent = await self._send(client, response, request.method)
            if not (is_sent and client.begin_next()):
                return

    async def _answer(self, request: Request) -> Response:
        try:
            return await self.answer(request)
        except Exception as error:  # noqa: BLE001 - one request's bug ends no other
            path = make_printable(request.path)
            _LOG.exception("%s: %s", path, describe_bug(error))
            return _explain(500, "that failed; the server's log says why")

    async def _send(
        self, client: _Client, response: Response, method: str = "GET"
    ) -> bool:
        """Send an answer; return whether the client has taken it."""
        body = response.body
        if not isinstance(body, bytes):
            if method == "HEAD":
                await self._write(client, client.start(response, None))
                return False
            pieces = partial(self._send_pieces, client, response, body)
            try:
                await client.run_while_there(pieces)
            finally:
                with trio.CancelScope(shield=True):
                    await body.aclose()
            return False
        data = client.start(response, len(body))
        if method != "HEAD":
            data += client.send(h11.Data(data=body))
        return await self._write(client, data + client.send(h11.EndOfMessage()))

    async def _send_pieces(
        self, client: _Client, response: Response, body: AsyncGenerator[bytes]
    ) -> None:
        data = client.start(response, None)
        async for piece in body:
            data += client.send(h11.Data(data=piece))
            if not await self._write(client, data):
                return
            data = b""

    async def _write(self, client: _Client, data: bytes) -> bool:
        """Send bytes; return whether the client reads them."""
        with trio.move_on_after(_SEND_TIMEOUT) as scope:
            await client.write(data)
        if scope.cancelled_caught:
            self.dropped += 1
            self.on_drop(self.dropped)
        return not scope.cancelled_caught


class _Client:
    """The protocol with one client."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._protocol = h11.Connection(
            h11.SERVER, max_incomplete_event_size=_LARGEST_HEAD
        )

    async def receive_request(self) -> Request | None:
        """Return the next request; ``None`` if the client has left.

        Raises:
            h11.RemoteProtocolError: It is not a request, or it is too large.
        """
        head = await self._receive()
        if not isinstance(head, h11.Request):
            return None
        if head.method == b"CONNECT":
            raise h11.RemoteProtocolError("this is no proxy", error_status_hint=405)
        body = b""
        while isinstance(part := await self._receive(), h11.Data):
            body += bytes(part.data)
            if len(body) > _LARGEST_BODY:
                raise h11.RemoteProtocolError("too large", error_status_hint=413)
        path, _, query = head.target.decode("latin-1").partition("?")
        return Request(
            head.method.decode("latin-1"),
            unquote(path),
            dict(parse_qsl(query)),
            {
                name.decode("latin-1"): text.decode("latin-1")
                for name, text in head.headers
            },
            body,
        )

    async def _receive(self) -> object:
        while (event := self._protocol.next_event()) is h11.NEED_DATA:
            if self._protocol.they_are_waiting_for_100_continue:
                go_on = h11.InformationalResponse(status_code=100, headers=[])
                await self.write(self.send(go_on))
            self._protocol.receive_data(
                bytes(await self._stream.receive_some(_READ_SIZE))
            )
        return event

    def start(self, response: Response, length: int | None) -> bytes:
        """Return the bytes that begin an answer.

        Args:
            response: The answer.
            length: Bytes of its body; ``None``: it is a stream.
        """
        headers = [("Content-Type", response.content_type), *response.headers]
        headers.append(
            ("Connection", "close")
            if length is None
            else ("Content-Length", str(length))
        )
        reason = HTTPStatus(response.status).phrase
        return self.send(
            h11.Response(
                status_code=response.status, reason=reason.encode(), headers=headers
            )
        )

    def send(self, event: h11.Event) -> bytes:
        """Return the bytes of a part of an answer."""
        return self._protocol.send(event) or b""

    async def write(self, data: bytes) -> None:
        """Send bytes."""
        await self._stream.send_all(data)

    def begin_next(self) -> bool:
        """Make ready for the next request; return whether there can be one."""
        if self._protocol.our_state is not h11.DONE:
            return False
        if self._protocol.their_state is not h11.DONE:
            return False
        self._protocol.start_next_cycle()
        return True

    async def run_while_there(self, call: Callable[[], Awaitable[None]]) -> None:
        """Call a coroutine function, and cancel it when the client leaves."""
        async with trio.open_nursery() as nursery:

            async def wait_for_end() -> None:
                # It has nothing more to say; if it does, that is read and left.
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    while await self._stream.receive_some(_READ_SIZE):
                        pass
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait_for_end)
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await call()
            nursery.cancel_scope.cancel()


def _explain(status: int, why: str) -> Response:
    return Response(status, "text/plain; charset=utf-8", f"{why}\n".encode())
