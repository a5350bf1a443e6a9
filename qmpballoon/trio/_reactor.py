"""One task that reads for all monitors of a trio run, and enforces their deadlines.

With a task for each monitor, these tasks would be a third of the memory that a VM takes
in a fleet. Trio waits for one epoll descriptor, which tells which sockets are ready. A
socket stays registered there; trio would register it again each time that it waits.
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

# Sockets that are served at most before other tasks get a turn.
_TOGETHER: Final = 64


class Member(Protocol):
    """Has deadlines that a reactor enforces. What it calls raises nothing."""

    def wake_late(self, now: float) -> float:
        """End the waits that are overdue; return when to call again at the latest.

        Args:
            now: Seconds on trio's clock.
        """
        ...

    def note_end(self, error: BaseException | None) -> None:
        """Handle that nothing is received any more, and no deadline is kept."""
        ...


class Reactor:
    """Calls handlers when sockets are ready, and members when deadlines have passed.

    What it calls must neither wait nor raise. It runs from when the first member joins
    until the last one has left. It is a system task: so it still serves monitors that
    clean up after a cancellation, and gets no :exc:`KeyboardInterrupt`.
    """

    def __init__(self) -> None:
        self._members: dict[Member, None] = {}  # in the order in which they joined
        self._handlers: dict[int, Callable[[], None]] = {}
        self._on_loss: dict[int, Callable[[], None]] = {}
        self._writing: set[int] = set()

    def join(self, member: Member) -> None:
        """Enforce a member's deadlines from now on."""
        if not self._members:
            self._begin(deadline=math.inf)
        self._members[member] = None

    def leave(self, member: Member) -> None:
        """Stop enforcing a member's deadlines; no effect if it has not joined."""
        if self._members.pop(member, self) is None and not self._members:
            self._end()

    def wake_by(self, deadline: float) -> None:
        """Make all members check their deadlines at that time at the latest."""
        if deadline < self._timer.deadline:  # noqa: PLR1730 - setting it is slow
            self._timer.deadline = deadline

    def watch(
        self,
        sock: socket,
        handler: Callable[[], None],
        on_loss: Callable[[], None],
    ) -> None:
        """Call a handler whenever there is something to read from a socket.

        Args:
            sock: The socket.
            handler: What is called.
            on_loss: Is called instead of it, once, if somebody else has closed the
                socket's descriptor, and another socket that is watched has its number.
        """
        number = sock.fileno()
        lose = self._on_loss.get(number)
        self._handlers[number], self._on_loss[number] = handler, on_loss
        self._writing.discard(number)
        if lose is None:
            self._epoll.register(number, select.EPOLLIN)
        else:
            # There may be a copy of the descriptor that was closed, as for unwatch.
            self._watch_anew()
            lose()

    def watch_writing(self, sock: socket, *, wanted: bool) -> None:
        """Begin or stop calling a watched socket's handler when it can be written."""
        if wanted:
            self._writing.add(sock.fileno())
        else:
            self._writing.discard(sock.fileno())
        self._epoll.modify(sock, self._choose_events(sock.fileno()))

    def unwatch(self, sock: socket, handler: Callable[[], None]) -> bool:
        """Stop calling a socket's handler; no effect if it is not watched.

        Returns:
            Whether the socket is there. If not, somebody else has closed its
            descriptor, and the number may be that of another file by now.
        """
        number = sock.fileno()
        if (present := self._handlers.get(number)) != handler:
            return present is None
        del self._handlers[number], self._on_loss[number]
        self._writing.discard(number)
        try:
            self._epoll.unregister(number)
        except OSError:
            # If there is a copy of the descriptor, such as in a child process, epoll
            # still reports the socket as ready, and only a new epoll does not.
            self._watch_anew()
            return False
        return True

    def _begin(self, deadline: float) -> None:
        self._epoll = select.epoll()
        self._timer = trio.CancelScope(deadline=deadline)
        trio.lowlevel.spawn_system_task(self._run, self._epoll)

    def _end(self) -> None:
        trio.lowlevel.notify_closing(self._epoll)
        self._epoll.close()

    def _watch_anew(self) -> None:
        self._end()
        self._begin(self._timer.deadline)
        for number in self._handlers:
            with suppress(OSError):  # somebody else has closed this one, too
                self._epoll.register(number, self._choose_events(number))

    def _choose_events(self, number: int) -> int:
        more = select.EPOLLOUT if number in self._writing else 0
        return select.EPOLLIN | more

    async def _run(self, epoll: select.epoll) -> None:
        try:
            while not epoll.closed:
                with self._timer:
                    await self._serve(epoll)
                if epoll is not self._epoll:  # all have left, and others have joined
                    return
                now = trio.current_time()
                deadlines = [each.wake_late(now) for each in list(self._members)]
                earliest = min(deadlines, default=math.inf)
                self._timer = trio.CancelScope(deadline=earliest)
        except trio.ClosedResourceError:
            pass  # the last member has left while this waited
        except trio.Cancelled:  # as a system task: nobody would end who still waits
            for each in list(self._members):
                each.note_end(RuntimeError("the trio run is at its end"))
            raise

    async def _serve(self, epoll: select.epoll) -> None:
        while not epoll.closed:
            await trio.lowlevel.wait_readable(epoll)
            for number in self._list_ready(epoll):
                # One handler may have caused another one's socket to be closed.
                if (handler := self._handlers.get(number)) is not None:
                    handler()

    def _list_ready(self, epoll: select.epoll) -> list[int]:
        if epoll.closed:  # the last member has left since it was found to be readable
            return []
        if len(self._handlers) < 2:  # noqa: PLR2004 - it can only be this one
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
