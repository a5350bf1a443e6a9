"""Serves the pages of a supervised fleet, or of a cluster; on trio."""

from __future__ import annotations

import logging
import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from qmpballoon._printable import describe_bug
from qmpballoon._transport.trio_tasks import BackgroundTasks
from qmpballoon.cluster.view import look
from qmpballoon.errors import BusError
from qmpballoon.web.app import App
from qmpballoon.web.board import Board
from qmpballoon.web.cluster_app import ClusterApp
from qmpballoon.web.cluster_board import ClusterBoard
from qmpballoon.web.jobs import Jobs
from qmpballoon.web.server import Server

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncGenerator, Callable, Mapping

    from qmpballoon.cluster.bus import Bus
    from qmpballoon.fleet.supervisor import Supervisor
    from qmpballoon.web.access import Access
    from qmpballoon.web.board import LiveBoard

__all__ = ["open_app", "open_cluster_app", "open_cluster_pages", "open_pages"]

# Seconds from one look at the fleet to the next. The VMs are polled once a second, at
# any moment of it, and a page is to be less than a second behind that.
_PERIOD: Final = 0.5
_LOG: Final = logging.getLogger("qmpballoon.web")


@asynccontextmanager
async def open_pages(
    supervisor: Supervisor,
    listener: socket.socket,
    access: Access,
    read_fleet: Callable[[], Mapping[str, object]],
    *,
    allow_changes: bool = False,
    prefix: str = "",
    on_change: Callable[[str], None] = lambda _: None,
) -> AsyncGenerator[Board]:
    """Serve the pages of a fleet within an ``async with`` block.

    Args:
        supervisor: Knows the VMs, and moves them.
        listener: The socket to serve on; it listens.
        access: Who may look, and change.
        read_fleet: Returns the fleet as ``fleet status --json`` prints it.
        allow_changes: Whether balloons can be moved from the pages.
        prefix: The path below which a reverse proxy has the pages, such as ``"/vms"``.
        on_change: Called with a line on each change that somebody asks for, and on
            what came of it.

    Yields:
        The board, whose :meth:`~Board.log` adds to that list.

    Note:
        The end of the block stops the changes that go on: a reclaim gives the memory
        back, a resize leaves the guest at the size that it has reached. No reader is
        waited for. It can be cancelled at any moment.
    """
    async with (
        open_app(
            supervisor,
            access,
            read_fleet,
            allow_changes=allow_changes,
            prefix=prefix,
            on_change=on_change,
        ) as app,
        _serve(app, listener),
    ):
        yield app.board


@asynccontextmanager
async def _serve(
    app: App | ClusterApp, listener: socket.socket
) -> AsyncGenerator[None]:
    """Serve what answers requests within the block."""
    # A duplicate: trio's socket closes the one that it is given.
    sock = trio.socket.from_stdlib_socket(listener.dup())
    server = Server(app.answer, partial(_log_drop, app.board))
    async with BackgroundTasks(shield=False) as tasks:
        tasks.start_soon(server.serve, [trio.SocketListener(sock)])
        yield


def _log_drop(board: LiveBoard, count: int) -> None:
    board.log(None, f"a reader that did not read was cut off: {count} until now")


@asynccontextmanager
async def open_app(
    supervisor: Supervisor,
    access: Access,
    read_fleet: Callable[[], Mapping[str, object]],
    *,
    allow_changes: bool = False,
    prefix: str = "",
    on_change: Callable[[str], None] = lambda _: None,
) -> AsyncGenerator[App]:
    """Run what answers requests, and serve it to nobody; as :func:`open_pages`."""
    board = Board(wall_clock=time.time)
    async with BackgroundTasks(shield=False) as tasks:
        jobs = Jobs(supervisor, board, tasks, on_change) if allow_changes else None
        board.note(supervisor.list_views())
        tasks.start_soon(_watch, supervisor, board)
        yield App(
            board=board,
            access=access,
            read_fleet=read_fleet,
            jobs=jobs,
            prefix=prefix,
        )


async def _watch(supervisor: Supervisor, board: Board) -> None:
    """Tell the board of the VMs, again and again. What fails ends no fleet."""
    said = ""
    while True:
        await trio.sleep(_PERIOD)
        try:
            board.note(supervisor.list_views())
        except Exception as error:  # noqa: BLE001 - whatever a VM's figures cause
            if (why := describe_bug(error)) != said:
                _LOG.error("the pages do not show what is new: %s", why)
                said = why


@asynccontextmanager
async def open_cluster_pages(
    bus: Bus,
    listener: socket.socket,
    access: Access,
    *,
    prefix: str = "",
    period: float = 1.0,
) -> AsyncGenerator[ClusterBoard]:
    """Serve the page of a cluster's hosts within an ``async with`` block.

    Args:
        bus: The server between the hosts, as somebody who may read everything.
        listener: The socket to serve on; it listens.
        access: Who may look.
        prefix: As of :func:`open_pages`.
        period: Seconds between two looks at all hosts, above 0.

    Yields:
        The board, whose :meth:`~Board.log` adds to the list of what happened.

    Note:
        While the server between the hosts cannot be asked, the page says so. It can be
        cancelled at any moment.
    """
    async with (
        open_cluster_app(bus, access, prefix=prefix, period=period) as app,
        _serve(app, listener),
    ):
        yield app.board


@asynccontextmanager
async def open_cluster_app(
    bus: Bus,
    access: Access,
    *,
    prefix: str = "",
    period: float = 1.0,
    clock: Callable[[], float] = time.time,
) -> AsyncGenerator[ClusterApp]:
    """Run what answers requests, and serve it to nobody; as :func:`open_cluster_pages`.

    Args:
        bus: The server.
        access: Who may look.
        prefix: As there.
        period: As there.
        clock: Returns the seconds since 1970.
    """
    board = ClusterBoard(wall_clock=clock)
    async with BackgroundTasks(shield=False) as tasks:
        await _look(bus, board)
        tasks.start_soon(_look_again, bus, board, period)
        yield ClusterApp(board=board, access=access, prefix=prefix)


async def _look_again(bus: Bus, board: ClusterBoard, period: float) -> None:
    while True:
        await trio.sleep(period)
        await _look(bus, board)


async def _look(bus: Bus, board: ClusterBoard) -> None:
    """Tell the board of all hosts."""
    try:
        view = await look(bus, board.now, with_vms=False)
    except BusError as error:
        board.note_problem(str(error))
    else:
        board.note(view)
