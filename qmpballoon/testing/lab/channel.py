"""Commands to the guest and their answers, over one serial line.

The protocol is described in ``init.sh``, which is its other end. Many commands
may run at once and their answers may come in any order. There is no background
task: of all that wait for an answer, one at a time reads, for everybody.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio
import trio.socket
from attrs import define, field, frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

__all__ = ["Answer", "Channel", "Decoder", "Ready", "encode"]

_CHUNK: Final = 1 << 16
_READY: Final = re.compile(rb"@ready (\S+)\n")
_ANSWER: Final = re.compile(rb"@(\d+) (\d+)\n(.*?)\n@end \1\n", re.DOTALL)


@frozen
class Ready:
    """The guest's user space has started, for the first time or once more."""

    release: str
    """The kernel's release, as in ``uname -r``."""


@frozen
class Answer:
    """What a command gave."""

    number: int
    status: int
    output: str


def encode(number: int, command: str) -> bytes:
    """Write a request: one line, whatever the command's text is."""
    escaped = command.replace("\\", "\\\\").replace("\n", "\\n")
    return f"{number} {escaped}\n".encode()


@define
class Decoder:
    """Bytes in, messages out; pure."""

    _buffer: bytes = b""

    def feed(self, data: bytes) -> Iterator[Ready | Answer]:
        """Take what was read and give the messages it completes."""
        self._buffer += data
        while (message := self._next()) is not None:
            yield message

    def _next(self) -> Ready | Answer | None:
        # Looked for first: a reboot cuts short the answer that was under way.
        if ready := _READY.search(self._buffer):
            self._buffer = self._buffer[ready.end() :]
            return Ready(ready[1].decode())
        answer = _ANSWER.search(self._buffer)
        if answer is None:
            return None
        self._buffer = self._buffer[answer.end() :]
        number, status, output = answer.groups()
        return Answer(int(number), int(status), output.decode(errors="replace"))


@define(eq=False)
class Channel:
    """The host's end of the line.

    Attributes:
        boots: How often the guest was seen to become ready.
        release: The guest kernel's release; empty before it is ready.
    """

    _socket: trio.socket.SocketType
    boots: int = 0
    release: str = ""
    _count: int = 0
    _outgoing: bytes = b""
    _decoder: Decoder = field(factory=Decoder)
    _waiting: set[int] = field(factory=set[int])
    _answers: dict[int, Answer | None] = field(factory=dict[int, Answer | None])
    _reading: trio.Lock = field(factory=trio.Lock)
    _writing: trio.Lock = field(factory=trio.Lock)

    async def ready(self, boots: int = 1) -> None:
        """Wait until the guest was ready ``boots`` times.

        Raises:
            ConnectionError: QEMU went away.
        """
        while self.boots < boots:
            await self._read_for_all(lambda: self.boots >= boots)

    async def run(self, command: str) -> Answer:
        """Run a command in the guest.

        Cancelling it gives up the answer, not the command: that runs, or runs on.

        Raises:
            ConnectionError: QEMU went away, or the guest was rebooted meanwhile.
        """
        self._count += 1
        number = self._count
        self._waiting.add(number)
        self._outgoing += encode(number, command)
        try:
            await self._flush()
            while number not in self._answers:
                await self._read_for_all(lambda: number in self._answers)
            answer = self._answers[number]
        finally:
            self._waiting.discard(number)
            self._answers.pop(number, None)
        if answer is None:
            raise ConnectionAbortedError(f"the guest was rebooted under {command!r}")
        return answer

    async def _flush(self) -> None:
        # What a cancelled caller leaves unsent goes out with the next request:
        # there is never half a request on the line.
        async with self._writing:
            while self._outgoing:
                with _told_as_end():
                    sent = await self._socket.send(self._outgoing)
                self._outgoing = self._outgoing[sent:]

    async def _read_for_all(self, done: Callable[[], bool]) -> None:
        async with self._reading:
            # Whoever read before may have read what this caller waits for.
            if done():
                return
            with _told_as_end():
                data = await self._socket.recv(_CHUNK)
                if not data:
                    raise ConnectionResetError
            for message in self._decoder.feed(data):
                self._take(message)

    def _take(self, message: Ready | Answer) -> None:
        if isinstance(message, Ready):
            self.boots += 1
            self.release = message.release
            # What was asked of the guest before its reboot is never answered.
            if self.boots > 1:
                self._answers.update(dict.fromkeys(self._waiting))
        elif message.number in self._waiting:
            self._answers[message.number] = message


@contextmanager
def _told_as_end() -> Generator[None]:
    """Say the same however the end of QEMU shows: as an end, a reset or a pipe."""
    try:
        yield
    except OSError as error:
        raise ConnectionResetError("QEMU went away") from error
