"""Commands to the guest and their answers, over one serial line.

``init.sh``, which is the other end, describes the protocol. Many commands can run at
once, and their answers can come in any order. There is no background task: one of
the callers that wait for an answer reads, and stores the answers of the others.
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
    """The guest's user space has started.

    Attributes:
        release: The kernel's release, as ``uname -r`` prints it.
    """

    release: str


@frozen
class Answer:
    """The answer to a command.

    Attributes:
        number: The request's number.
        status: The command's exit status.
        output: Standard output and standard error, as one text.
    """

    number: int
    status: int
    output: str


def encode(number: int, command: str) -> bytes:
    """Write a request: one line, also where the command has several."""
    escaped = command.replace("\\", "\\\\").replace("\n", "\\n")
    return f"{number} {escaped}\n".encode()


@define
class Decoder:
    """Turns bytes into messages."""

    _buffer: bytes = b""

    def feed(self, data: bytes) -> Iterator[Ready | Answer]:
        """Take bytes, and yield the messages that they complete."""
        self._buffer += data
        while (message := self._next()) is not None:
            yield message

    def _next(self) -> Ready | Answer | None:
        # This comes first: a reboot cuts off the answer that was being sent.
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
    """The host's end of the serial line.

    Attributes:
        boots: How often the guest became ready.
        release: The guest kernel's release; empty before the guest is ready.
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
        """Wait until the guest has become ready ``boots`` times.

        Raises:
            ConnectionError: QEMU closed the connection.
        """
        while self.boots < boots:
            await self._read_for_all(lambda: self.boots >= boots)

    async def run(self, command: str) -> Answer:
        """Run a command in the guest.

        When it is cancelled, the guest still runs the command, and the answer is
        dropped.

        Raises:
            ConnectionError: QEMU closed the connection, or the guest was rebooted.
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
        # The next request also sends what a cancelled caller left unsent, so the
        # guest never gets a part of a request.
        async with self._writing:
            while self._outgoing:
                with _qemu_end_as_reset():
                    sent = await self._socket.send(self._outgoing)
                self._outgoing = self._outgoing[sent:]

    async def _read_for_all(self, done: Callable[[], bool]) -> None:
        async with self._reading:
            # The previous reader may have read the answer for this caller.
            if done():
                return
            with _qemu_end_as_reset():
                data = await self._socket.recv(_CHUNK)
                if not data:
                    raise ConnectionResetError
            for message in self._decoder.feed(data):
                self._take(message)

    def _take(self, message: Ready | Answer) -> None:
        if isinstance(message, Ready):
            self.boots += 1
            self.release = message.release
            # The guest never answers a request from before its reboot.
            if self.boots > 1:
                self._answers.update(dict.fromkeys(self._waiting))
        elif message.number in self._waiting:
            self._answers[message.number] = message


@contextmanager
def _qemu_end_as_reset() -> Generator[None]:
    """Raise one error for all ways in which a socket shows that QEMU has ended."""
    try:
        yield
    except OSError as error:
        raise ConnectionResetError("QEMU went away") from error
