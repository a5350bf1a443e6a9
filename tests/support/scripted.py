"""A QMP server on a socket that does as a test tells it, in a thread of its own.

The fake QEMU is well-behaved; this one need not be.
"""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from attrs import define, field

from qmpballoon.qmp import Connection, Greeting, Request, Return, Role, Version

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

GREETING = Greeting(Version(10, 0, 2))


@define(eq=False)
class Session:
    """One client's connection, to be used by its script only.

    Attributes:
        sock: The socket.
        qmp: QEMU's end of the protocol.
    """

    sock: socket.socket
    qmp: Connection = field(factory=lambda: Connection(Role.SERVER))

    def greet(self) -> None:
        """Greet the client, and grant it what it negotiates."""
        self.sock.sendall(self.qmp.send_greeting(GREETING))
        self.answer(self.request(), {})

    def request(self) -> Request:
        """Wait for a command; :exc:`EOFError` if the client leaves."""
        while (message := self.qmp.next_message()) is None:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError
            self.qmp.receive_data(data)
        assert isinstance(message, Request)
        return message

    def answer(self, request: Request, value: object) -> None:
        """Answer a command with success."""
        self.sock.sendall(self.qmp.send_reply(Return(value, request.id)))


def attend(session: Session) -> None:
    """Be a VM of 1 GiB that has a balloon, until the client leaves."""
    while True:
        request = session.request()
        session.answer(request, standard_answer(request))


def standard_answer(request: Request) -> object:
    """Return what such a VM says."""
    match request.command, request.arguments.get("path"):
        case "qom-list", "/machine/peripheral":
            return [{"name": "b", "type": "child<virtio-balloon-pci>"}]
        case "query-balloon", _:
            return {"actual": 1 << 30}
        case "query-cpus-fast" | "qom-list", _:
            return []
        case _:
            return {}


@contextmanager
def serve(
    script: Callable[[Session], object], *, family: int = socket.AF_UNIX
) -> Generator[Any]:
    """Serve clients, one after the other, by a script; yield the socket's place.

    A script that raises :exc:`EOFError` or :exc:`OSError` has seen its client leave.
    Any other exception of it is raised at the end of the block.
    """
    failures: list[BaseException] = []

    def run(listener: socket.socket) -> None:
        with suppress(OSError):  # the listener is shut in the end
            while True:
                connected, _ = listener.accept()
                with connected:
                    try:
                        script(Session(connected))
                    except (EOFError, OSError):
                        pass
                    except BaseException as error:  # noqa: BLE001 - told below
                        failures.append(error)

    with TemporaryDirectory() as folder, socket.socket(family) as listener:
        unix = family == socket.AF_UNIX
        listener.bind(str(Path(folder, "qmp")) if unix else ("127.0.0.1", 0))
        listener.listen(1)
        thread = threading.Thread(target=run, args=(listener,))
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)
        assert not thread.is_alive()
        if failures:
            raise failures[0]
