"""Sockets that servers of ours listen on: the fake QEMU's, and that of the pages."""

from __future__ import annotations

import socket
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

__all__ = ["listen_at", "listen_on"]

_BACKLOG: Final = 100  # clients that wait until they are accepted


@contextmanager
def listen_at(path: Path, backlog: int = _BACKLOG) -> Generator[socket.socket]:
    """Listen on a new unix socket, which is removed at the end of the block.

    Args:
        path: The socket's path. A socket that no process listens on any more is
            replaced. Only its owner may connect.
        backlog: How many clients may wait to be accepted.

    Raises:
        OSError: There is something else at the path, or it cannot be made.
    """
    _remove_stale(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        try:
            # No client can connect before it listens.
            path.chmod(stat.S_IRUSR | stat.S_IWUSR)
            listener.listen(backlog)
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    """Remove a socket that no process listens on any more."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()


@contextmanager
def listen_on(host: str, port: int) -> Generator[socket.socket]:
    """Listen on an address of this machine's, within the block.

    Args:
        host: The address, or a name of it.
        port: The port; 0 takes a free one.

    Raises:
        OSError: The address or the port cannot be listened on.
    """
    family, *_, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((str(address[0]), port))
        listener.listen(_BACKLOG)
        yield listener
