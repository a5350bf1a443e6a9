"""Answers requests on a host's VMs: pages, their streams, documents, and changes."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, Final, cast

from attrs import asdict, define

from qmpballoon._printable import make_printable
from qmpballoon.errors import BalloonBusy, MonitorUnreachable, QmpBalloonError
from qmpballoon.sizes import parse_size
from qmpballoon.web.board import Board
from qmpballoon.web.pages import (
    draw_fleet_parts,
    draw_vm_parts,
    format_fleet_page,
    format_vm_page,
)
from qmpballoon.web.parts import write_parts
from qmpballoon.web.site import (
    JSON,
    Refused,
    Site,
    dump,
    send,
    send_page,
    write_html,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from qmpballoon.web.board import VmOnBoard
    from qmpballoon.web.jobs import Jobs
    from qmpballoon.web.server import Request, Response

__all__ = ["App"]

_LOG: Final = logging.getLogger("qmpballoon.web")


@define(kw_only=True)
class App(Site[Board]):
    """Answers requests on the VMs of a host.

    Attributes:
        read_fleet: Returns the fleet as ``fleet status --json`` prints it.
        jobs: Does what is asked for; ``None``: nothing can be changed.
    """

    read_fleet: Callable[[], Mapping[str, object]]
    jobs: Jobs | None = None

    # Looking

    @property
    def pages(self) -> dict[str, Callable[[Request], Response]]:
        """See :attr:`Site.pages`."""
        return {
            "/": lambda _: self._format_fleet(),
            "/vm": self._format_vm,
            "/events": self._open_events,
            "/api/fleet": lambda _: send(self.read_fleet()),
            "/api/vm": self._send_vm,
            "/api/log": lambda _: send(self.board.list_entries()),
            "/api/job": self._send_job,
            "/api/events": self._open_document_events,
        }

    def _format_fleet(self) -> Response:
        return send_page(format_fleet_page(self.board, self._read_host()))

    def _format_vm(self, request: Request) -> Response:
        vm = self._find_vm(request.query.get("name"))
        key = None if self.jobs is None else self.access.change_key
        return send_page(format_vm_page(self.board, vm, self._find_job(vm), key))

    def _send_vm(self, request: Request) -> Response:
        vm = self._find_vm(request.query.get("name"))
        samples = [sample.to_json() for sample in vm.history]
        return send({"vm": vm.view.to_json(), "timeline": samples})

    def _send_job(self, request: Request) -> Response:
        job = self._find_job(self._find_vm(request.query.get("vm")))
        return send({"job": job and job.to_json()})

    def _read_host(self) -> Mapping[str, object]:
        return cast("Mapping[str, object]", self.read_fleet()["host"])

    def _find_vm(self, name: str | None) -> VmOnBoard:
        vm = None if name is None else self.board.find(name)
        if vm is None:
            shown = make_printable(name or "", 100)
            raise Refused(404, f"there is no VM {shown!r}: see the page of all VMs")
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
        return self.stream(request, page, write_html)

    def _open_document_events(self, request: Request) -> Response:
        """Open the stream of documents: the VMs that change, and what happens."""

        def draw() -> Iterator[tuple[str, str]]:
            for name, vm in self.board.vms.items():
                if vm.is_there:
                    yield f"vm {name}", dump(vm.view.to_json())
            for entry in self.board.entries:
                yield f"entry {entry.number}", dump(entry.to_json())

        def write(parts: dict[str, str]) -> Iterator[tuple[str, str]]:
            for key, text in parts.items():
                kind, _, name = key.partition(" ")
                if text:
                    yield kind, text
                elif kind == "vm":
                    yield "gone", dump({"name": name})

        return self.stream(request, self.board.get_page("documents", draw), write)

    # Changes

    async def change(self, request: Request, path: str) -> Response:
        """Change something; see :meth:`Site.change`."""
        jobs = self.jobs
        if jobs is None:
            raise Refused(403, "nothing can be changed here: see --allow-changes")
        if not self.access.may_change(request.headers):
            _LOG.warning("%s was refused: without the key", make_printable(path))
            raise Refused(403, "a change needs the token again, or the page's key")
        kind = request.headers.get("content-type", "").partition(";")[0].strip()
        if kind.lower() != JSON:
            raise Refused(415, "send JSON (Content-Type: application/json)")
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
            raise Refused(404, "there is no such change")
        details = _read_details(request.body)
        shown = details.get("vm")
        if not isinstance(shown, str):
            raise Refused(400, 'name the VM: {"vm": NAME}')
        vm = self._find_vm(shown)
        try:
            return await change(jobs, vm, details)
        except (BalloonBusy, MonitorUnreachable) as error:
            raise Refused(409, make_printable(str(error))) from error
        except QmpBalloonError as error:
            raise Refused(502, make_printable(str(error))) from error
        except (TypeError, ValueError) as error:
            raise Refused(400, make_printable(str(error))) from error

    async def _plan(
        self, jobs: Jobs, vm: VmOnBoard, details: dict[str, Any]
    ) -> Response:
        plan = await jobs.plan(vm.view.name, _read_size(vm, details, "amount"))
        text = f"{plan.describe()}."
        return send({"text": f"{text[0].upper()}{text[1:]}", "plan": asdict(plan)})

    async def _reclaim(
        self, jobs: Jobs, vm: VmOnBoard, details: dict[str, Any]
    ) -> Response:
        amount = _read_size(vm, details, "amount")
        hold = details.get("hold", False)
        if not isinstance(hold, bool):
            raise Refused(400, "hold is true or false")
        return _accept(jobs.reclaim(vm.view.name, amount, hold=hold))

    async def _resize(
        self, jobs: Jobs, vm: VmOnBoard, details: dict[str, Any]
    ) -> Response:
        size = _read_size(vm, details, "size")
        if size is None:
            raise Refused(400, 'give a size: {"size": "2G"}')
        return _accept(jobs.resize(vm.view.name, size))

    async def _give_back(
        self, jobs: Jobs, vm: VmOnBoard, _: dict[str, Any]
    ) -> Response:
        return _accept(jobs.give_back(vm.view.name))

    async def _stop(self, jobs: Jobs, vm: VmOnBoard, _: dict[str, Any]) -> Response:
        if not jobs.stop(vm.view.name):
            raise Refused(409, "nothing is done with it")
        return send({"text": "It is being stopped."})


def _read_size(vm: VmOnBoard, details: dict[str, Any], key: str) -> int | None:
    """Return a size that a change names: bytes, or a text such as ``"2G"``."""
    value = details.get(key)
    if value is None:
        return None
    if type(value) is int:  # true is none
        value = str(value)
    size = parse_size(cast("str", value), whole=vm.view.total)
    if size < 1:
        raise Refused(400, f"{key} is to be more than nothing")
    return size


def _read_details(body: bytes) -> dict[str, Any]:
    try:
        details = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "this is no JSON") from error
    if not isinstance(details, dict):
        raise Refused(400, "send an object of JSON")
    return cast("dict[str, Any]", details)


def _accept(job: Any) -> Response:  # noqa: ANN401 - a job
    return send({"text": f"Begun: {job.text}.", "job": job.to_json()}, 202)
