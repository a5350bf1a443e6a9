"""Answers requests: pages, their streams of changes, documents, and changes.

What is sent to whom is decided here; :mod:`qmpballoon.web.server` sends it. So all of
it can be tried without a socket: :meth:`App.answer` takes a request, and returns a
response.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import trio
from attrs import asdict, define, evolve

from qmpballoon._printable import make_printable, make_value_printable
from qmpballoon.errors import BalloonBusy, MonitorUnreachable, QmpBalloonError
from qmpballoon.export.page import FOLDER
from qmpballoon.sizes import parse_size
from qmpballoon.web.pages import (
    draw_fleet_parts,
    draw_vm_parts,
    format_entrance,
    format_fleet_page,
    format_refusal,
    format_vm_page,
    write_parts,
)
from qmpballoon.web.server import Response

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping

    from qmpballoon.web.access import Access
    from qmpballoon.web.board import Board, LivePage, VmOnBoard
    from qmpballoon.web.jobs import Jobs
    from qmpballoon.web.server import Request

__all__ = ["App"]

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
_JSON: Final = "application/json"
_EVENTS: Final = "text/event-stream"
_PAUSE: Final = 0.25  # seconds between two events of a stream at least
# Seconds without a change after which something is sent all the same, so that it is
# noticed when the reader has left.
_LONGEST_SILENCE: Final = 15.0
_TICK: Final = re.compile(r"[0-9]{1,18}")
_RETRY: Final = 1000  # milliseconds until a browser connects again
_LOG: Final = logging.getLogger("qmpballoon.web")


class _Refused(Exception):
    """A request that cannot be met; the message says why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@define
