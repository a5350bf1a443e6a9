"""Connections in memory that cost a simulated world little.

They do what those of :mod:`trio.testing` do, in one turn of the scheduler for each
message, where those take five: most of the time of a world goes into turns.
"""

from __future__ import annotations

import math

import trio
from attrs import define, field

__all__ = ["stream_pair"]


def stream_pair() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    """Return both ends of a connection in memory that takes whatever is sent."""
    to_left, from_right = trio.open_memory_channel[bytes](math.inf)
    to_right, from_left = trio.open_memory_channel[bytes](math.inf)
    return _End(to_right, from_right), _End(to_left, from_left)


@define(eq=False, slots=False)
class _End(trio.abc.Stream):
    """One end of a connection in memory."""

    _outgoing: trio.MemorySendChannel[bytes]
    _incoming: trio.MemoryReceiveChannel[bytes]
    _left: bytes = field(init=False, default=b"")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes; there is always room for them, so no other task has its turn."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if data:
            self._outgoing.send_nowait(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once."""
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return what has come, none at the end."""
        if self._left:
            await trio.lowlevel.checkpoint()
        else:
            try:
                self._left = await self._incoming.receive()
            except trio.EndOfChannel:
                return b""
        data = self._left[:max_bytes]
        self._left = self._left[len(data) :]
        return data

    async def aclose(self) -> None:
        """Close both ways; the other end still gets what was sent."""
        self._outgoing.close()
        self._incoming.close()
        await trio.lowlevel.checkpoint()
