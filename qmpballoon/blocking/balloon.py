"""The balloon in plain calls, for code without an event loop.

All of :mod:`qmpballoon.balloon` awaits nothing but its monitor. Over a monitor
whose coroutines never suspend, each of its coroutines therefore runs from its
beginning to its end when it is sent ``None`` once, and that is a plain call. So
there is no event loop here, no thread, and no second copy of the balloon.

:class:`PlainMonitor` is what such a monitor has to have; bring your own to
:func:`find_balloon`, or take that of :mod:`qmpballoon.blocking`.
"""

from __future__ import annotations

import functools
import time
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import (
    TYPE_CHECKING,
    Concatenate,
    Final,
    Generic,
    ParamSpec,
    Protocol,
    TypeVar,
    runtime_checkable,
)

from qmpballoon.balloon import find
from qmpballoon.balloon.balloon import Balloon
from qmpballoon.balloon.sampler import Sampler

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Mapping
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from qmpballoon.balloon.stats import GuestStats

__all__ = [
    "BlockingBalloon",
    "BlockingSampler",
    "Neutral",
    "PlainMonitor",
    "find_balloon",
    "run",
]

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
W = TypeVar("W")


@runtime_checkable
class PlainMonitor(Protocol):
    """A :class:`~qmpballoon.monitor.Monitor` in plain calls, without its shield."""

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None
    ) -> object:
        """Run one QMP command and return what QEMU returns for it."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait for so many seconds; zero or less does nothing."""
        ...

    def now(self) -> float:
        """Return seconds on a clock that never goes back; its zero means nothing."""
        ...


def run(coroutine: Coroutine[object, object, T]) -> T:
    """Run a coroutine that never suspends, and return what it returns.

    Raises:
        RuntimeError: It did suspend: it awaits something of an event loop.
    """
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} needs an event loop: it is no plain call")


def find_balloon(
    monitor: PlainMonitor,
    *,
    resident: Callable[[], int | None] = lambda: None,
    wall_clock: Callable[[], float | None] = time.time,
) -> BlockingBalloon:
    """Find the balloon device of the VM behind a monitor.

    Args:
        monitor: The way to QEMU.
        resident: Tells QEMU's resident memory in bytes, where the host can.
        wall_clock: Tells seconds since the epoch, for the age of statistics.

    Raises:
        NoBalloonDevice: The VM has none.
        MonitorError: QEMU cannot be asked.
    """
    neutral = Neutral(monitor)
    search = find.find_balloon(neutral, resident=resident, wall_clock=wall_clock)
    return BlockingBalloon(run(search), monitor)


class Neutral:
    """A plain monitor as a :class:`~qmpballoon.monitor.Monitor` that never suspends."""

    def __init__(self, monitor: PlainMonitor) -> None:
        self._monitor = monitor
        self.name: str | None = getattr(monitor, "name", None)

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None
    ) -> object:
        """Run one QMP command and return what QEMU returns for it."""
        return self._monitor.execute(command, arguments)

    async def sleep(self, seconds: float) -> None:
        """Wait for so many seconds; zero or less does nothing."""
        self._monitor.sleep(seconds)

    def now(self) -> float:
        """Return seconds on the monitor's clock."""
        return self._monitor.now()

    def shield(self, seconds: float) -> AbstractContextManager[object]:
        """Do nothing: Ctrl-C strikes once. Struck again, it ends a cleaning up."""
        del seconds  # each command has its own deadline
        return nullcontext()


class _Block(AbstractContextManager[T_co], Generic[T_co]):
    """An ``async with`` block as a ``with`` block."""

    def __init__(self, block: AbstractAsyncContextManager[T_co, bool | None]) -> None:
        self._block = block

    def __enter__(self) -> T_co:
        return run(self._block.__aenter__())

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return run(self._block.__aexit__(exc_type, exc, traceback))


class _Plain(Generic[W]):
    """What is here in plain calls; they are made by :func:`_call`."""

    def __init__(self, original: W) -> None:
        self.original = original


def _call(
    method: Callable[Concatenate[W, P], Coroutine[object, object, T]],
) -> Callable[Concatenate[_Plain[W], P], T]:
    """Make a plain method of an original's coroutine, with its very signature."""

    @functools.wraps(method)
    def call(self: _Plain[W], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return run(method(self.original, *args, **kwargs))

    return call


class BlockingBalloon(_Plain[Balloon]):
    """A :class:`~qmpballoon.balloon.balloon.Balloon` in plain calls.

    Its methods have the names, arguments, results and errors of the original,
    whose documentation holds here too: read ``KeyboardInterrupt`` for
    cancellation. Ctrl-C in the middle of :meth:`reclaim` gives the guest its memory
    back before the exception goes on; Ctrl-C again, meanwhile, ends that too.

    Args:
        original: The original, over a monitor that never suspends.
        monitor: That monitor, in plain calls.

    Attributes:
        original: The original.
        monitor: The way to QEMU.
        path: The device's path in QOM.
        device_type: Its QOM type, such as ``"virtio-balloon-pci"``.
    """

    def __init__(self, original: Balloon, monitor: PlainMonitor) -> None:
        super().__init__(original)
        self.monitor = monitor
        self.path: str = original.path
        self.device_type: str = original.device_type

    @property
    def target(self) -> int | None:
        """The last target set by this object, in bytes; ``None`` if none was."""
        return self.original.target

    def resident(self) -> int | None:
        """Return QEMU's resident memory on this host in bytes, if it can be known."""
        return self.original.resident()

    query: Final = _call(Balloon.query)
    actual: Final = _call(Balloon.actual)
    set_target: Final = _call(Balloon.set_target)
    stats: Final = _call(Balloon.stats)
    refresh_stats: Final = _call(Balloon.refresh_stats)
    request_stats: Final = _call(Balloon.request_stats)
    get_stats_interval: Final = _call(Balloon.get_stats_interval)
    set_stats_interval: Final = _call(Balloon.set_stats_interval)
    features: Final = _call(Balloon.features)
    resize: Final = _call(Balloon.resize)
    plan_reclaim: Final = _call(Balloon.plan_reclaim)
    reclaim: Final = _call(Balloon.reclaim)
    keep: Final = _call(Balloon.keep)
    is_running: Final = _call(Balloon.is_running)

    def stats_interval(self, seconds: int) -> AbstractContextManager[None]:
        """Have the guest asked every so many seconds within a ``with`` block.

        The interval is afterwards what it was before, also after an exception.
        """
        return _Block(self.original.stats_interval(seconds))

    @contextmanager
    def sampler(self) -> Generator[BlockingSampler]:
        """Yield a sampler, which reads guest, balloon and host time and again.

        The statistics interval is afterwards what it was before, also after an
        exception.
        """
        with _Block(self.original.sampler()) as sampler:
            yield BlockingSampler(sampler)


class BlockingSampler(_Plain[Sampler]):
    """A :class:`~qmpballoon.balloon.sampler.Sampler` in plain calls.

    Attributes:
        original: The original.
    """

    @property
    def stats(self) -> GuestStats:
        """The guest's last answer."""
        return self.original.stats

    @property
    def basis(self) -> int:
        """Bytes the guest had when it was asked for that answer."""
        return self.original.basis

    @property
    def start(self) -> float:
        """What the monitor's clock showed at the beginning."""
        return self.original.start

    @property
    def silence(self) -> float:
        """Seconds for which the guest has given no answer that is seen to be new."""
        return self.original.silence

    take: Final = _call(Sampler.take)
