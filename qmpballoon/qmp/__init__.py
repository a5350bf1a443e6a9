"""QMP, the QEMU Machine Protocol, without any I/O.

Bytes go in, messages come out, and the other way round; who moves the bytes is
somebody else's business. Nothing here touches a socket, a clock or an event
loop, so that one implementation serves every front end, and every byte sequence
can be tried in a test.

- :mod:`~qmpballoon.qmp.decoder` turns bytes into JSON values, within limits.
- :mod:`~qmpballoon.qmp.messages` gives those values types.
- :mod:`~qmpballoon.qmp.connection` is the state machine of one connection.

Source: "QEMU Machine Protocol Specification", docs/interop/qmp-spec in QEMU.
"""

from __future__ import annotations

from qmpballoon.qmp.connection import MAX_IN_FLIGHT, Connection, Role, State
from qmpballoon.qmp.decoder import Decoder, Limits
from qmpballoon.qmp.messages import (
    Event,
    Failure,
    Greeting,
    Id,
    Message,
    Request,
    Return,
    Version,
)

__all__ = [
    "MAX_IN_FLIGHT",
    "Connection",
    "Decoder",
    "Event",
    "Failure",
    "Greeting",
    "Id",
    "Limits",
    "Message",
    "Request",
    "Return",
    "Role",
    "State",
    "Version",
]
