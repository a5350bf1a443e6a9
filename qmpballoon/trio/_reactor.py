"""One task that reads for all monitors of a trio run, and keeps their deadlines.

A task for each monitor would take a third of a VM's memory in a fleet. The kernel tells
which sockets are ready by a descriptor of its own, on which trio waits. A socket stays
registered there; trio would register it anew each time that it waits.
"""

from __future__ import annotations

import math
import select
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

import trio

if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket

__all__ = ["Member", "Reactor", "get_reactor"]

# Sockets that are served before other tasks have their turn.
_TOGETHER: Final = 64


class Member(Protocol):
    """Whose deadlines a reactor keeps."""

    def wake_late(self, now: float) -> float:
        """End what has waited for too long; return when to call again at the latest.

        Args:
            now: Seconds on trio's clock.
        """
        ...


class Reactor:
    """Calls back when a socket is ready, and when a deadline has passed.

    What it calls neither waits nor raises. It runs from the first member's arrival
    until the last one has left, as a system task: so it serves those who clean up after
    they were cancelled, and gets no :exc:`KeyboardInterrupt`.
    """

    def __init__(self) -> None:
        self._members: dict[Member, None] = {}  # in the order in which they have come
        self._handlers: dict[int, Callable[[], None]] = {}

    def join(self, member: Member) -> None:
        """Keep somebody's deadlines, until he leaves."""
        if not self._members:
            self._epoll = select.epoll()
            self._timer = trio.CancelScope()
            trio.lowlevel.spawn_system_task(self._run, self._epoll)
        self._members[member] = None

    def leave(self, member: Member) -> None:
        """Keep somebody's deadlines no longer; no effect if he is no member."""
        if self._members.pop(member, self) is None and not self._members:
            trio.lowlevel.notify_closing(self._epoll)
            self._epoll.close()

    def wake_by(self, deadline: float) -> None:
        """Have all members see at that time whether they are late."""
        if deadline < self._timer.deadline:  # noqa: PLR1730 - setting it is slow
            self._timer.deadline = deadline

    def watch(self, sock: socket, handler: Callable[[], None]) -> None:
        """Call a handler as long as there is something to be read from a socket."""
        self._epoll.register(sock, select.EPOLLIN)
        self._handlers[sock.fileno()] = handler

    def watch_writing(self, sock: socket, *, wanted: bool) -> None:
        """Call a watched socket's handler also when it takes bytes, or no longer."""
        more = select.EPOLLOUT if wanted else 0
        self._epoll.modify(sock, select.EPOLLIN | more)

    def unwatch(self, sock: socket) -> None:
        """Call a socket's handler no more; no effect if it is not watched."""
        if self._handlers.pop(sock.fileno(), None) is not None:
            self._epoll.unregister(sock)

    async def _run(self, epoll: select.epoll) -> None:
        # Raised if the last member leaves while this waits.
        with suppress(trio.ClosedResourceError):
            while not epoll.closed:
                with self._timer:
                    await self._serve(epoll)
                if epoll is not self._epoll:  # it has ended, and begun again
                    return
                now = trio.current_time()
                deadlines = [each.wake_late(now) for each in list(self._members)]
                earliest = min(deadlines, default=math.inf)
                self._timer = trio.CancelScope(deadline=earliest)

    async def _serve(self, epoll: select.epoll) -> None:
        while not epoll.closed:
            await trio.lowlevel.wait_readable(epoll)
            for number in self._list_ready(epoll):
                # One handler may have had another's socket closed.
                if (handler := self._handlers.get(number)) is not None:
                    handler()

    def _list_ready(self, epoll: select.epoll) -> list[int]:
        if epoll.closed:  # the last member has left since it was found to be readable
            return []
        if len(self._handlers) < 2:  # noqa: PLR2004 - which one is ready, is known
            return list(self._handlers)
        return [number for number, _ in epoll.poll(0, _TOGETHER)]


_reactor = trio.lowlevel.RunVar[Reactor]("reactor")


def get_reactor() -> Reactor:
    """Return the reactor of this trio run."""
    try:
        return _reactor.get()
    except LookupError:
        reactor = Reactor()
        _reactor.set(reactor)
        return reactor
