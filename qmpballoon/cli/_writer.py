"""Writes the command's output on threads, while the command works with VMs.

A stopped terminal (Ctrl-S, a hung ssh), a pipe that nobody reads and a file on a hung
disk block whoever writes to them, possibly for ever. The loop that guards guests must
not be blocked. So within :func:`open_writers` everything that is written to standard
output and standard error goes to a queue, and a thread writes it.

The queues are bounded. Output that does not fit is dropped and counted. Standard error
says how much that was, as soon as something can be written again.
"""

from __future__ import annotations

import io
import os
import select
import sys
import threading
import time
from collections import deque
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, Generic, TextIO, TypeVar

from qmpballoon._printable import make_printable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["BackgroundWriter", "find_writer", "open_writer", "open_writers"]

_T = TypeVar("_T")
# Bytes that wait at most. The largest fleet as JSON (1,000 VMs of 1 KB each) has room,
# and so have some thousand lines: a reader may pause for minutes.
_ROOM: Final = 1 << 20
# Seconds to wait for readers when the command is interrupted or fails. Service managers
# soon send SIGKILL, and people who press Ctrl-C wait for the prompt.
_LAST_WORDS: Final = 1.0


class BackgroundWriter(Generic[_T]):
    """Writes pieces in their order on a thread; nobody waits for it.

    Args:
        name: What is written to, as the user knows it.
        write: Writes a piece as a whole. Called on the thread; it may block.
        is_strict: The first error is the caller's to raise. Otherwise each error costs
            its piece, which is counted and said.

    Attributes:
        error: The first error that writing has raised.
        lost: How many pieces were dropped, or could not be written.
        is_strict: As given.
        on_failure: Called on the thread when there is an error for the caller to raise.
    """

    def __init__(
        self, name: str, write: Callable[[_T], None], *, is_strict: bool
    ) -> None:
        self.error: OSError | None = None
        self.lost = 0
        self.is_strict = is_strict
        self.on_failure: Callable[[], None] = lambda: None
        self._name = name
        self._write = write
        self._said = 0  # how many of the lost pieces
        self._pieces: deque[tuple[_T, int]] = deque()  # the first is being written
        self._waiting = 0  # bytes
        self._closed = False
        self._changed = threading.Condition()
        # A daemon: while it is blocked it does not keep the process from ending.
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def submit(self, piece: _T, size: int) -> None:
        """Let a piece be written; it is dropped if too much waits already.

        A piece of any size has room where nothing waits.

        Args:
            piece: The piece.
            size: Bytes that it has, or about as many.
        """
        with self._changed:
            if self._pieces and self._waiting + size > _ROOM:
                self.lost += 1
                return
            self._pieces.append((piece, size))
            self._waiting += size
            self._changed.notify_all()

    @property
    def is_idle(self) -> bool:
        """Whether everything was written."""
        return not self._pieces

    @property
    def failure(self) -> OSError | None:
        """The error that the caller has to raise, if there is one."""
        return self.error if self.is_strict else None

    def close(self, deadline: float | None = None) -> None:
        """Wait until everything was written, and end the thread; say what was lost.

        Args:
            deadline: When to stop waiting, on the monotonic clock; what still waits
                then is lost. ``None`` waits for as long as it takes.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        self._thread.join(left)
        with self._changed:
            self.lost += len(self._pieces)
            self._pieces.clear()
        if not self.failure:
            self._say_lost()

    def _work(self) -> None:
        while following := self._wait_for_piece():
            piece, size = following
            try:
                self._write(piece)
            except OSError as error:
                self.error = self.error or error
                self.lost += 1
                if self.failure:
                    self.on_failure()
            else:
                self._say_lost()
            with self._changed:
                self._waiting -= size
                if self._pieces:  # otherwise the queue was given up meanwhile
                    self._pieces.popleft()

    def _wait_for_piece(self) -> tuple[_T, int] | None:
        """Return the next piece, which stays in the queue; ``None``: that was all."""
        with self._changed:
            self._changed.wait_for(lambda: self._pieces or self._closed)
            return self._pieces[0] if self._pieces else None

    def _say_lost(self) -> None:
        """Say on standard error how much was lost since that was said last."""
        count, self._said = self.lost - self._said, self.lost
        if count:
            why = self.error.strerror if self.error else "nobody reads it"
            pieces = "1 message was" if count == 1 else f"{count} messages were"
            sys.stderr.write(
                f"qmpballoon: {make_printable(self._name)}: {pieces} not written:"
                f" {why}\n"
            )
            sys.stderr.flush()


@contextmanager
def open_writer(
    name: str, write: Callable[[_T], None], *, is_strict: bool = True
) -> Generator[BackgroundWriter[_T]]:
    """Write to something on a thread within the block.

    At its end it waits until everything was written, as any program would that writes
    by itself. But where an exception leaves the block it waits for a second at most: a
    signal is to end the command even if nobody reads.

    Args:
        name: As for :class:`BackgroundWriter`, and likewise the other arguments.
        write: Writes a piece.
        is_strict: Whether the first error is the caller's to raise.

    Raises:
        OSError: A piece could not be written, if the writer is strict.
    """
    writer = BackgroundWriter(name, write, is_strict=is_strict)
    try:
        yield writer
    except BaseException:
        writer.close(time.monotonic() + _LAST_WORDS)
        raise
    writer.close()
    if writer.failure:
        raise writer.failure


# The standard streams


class _Stream(io.TextIOBase):
    """A text stream like another one; a writer writes to that one's descriptor."""

    def __init__(self, stream: TextIO, writer: BackgroundWriter[bytes]) -> None:
        self.writer = writer
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override] # which is a bare attribute
        """The encoding of the stream beneath."""
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override] # which is a bare attribute
        """What becomes of characters that the encoding lacks."""
        return self._stream.errors

    def fileno(self) -> int:
        """Return the stream's descriptor."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Tell whether it is a terminal."""
        return self._stream.isatty()

    def writable(self) -> bool:
        """Tell that it can be written to."""
        return True

    def write(self, text: str, /) -> int:
        """Let a text be written; this raises no :class:`OSError`."""
        if text:
            data = text.encode(self.encoding or "utf-8", self.errors or "strict")
            self.writer.submit(data, len(data))
        return len(text)


