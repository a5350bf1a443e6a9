"""QMP, the QEMU Machine Protocol, without any I/O.

This package turns bytes into messages and messages into bytes; its callers read and
write the bytes. It uses no socket, clock or event loop. So one implementation serves
every front end, and a test can try any sequence of bytes.

- :class:`Connection` is the state machine of one connection.
- :class:`Decoder` turns bytes into JSON values, within :class:`Limits`.
- :class:`Event`, :class:`Return` and the other messages give those values types.
- :class:`EventBuffer` holds events for a reader, within a bound.

Source: "QEMU Machine Protocol Specification", docs/interop/qmp-spec in QEMU.
"""

from __future__ import annotations

from qmpballoon.qmp.connection import MAX_IN_FLIGHT, Connection, Role, State
from qmpballoon.qmp.decoder import Decoder, Limits
from qmpballoon.qmp.events import EventBuffer
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
    "EventBuffer",
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
