"""The balloon in blocking code, without an event loop.

The code of :mod:`qmpballoon.balloon` awaits nothing but its monitor. Over a monitor
whose coroutines never suspend, each of its coroutines runs to its end when it is sent
``None`` once. That makes it a blocking call, without an event loop, a thread, or a
second copy of the balloon.

:class:`SyncMonitor` says which methods such a monitor needs.
"""

from __future__ import annotations

import functools
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

from qmpballoon.balloon.balloon import Balloon
from qmpballoon.balloon.balloon import find_balloon as find_with_monitor
from qmpballoon.balloon.sampling import Sampler
from qmpballoon.monitor import (
    find_owed_size,
    prefix_name,
    read_resident,
    read_wall_clock,
)

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Callable,
        Coroutine,
        Generator,
        Iterator,
        Mapping,
    )
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    # For type checkers only: 3.13 is the first Python whose own has defaults.
    from typing_extensions import TypeVar as DefaultTypeVar

    from qmpballoon.balloon.sampling import Sample
    from qmpballoon.balloon.stats import GuestStats
    from qmpballoon.monitor import OwedSize

    S_co = DefaultTypeVar(
        "S_co", bound="SyncMonitor", default="SyncMonitor", covariant=True
    )
else:
    S_co = TypeVar("S_co", covariant=True)

__all__ = [
    "BlockingBalloon",
    "BlockingSampler",
    "SyncMonitor",
    "SyncMonitorAdapter",
    "find_balloon",
    "run_sync",
]

P = ParamSpec("P")
S = TypeVar("S", bound="SyncMonitor")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
W = TypeVar("W")
W_co = TypeVar("W_co", covariant=True)


@runtime_checkable
class SyncMonitor(Protocol):
    """A :class:`~qmpballoon.monitor.Monitor` for blocking code; it has no shield.

    It may also have ``name``, ``pid``, ``resident()``, ``wall_clock()`` and
    ``owed_size``, as a ``Monitor`` may.

    Write a class with these methods to drive a balloon over a connection of your own,
    and give it to :func:`find_balloon`.
    """

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None
    ) -> object:
        """Run one QMP command and return its result, as a ``Monitor`` does."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait for that many seconds; zero or less returns at once."""
        ...

    def now(self) -> float:
        """Return the time in seconds on a clock that never goes back."""
        ...


def run_sync(coroutine: Coroutine[object, object, T]) -> T:
    """Run a coroutine that never suspends, and return what it returns.

    Raises:
        RuntimeError: It suspended, because it awaits something of an event loop.
    """
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError(
        f"{coroutine!r} needs an event loop: it cannot be a blocking call"
    )


def find_balloon(monitor: S) -> BlockingBalloon[S]:
    """Find the balloon device of the VM behind a monitor.

    Args:
        monitor: The VM's monitor.

    Raises:
        NoBalloonDevice: The VM has none.
        MonitorError: QEMU cannot be asked.
    """
    search = find_with_monitor(SyncMonitorAdapter(monitor))
    return BlockingBalloon(run_sync(search), monitor)


class SyncMonitorAdapter:
    """Makes a blocking monitor a ``Monitor`` whose coroutines never suspend."""

    def __init__(self, monitor: SyncMonitor) -> None:
        self._monitor = monitor
        self.name: str | None = getattr(monitor, "name", None)

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None
    ) -> object:
        """Run one QMP command and return its result."""
        return self._monitor.execute(command, arguments)

    async def sleep(self, seconds: float) -> None:
        """Wait for that many seconds; zero or less returns at once."""
        self._monitor.sleep(seconds)

    def now(self) -> float:
        """Return the time in seconds on the monitor's clock."""
        return self._monitor.now()

    def resident(self) -> int | None:
        """Return QEMU's resident memory in bytes, if it is known."""
        return read_resident(self._monitor)

    def wall_clock(self) -> float | None:
        """Return seconds since the epoch, if the monitor has such a clock."""
        return read_wall_clock(self._monitor)

    @property
    def owed_size(self) -> OwedSize | None:
        """The note of the size that the guest must get back; ``None`` if not kept."""
        return find_owed_size(self._monitor)

    def shield(self, seconds: float) -> AbstractContextManager[object]:
        """Do nothing: cleanup after Ctrl-C is interrupted only by another Ctrl-C."""
        del seconds  # each command has its own deadline
        return nullcontext()


class _SyncContext(AbstractContextManager[T_co], Generic[T_co]):
    """Makes a context manager of an asynchronous one that never suspends."""

    def __init__(self, block: AbstractAsyncContextManager[T_co, bool | None]) -> None:
        self._block = block

    def __enter__(self) -> T_co:
        return run_sync(self._block.__aenter__())

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return run_sync(self._block.__aexit__(exc_type, exc, traceback))


class _SyncWrapper(Generic[W_co]):
    """An object with blocking calls for coroutines, made by :func:`_make_sync`."""

    def __init__(self, original: W_co) -> None:
        self._original = original

    @property
    def original(self) -> W_co:
        """The original."""
        return self._original