def find_writer(stream: object) -> BackgroundWriter[bytes] | None:
    """Return the writer behind a standard stream; ``None`` if it has none."""
    return stream.writer if isinstance(stream, _Stream) else None


@contextmanager
def open_writers(
    *, is_strict: bool = True
) -> Generator[BackgroundWriter[bytes] | None]:
    """Let threads write to the standard streams within the block.

    At its end it waits as :func:`open_writer` does.

    Args:
        is_strict: Whether an error ends the command. Otherwise the command goes on, and
            standard error says what was lost.

    Yields:
        The writer of standard output; ``None`` if that has no descriptor.

    Raises:
        OSError: Standard output could not be written, if its writer is strict.
    """
    # Standard error last: it is told what the other has lost.
    with (
        _replace_stream("stderr", is_strict=False),
        _replace_stream("stdout", is_strict=is_strict) as writer,
    ):
        yield writer


@contextmanager
def _replace_stream(
    name: str, *, is_strict: bool
) -> Generator[BackgroundWriter[bytes] | None]:
    """Let a thread write to a standard stream within the block."""
    stream: TextIO = getattr(sys, name)
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # it is kept in memory, as in some tests
        yield None
        return
    stream.flush()
    label = {"stdout": "standard output", "stderr": "standard error"}[name]
    write = partial(_write_all, descriptor)
    try:
        with open_writer(label, write, is_strict=is_strict) as writer:
            setattr(sys, name, _Stream(stream, writer))
            yield writer
    finally:
        setattr(sys, name, stream)


def _write_all(descriptor: int, data: bytes) -> None:
    """Write to a descriptor until all is written; it may block.

    Raises:
        OSError: It cannot be written to.
    """
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            # Whoever shares the descriptor has made it non-blocking.
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll()
