"""Ctrl-C, put off while bytes are moved."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import FrameType

__all__ = ["ctrl_c_waits"]


@contextmanager
def ctrl_c_waits() -> Generator[None]:
    """Put Ctrl-C off until the end of the block, which must not wait for anything.

    By its handler, which Python runs in the main thread and nowhere else. Blocking
    the signal would not do: the kernel hands it to any thread that does not.
    """
    handler = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not main or not callable(handler):
        yield
        return
    struck: list[tuple[int, FrameType | None]] = []

    def note(number: int, frame: FrameType | None) -> None:
        struck.append((number, frame))

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if struck:
            handler(*struck[0])