def _make_sync(
    method: Callable[Concatenate[W, P], Coroutine[object, object, T]],
) -> Callable[Concatenate[_SyncWrapper[W], P], T]:
    """Make a blocking method, with the same signature, of a coroutine method."""

    @functools.wraps(method)
    def call(self: _SyncWrapper[W], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return run_sync(method(self.original, *args, **kwargs))

    return call


class BlockingBalloon(_SyncWrapper[Balloon], Generic[S_co]):
    """A :class:`~qmpballoon.balloon.Balloon` for blocking code.

    Its methods have the names, arguments, results and errors of the original, and its
    documentation holds here too; ``KeyboardInterrupt`` takes the place of cancellation.
    Ctrl-C during :meth:`reclaim` first gives the guest its memory back, then raises
    ``KeyboardInterrupt``. A second Ctrl-C interrupts giving it back.

    Args:
        original: The balloon, over a monitor that never suspends.
        monitor: That monitor, with blocking methods.

    Attributes:
        original: The balloon.
        path: The device's path in QOM.
        device_type: Its QOM type, such as ``"virtio-balloon-pci"``.
    """

    def __init__(self, original: Balloon, monitor: S_co) -> None:
        super().__init__(original)
        self._monitor = monitor
        self.path: str = original.path
        self.device_type: str = original.device_type

    def __repr__(self) -> str:
        """Return which balloon of which VM this is."""
        return (
            f"<{type(self).__name__} {prefix_name(self.original.monitor, self.path)}>"
        )

    @property
    def monitor(self) -> S_co:
        """The VM's monitor, with blocking methods."""
        return self._monitor

    @property
    def target(self) -> int | None:
        """The target that this object set last, in bytes; ``None`` if it set none."""
        return self.original.target

    def resident(self) -> int | None:
        """Return QEMU's resident memory in bytes; ``None`` if it cannot be known."""
        return self.original.resident()

    def read_owed(self) -> int | None:
        """Return the size in bytes that an interrupted run owes the guest, if any.

        As :meth:`Balloon.read_owed <qmpballoon.balloon.Device.read_owed>`.
        """
        return self.original.read_owed()

    def read_holder(self) -> int | None:
        """Return the id of another process that holds memory of the guest, if any.

        As :meth:`Balloon.read_holder <qmpballoon.balloon.Device.read_holder>`.
        """
        return self.original.read_holder()

    query: Final = _make_sync(Balloon.query)
    query_vm: Final = _make_sync(Balloon.query_vm)
    actual: Final = _make_sync(Balloon.actual)
    set_target: Final = _make_sync(Balloon.set_target)
    stats: Final = _make_sync(Balloon.stats)
    refresh_stats: Final = _make_sync(Balloon.refresh_stats)
    request_stats: Final = _make_sync(Balloon.request_stats)
    get_stats_interval: Final = _make_sync(Balloon.get_stats_interval)
    set_stats_interval: Final = _make_sync(Balloon.set_stats_interval)
    disk_reads: Final = _make_sync(Balloon.disk_reads)
    look: Final = _make_sync(Balloon.look)
    features: Final = _make_sync(Balloon.features)
    resize: Final = _make_sync(Balloon.resize)
    plan_reclaim: Final = _make_sync(Balloon.plan_reclaim)
    reclaim: Final = _make_sync(Balloon.reclaim)
    keep: Final = _make_sync(Balloon.keep)
    is_running: Final = _make_sync(Balloon.is_running)

    def watch(self, interval: float = 1.0) -> Iterator[Sample]:
        """Iterate over samples of guest, balloon and host, one each interval.

        As :meth:`Balloon.watch <qmpballoon.balloon.Balloon.watch>`: the loop can be
        left at any moment, and nothing has to be closed.

        Args:
            interval: Seconds from one sample to the next, above 0.
        """
        return _iterate(self.original.watch(interval))

    def stats_interval(self, seconds: int) -> AbstractContextManager[object]:
        """Set the statistics interval, in seconds, within a ``with`` block.

        The end of the block restores the previous interval, also after an exception.
        """
        return _SyncContext(self.original.stats_interval(seconds))

    @contextmanager
    def sampler(self) -> Generator[BlockingSampler]:
        """Yield a sampler, which reads guest, balloon and host repeatedly.

        The end of the block restores the statistics interval, also after an exception.
        """
        with _SyncContext(self.original.sampler()) as sampler:
            yield BlockingSampler(sampler)


def _iterate(samples: AsyncIterator[Sample]) -> Iterator[Sample]:
    while True:
        yield run_sync(_take_next(samples))


async def _take_next(samples: AsyncIterator[Sample]) -> Sample:
    return await anext(samples)


class BlockingSampler(_SyncWrapper[Sampler]):
    """A :class:`~qmpballoon.balloon.Sampler` for blocking code.

    Attributes:
        original: The sampler.
    """

    @property
    def stats(self) -> GuestStats:
        """The guest's latest statistics."""
        return self.original.stats

    @property
    def basis(self) -> int:
        """The guest's size in bytes that these statistics hold for."""
        return self.original.basis

    @property
    def start(self) -> float:
        """The time on the monitor's clock when the sampler was opened."""
        return self.original.start

    @property
    def silence(self) -> float:
        """Seconds since the guest's last answer that is known to be new."""
        return self.original.silence

    take: Final = _make_sync(Sampler.take)
    count_reads: Final = _make_sync(Sampler.count_reads)
