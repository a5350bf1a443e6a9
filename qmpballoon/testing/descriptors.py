"""File descriptors that clients send to a simulated QEMU beside their bytes."""

from __future__ import annotations

import array
import os
import socket
import stat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["RECEIVE_FLAGS", "RECEIVE_ROOM", "ReceivedDescriptor", "read_ancillary"]

_MOST: Final = 16  # with one message: QEMU's TCP_MAX_FDS

RECEIVE_ROOM: Final = socket.CMSG_SPACE(_MOST * array.array("i").itemsize)
"""Bytes of room for descriptors, for ``recvmsg``."""

RECEIVE_FLAGS: Final = socket.MSG_CMSG_CLOEXEC
"""Flags for ``recvmsg``: no child inherits what was received."""


class ReceivedDescriptor:
    """A file descriptor that a client has sent: the model's ``Descriptor``.

    Args:
        number: The descriptor, which this object owns.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._is_open = True

    @property
    def is_socket(self) -> bool:
        """Whether it is that of a socket."""
        return stat.S_ISSOCK(os.fstat(self._number).st_mode)

    @property
    def is_connected(self) -> bool:
        """Whether the other end of the connection is open."""
        if not self._is_open or not self.is_socket:
            return False
        with self.duplicate() as sock:
            try:
                return bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
            except BlockingIOError:
                return True
            except OSError:
                return False

    def duplicate(self) -> socket.socket:
        """Return a socket on the same connection, with a descriptor of its own."""
        return socket.socket(fileno=os.dup(self._number))

    def close(self) -> None:
        """Close it. Later calls do nothing."""
        if self._is_open:
            self._is_open = False
            os.close(self._number)


def read_ancillary(
    ancillary: Iterable[tuple[int, int, bytes]],
) -> list[ReceivedDescriptor]:
    """Return the descriptors in what ``recvmsg`` returned beside the bytes."""
    numbers = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return [ReceivedDescriptor(number) for number in numbers]
