"""Answers requests in the way that all pages share: access, files, documents, streams.

This module decides what is sent to whom; :mod:`qmpballoon.web.server` sends it. So all
of it can be tested without a socket: :meth:`Site.answer` takes a request, and returns a
response. Subclasses say which pages there are.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import trio
from attrs import define, evolve

from qmpballoon._printable import make_value_printable
from qmpballoon.export.page import FOLDER
from qmpballoon.web.board import LiveBoard
from qmpballoon.web.parts import format_entrance, format_refusal
from qmpballoon.web.server import Response

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Mapping

    from qmpballoon.web.access import Access
    from qmpballoon.web.board import LivePage
    from qmpballoon.web.server import Request

__all__ = ["JSON", "Refused", "Site", "dump", "send", "send_page", "write_html"]

_B = TypeVar("_B", bound=LiveBoard)

JSON: Final = "application/json"
"""The media type of documents, and of what changes are asked for with."""

_HERE: Final = Path(__file__).parent
_FILES: Final = {
    "/page.css": (FOLDER / "page.css", "text/css"),
    "/page.js": (FOLDER / "page.js", "text/javascript"),
    "/live.css": (_HERE / "live.css", "text/css"),
    "/live.js": (_HERE / "live.js", "text/javascript"),
}
# Only our own files are obeyed, and only our server is asked. `data:` is for the icon,
# which is none, so that no browser asks for one.
_POLICY: Final = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self';"
    " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = (
    ("Content-Security-Policy", _POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
)
_HTML: Final = "text/html; charset=utf-8"
_TEXT: Final = "text/plain; charset=utf-8"
_EVENTS: Final = "text/event-stream"
_PAUSE: Final = 0.25  # seconds between two events of a stream at least
# Seconds without a change after which something is sent all the same, so that it is
# noticed when the reader has left.
_LONGEST_SILENCE: Final = 15.0
_TICK: Final = re.compile(r"[0-9]{1,18}")
_RETRY: Final = 1000  # milliseconds until a browser connects again


class Refused(Exception):
    """A request that cannot be met; the message says why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@define(kw_only=True)
class Site(ABC, Generic[_B]):
    """Answers requests.

    Attributes:
        board: What is shown.
        access: Who may look, and change.
        prefix: The path below which all of it is, without a slash at its end.
    """

    board: _B
    access: Access
    prefix: str = ""

    @property
    @abstractmethod
    def pages(self) -> dict[str, Callable[[Request], Response]]:
        """All that can be looked at, by its path."""

    async def change(self, request: Request, path: str) -> Response:  # noqa: ARG002
        """Change something.

        Raises:
            Refused: There is nothing to be changed.
        """
        raise Refused(403, "nothing can be changed here")

    async def answer(self, request: Request) -> Response:
        """Answer a request."""
        try:
            response = await self._answer(request)
        except Refused as refused:
            response = _say(refused.status, str(refused))
        return evolve(response, headers=(*_HEADERS, *response.headers))

    async def _answer(self, request: Request) -> Response:
        if why := self.access.explain_refusal(request.headers):
            raise Refused(403, why)
        path = request.path
        if self.prefix and path == self.prefix:
            return Response(308, _TEXT, b"", [("Location", f"{self.prefix}/")])
        # A proxy may have taken the prefix away, or not.
        if self.prefix and path.startswith(f"{self.prefix}/"):
            path = path.removeprefix(self.prefix)
        if path in _FILES:
            file, kind = _FILES[path]
            return Response(200, f"{kind}; charset=utf-8", file.read_bytes())
        if "token" in request.query and path == "/":
            return self._let_in(request.query["token"])
        if not self.access.may_look(request.headers):
            return Response(403, _HTML, format_refusal().encode())
        if request.method == "POST":
            return await self.change(request, path)
        if request.method not in ("GET", "HEAD"):
            raise Refused(405, "that cannot be done: GET or POST")
        look = self.pages.get(path)
        if look is None:
            raise Refused(404, "there is no such page")
        return look(request)

    def _let_in(self, token: str) -> Response:
        if not self.access.is_token(token):
            return Response(403, _HTML, format_refusal().encode())
        cookie = (
            f"{self.access.cookie_name}={self.access.cookie}; Path={self.prefix}/;"
            " HttpOnly; SameSite=Strict"
        )
        return Response(
            200, _HTML, format_entrance().encode(), [("Set-Cookie", cookie)]
        )

    def stream(
        self,
        request: Request,
        page: LivePage,
        write: Callable[[dict[str, str]], Iterator[tuple[str, str]]],
    ) -> Response:
        """Answer with a stream of events that begins where the reader has ended."""
        # A browser that connects again tells what it has seen last.
        seen = request.headers.get("last-event-id") or request.query.get("since", "")
        run, _, number = seen.partition("-")
        is_ours = run == self.board.run and _TICK.fullmatch(number) is not None
        tick = int(number) if is_ours else 0
        is_old = bool(seen) and (not is_ours or tick < page.forgotten)
        body = self._follow(page, tick, write, is_old=is_old)
        return Response(200, _EVENTS, body, [("X-Accel-Buffering", "no")])

    async def _follow(
        self,
        page: LivePage,
        tick: int,
        write: Callable[[dict[str, str]], Iterator[tuple[str, str]]],
        *,
        is_old: bool,
    ) -> AsyncGenerator[bytes]:
        yield f"retry: {_RETRY}\n\n".encode()
        if is_old:
            # What it has seen was of another run of the server, or too long ago.
            yield b"event: reload\ndata: {}\n\n"
            tick = 0
        board = self.board
        while True:
            now = await page.update(board.tick)
            parts = page.list_since(tick)
            text = "".join(
                f"event: {kind}\nid: {board.run}-{now}\ndata: {data}\n\n"
                for kind, data in write(parts)
            )
            if parts:
                yield _encode(text)
            tick = now
            await trio.sleep(_PAUSE)
            with trio.move_on_after(_LONGEST_SILENCE) as scope:
                await board.wait(tick)
            if scope.cancelled_caught:
                yield b": nothing has changed\n\n"


def write_html(parts: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Return the events that tell a page its new parts."""
    yield "parts", json.dumps(parts)


def send_page(page: str) -> Response:
    """Answer with a page."""
    return Response(200, _HTML, _encode(page))


def send(document: Mapping[str, object], status: int = 200) -> Response:
    """Answer with a document."""
    return Response(status, JSON, _encode(f"{dump(document)}\n"))


def dump(document: Mapping[str, object]) -> str:
    """Return a document as JSON, with all texts made printable."""
    return json.dumps(make_value_printable(document))


def _say(status: int, text: str) -> Response:
    return Response(status, _TEXT, _encode(f"{text}\n"))


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