class App:
    """Answers requests.

    Attributes:
        board: What is shown.
        access: Who may look, and change.
        read_fleet: Returns the fleet as ``fleet status --json`` prints it.
        jobs: Does what is asked for; ``None``: nothing can be changed.
        prefix: The path below which all of it is, without a slash at its end.
    """

    board: Board
    access: Access
    read_fleet: Callable[[], Mapping[str, object]]
    jobs: Jobs | None = None
    prefix: str = ""

    async def answer(self, request: Request) -> Response:
        """Answer a request."""
        try:
            response = await self._answer(request)
        except _Refused as refused:
            response = _say(refused.status, str(refused))
        return evolve(response, headers=(*_HEADERS, *response.headers))

    async def _answer(self, request: Request) -> Response:
        if why := self.access.explain_refusal(request.headers):
            raise _Refused(403, why)
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
            return await self._change(request, path)
        if request.method not in ("GET", "HEAD"):
            raise _Refused(405, "that cannot be done: GET or POST")
        look = self._pages.get(path)
        if look is None:
            raise _Refused(404, "there is no such page")
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

    # Looking

    def list_paths(self) -> list[str]:
        """Return the paths of all that can be looked at."""
        return list(self._pages)

    @property
    def _pages(self) -> dict[str, Callable[[Request], Response]]:
        return {
            "/": lambda _: self._format_fleet(),
            "/vm": self._format_vm,
            "/events": self._open_events,
            "/api/fleet": lambda _: _send(self.read_fleet()),
            "/api/vm": self._send_vm,
            "/api/log": lambda _: _send(self._list_entries()),
            "/api/job": self._send_job,
            "/api/events": self._open_document_events,
        }

    def _format_fleet(self) -> Response:
        return Response(
            200, _HTML, _encode(format_fleet_page(self.board, self._read_host()))
        )

    def _format_vm(self, request: Request) -> Response:
        vm = self._find_vm(request.query.get("name"))
        key = None if self.jobs is None else self.access.change_key
        page = format_vm_page(self.board, vm, self._find_job(vm), key)
        return Response(200, _HTML, _encode(page))

    def _send_vm(self, request: Request) -> Response:
        vm = self._find_vm(request.query.get("name"))
        samples = [sample.to_json() for sample in vm.history]
        return _send({"vm": vm.view.to_json(), "timeline": samples})

    def _send_job(self, request: Request) -> Response:
        job = self._find_job(self._find_vm(request.query.get("vm")))
        return _send({"job": job and job.to_json()})

    def _list_entries(self) -> dict[str, object]:
        return {"entries": [entry.to_json() for entry in self.board.entries]}

    def _read_host(self) -> Mapping[str, object]:
        return cast("Mapping[str, object]", self.read_fleet()["host"])

    def _find_vm(self, name: str | None) -> VmOnBoard:
        vm = None if name is None else self.board.find(name)
        if vm is None:
            shown = make_printable(name or "", 100)
            raise _Refused(404, f"there is no VM {shown!r}: see the page of all VMs")
        return vm

    def _find_job(self, vm: VmOnBoard) -> Any:  # noqa: ANN401 - a job, if there is one
        return None if self.jobs is None else self.jobs.find(vm.view.name)

    # Streams

    def _open_events(self, request: Request) -> Response:
        """Open the stream of a page: the parts that change, as HTML."""
        board, name = self.board, request.query.get("vm")
        if name is None:
            page = board.get_page(
                "fleet",
                lambda: write_parts(draw_fleet_parts(board, self._read_host())),
            )
        else:
            vm = self._find_vm(name)
            page = board.get_page(
                ("vm", vm.number),
                lambda: write_parts(draw_vm_parts(board, vm, self._find_job(vm))),
            )

        def write(parts: dict[str, str]) -> Iterator[tuple[str, str]]:
            yield "parts", json.dumps(parts)

        return self._stream(request, page, write)

    def _open_document_events(self, request: Request) -> Response:
        """Open the stream of documents: the VMs that change, and what happens."""

        def draw() -> Iterator[tuple[str, str]]:
            for name, vm in self.board.vms.items():
                if vm.is_there:
                    yield f"vm {name}", _dump(vm.view.to_json())
            for entry in self.board.entries:
                yield f"entry {entry.number}", _dump(entry.to_json())

        def write(parts: dict[str, str]) -> Iterator[tuple[str, str]]:
            for key, text in parts.items():
                kind, _, name = key.partition(" ")
                if text:
                    yield kind, text
                elif kind == "vm":
                    yield "gone", _dump({"name": name})

        return self._stream(request, self.board.get_page("documents", draw), write)

    def _stream(
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

    # Changes

    async def _change(self, request: Request, path: str) -> Response:
        jobs = self.jobs
        if jobs is None:
            raise _Refused(403, "nothing can be changed here: see --allow-changes")
        if not self.access.may_change(request.headers):
            _LOG.warning("%s was refused: without the key", make_printable(path))
            raise _Refused(403, "a change needs the token again, or the page's key")
        kind = request.headers.get("content-type", "").partition(";")[0].strip()
        if kind.lower() != _JSON:
            raise _Refused(415, "send JSON (Content-Type: application/json)")
        changes: dict[
            str, Callable[[Jobs, VmOnBoard, dict[str, Any]], Awaitable[Response]]
        ]
        changes = {
            "/api/plan": self._plan,
            "/api/reclaim": self._reclaim,
            "/api/resize": self._resize,
            "/api/give-back": self._give_back,
            "/api/stop": self._stop,
        }
        change = changes.get(path)
        if change is None:
            raise _Refused(404, "there is no such change")
        details = _read_details(request.body)
        shown = details.get("vm")
        if not isinstance(shown, str):
            raise _Refused(400, 'name the VM: {"vm": NAME}')
        vm = self._find_vm(shown)
        try:
            return await change(jobs, vm, details)
        except (BalloonBusy, MonitorUnreachable) as error:
            raise _Refused(409, make_printable(str(error))) from error
        except QmpBalloonError as error:
            raise _Refused(502, make_printable(str(error))) from error
        except (TypeError, ValueError) as error:
            raise _Refused(400, make_printable(str(error))) from error

    async def _plan(
        self, jobs: Jobs, vm: VmOnBoard, details: dict[str, Any]
    ) -> Response:
        plan = await jobs.plan(vm.view.name, _read_size(vm, details, "amount"))
        text = f"{plan.describe()}."
        return _send({"text": f"{text[0].upper()}{text[1:]}", "plan": asdict(plan)})

    async def _reclaim(
        self, jobs: Jobs, vm: VmOnBoard, details: dict[str, Any]
    ) -> Response:
        amount = _read_size(vm, details, "amount")
        hold = details.get("hold", False)
        if not isinstance(hold, bool):
            raise _Refused(400, "hold is true or false")
        return _accept(jobs.reclaim(vm.view.name, amount, hold=hold))

    async def _resize(
        self, jobs: Jobs, vm: VmOnBoard, details: dict[str, Any]
    ) -> Response:
        size = _read_size(vm, details, "size")
        if size is None:
            raise _Refused(400, 'give a size: {"size": "2G"}')
        return _accept(jobs.resize(vm.view.name, size))

    async def _give_back(
        self, jobs: Jobs, vm: VmOnBoard, _: dict[str, Any]
    ) -> Response:
        return _accept(jobs.give_back(vm.view.name))

    async def _stop(self, jobs: Jobs, vm: VmOnBoard, _: dict[str, Any]) -> Response:
        if not jobs.stop(vm.view.name):
            raise _Refused(409, "nothing is done with it")
        return _send({"text": "It is being stopped."})


def _read_size(vm: VmOnBoard, details: dict[str, Any], key: str) -> int | None:
    """Return a size that a change names: bytes, or a text such as ``"2G"``."""
    value = details.get(key)
    if value is None:
        return None
    if type(value) is int:  # true is none
        value = str(value)
    size = parse_size(cast("str", value), whole=vm.view.total)
    if size < 1:
        raise _Refused(400, f"{key} is to be more than nothing")
    return size


def _read_details(body: bytes) -> dict[str, Any]:
    try:
        details = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _Refused(400, "this is no JSON") from error
    if not isinstance(details, dict):
        raise _Refused(400, "send an object of JSON")
    return cast("dict[str, Any]", details)


def _accept(job: Any) -> Response:  # noqa: ANN401 - a job
    return _send({"text": f"Begun: {job.text}.", "job": job.to_json()}, 202)


def _say(status: int, text: str) -> Response:
    return Response(status, _TEXT, _encode(f"{text}\n"))


def _send(document: Mapping[str, object], status: int = 200) -> Response:
    return Response(status, _JSON, _encode(f"{_dump(document)}\n"))


def _dump(document: Mapping[str, object]) -> str:
    return json.dumps(make_value_printable(document))


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
