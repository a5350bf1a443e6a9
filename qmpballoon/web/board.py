"""What the pages show: the VMs as they are and as they were, and what has happened.

A :class:`Board` is updated again and again, each time with a higher number, its *tick*.
Pages are made of parts, each of which knows the tick of its last change
(:class:`LivePage`). A reader tells up to which tick it has seen everything, and is sent
what has changed since then, even if it was away or is slow. So nothing is queued.
"""

from __future__ import annotations

import secrets
from collections import deque
from typing import TYPE_CHECKING, Final

import trio
from attrs import asdict, define, evolve, field, frozen

from qmpballoon._printable import make_printable
from qmpballoon.balloon.sampling import Sample, Timeline
from qmpballoon.balloon.stats import GuestStats

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator

    from qmpballoon.balloon.sampling import Progress
    from qmpballoon.fleet.vm_view import VmState, VmView

__all__ = ["Board", "Entry", "History", "LiveBoard", "LivePage", "VmOnBoard"]

# For each VM: the last samples as they were taken, which are five minutes, and as many
# for all the time before, ever coarser. This takes 200 KB a VM, and a chart 150 KB.
_RECENT: Final = 300
_OLDER: Final = 300
_EVERY: Final = 1.0  # seconds between two samples of a VM that nobody moves
_MOST_ENTRIES: Final = 500
_MOST_GONE: Final = 50  # VMs that have gone, and still have a page
_MOST_REMOVED: Final = 1000  # parts
_LONGEST_TEXT: Final = 500  # characters of an entry


@define
class History:
    """The samples of a VM, in bounded memory: the last ones, and a few before."""

    _recent: deque[Sample] = field(factory=deque[Sample])
    _older: Timeline = field(factory=lambda: Timeline(_OLDER))

    def __iter__(self) -> Iterator[Sample]:
        """Iterate over the samples in the order of time."""
        yield from self._older
        yield from self._recent

    def add(self, sample: Sample) -> None:
        """Append a sample."""
        if self._recent and sample.t < self._recent[-1].t:
            sample = evolve(sample, t=self._recent[-1].t)
        self._recent.append(sample)
        if len(self._recent) > _RECENT:
            self._older.add(self._recent.popleft())

    @property
    def last(self) -> Sample | None:
        """The last sample, if there is one."""
        return self._recent[-1] if self._recent else None


@frozen
class Entry:
    """Something that happened.

    Attributes:
        number: Counts the entries, from 1.
        at: When it happened, in seconds since the epoch.
        vm: The name of the VM; ``None`` if it concerns all.
        text: What happened, in one line.
    """

    number: int
    at: float
    vm: str | None
    text: str

    def to_json(self) -> dict[str, object]:
        """Return it as it is served: seconds since the epoch."""
        return asdict(self)


@define
class VmOnBoard:
    """One VM on the board.

    Attributes:
        number: A number that no other VM ever has.
        view: What is known of it.
        history: Its samples.
        is_there: Whether the fleet still has it.
        is_moved: Whether a change is moving it, which then adds the samples.
    """

    number: int
    view: VmView
    history: History = field(factory=History)
    is_there: bool = True
    is_moved: bool = False
    _mark: VmState | None = None
    _requested: int | None = None  # what was asked last, by whoever is seen here

    def note(self, now: float, view: VmView) -> None:
        """Take in its present view."""
        before, self.view, self.is_there = self.view, view, True
        if view.state not in (before.state, "connecting"):
            self._mark = view.state
        last = self.history.last
        if view.actual is None:
            self._requested = None
        elif view.target not in (None, view.actual):
            self._requested = view.target
        if view.actual is None or self.is_moved:
            return
        is_same = (view.actual, view.target) == (before.actual, before.target)
        if last is not None and is_same and now - last.t < _EVERY:
            return
        reads = view.disk_reads
        sample = Sample.of(
            now,
            view.stats if view.is_fresh else GuestStats(),
            target=self._requested,
            actual=view.actual,
            resident=view.resident,
            disk_reads=None if reads is None else reads.bytes,
            mark=self._mark if last is not None else None,
        )
        self._mark = None
        self.history.add(sample)

    def note_progress(self, now: float, progress: Progress) -> None:
        """Take in a sample of a call that moves it."""
        reads = self.view.disk_reads
        self._requested = progress.sample.target
        self.history.add(
            evolve(
                progress.sample,
                t=now,
                disk_reads=None if reads is None else reads.bytes,
            )
        )


@define
class LivePage:
    """The parts of a page, and when each has changed last.

    Attributes:
        draw: Draws the parts as they are now: names and texts.
        forgotten: Who has seen less than this tick has to begin anew.
    """

    draw: Callable[[], Iterable[tuple[str, str]]]
    forgotten: int = 0
    _parts: dict[str, tuple[int, str]] = field(factory=dict[str, "tuple[int, str]"])
    _tick: int = -1
    _lock: trio.Lock = field(factory=trio.Lock)

    async def update(self, tick: int) -> int:
        """Draw the parts anew, unless that was done in this tick.

        Others run meanwhile: what moves a balloon does not wait for a large page.

        Returns:
            The tick that they are of, which may be a later one.
        """
        async with self._lock:
            if tick <= self._tick:
                return self._tick
            self._tick, here = tick, set[str]()
            for name, text in self.draw():
                here.add(name)
                if self._parts.get(name, (0, None))[1] != text:
                    self._parts[name] = (tick, text)
                await trio.lowlevel.checkpoint()
            for name, (_, text) in list(self._parts.items()):
                if text and name not in here:
                    self._parts[name] = (tick, "")
            self._forget(tick)
            return tick

    def _forget(self, tick: int) -> None:
        """Keep no more parts that were removed than somebody may have to be told."""
        removed = [name for name, (_, text) in self._parts.items() if not text]
        if len(removed) > _MOST_REMOVED:
            self.forgotten = tick
            for name in removed:
                del self._parts[name]

    def list_since(self, tick: int) -> dict[str, str]:
        """Return the parts that have changed after a tick; empty are those removed."""
        return {
            name: text
            for name, (changed, text) in self._parts.items()
            if changed > tick
        }


@define
class LiveBoard:
    """What live pages show, whatever that is.

    Attributes:
        run: Tells the ticks of this process from those of others.
        tick: How often it was told something new.
        entries: What has happened, the newest last.
    """

    run: str = field(factory=lambda: secrets.token_hex(4))
    tick: int = 0
    entries: deque[Entry] = field(factory=lambda: deque[Entry](maxlen=_MOST_ENTRIES))
    _wall_clock: Callable[[], float] = field(kw_only=True, alias="wall_clock")
    _start: float | None = None
    _pages: dict[Hashable, LivePage] = field(factory=dict["Hashable", LivePage])
    _changed: trio.Event = field(factory=trio.Event)

    def begin_tick(self) -> None:
        """Tell all readers that something may have changed."""
        self.tick += 1
        self._changed.set()
        self._changed = trio.Event()

    def log(self, vm: str | None, text: str) -> None:
        """Note that something has happened.

        Args:
            vm: The VM's name; ``None``: it is of all.
            text: What.
        """
        number = self.entries[-1].number + 1 if self.entries else 1
        shown = make_printable(text, _LONGEST_TEXT)
        self.entries.append(Entry(number, self._wall_clock(), vm, shown))

    def list_entries(self) -> dict[str, object]:
        """Return what has happened, as it is served."""
        return {"entries": [entry.to_json() for entry in self.entries]}

    def get_page(
        self, key: Hashable, draw: Callable[[], Iterable[tuple[str, str]]]
    ) -> LivePage:
        """Return a page that others may read, too.

        Args:
            key: Which page.
            draw: As of :class:`LivePage`.
        """
        return self._pages.setdefault(key, LivePage(draw))

    async def wait(self, tick: int) -> None:
        """Wait for a later tick; returns at once if there was one."""
        while self.tick <= tick:
            await self._changed.wait()

    @property
    def seconds(self) -> float:
        """Seconds since the board was first asked."""
        now = trio.current_time()
        if self._start is None:
            self._start = now
        return now - self._start

    def forget_page(self, key: Hashable) -> None:
        """Forget a page that nobody can ask for any more."""
        self._pages.pop(key, None)


@define
class Board(LiveBoard):
    """What the pages of a host's VMs show.

    Attributes:
        vms: The VMs, by name.
    """

    vms: dict[str, VmOnBoard] = field(factory=dict[str, VmOnBoard])
    _numbers: int = 0

    def note(self, views: Iterable[VmView]) -> None:
        """Take in all VMs as they are now, and begin a tick."""
        here = {view.name: view for view in views}
        for name, vm in self.vms.items():
            if vm.is_there and name not in here:
                vm.is_there = False
                self.log(name, "is not in the fleet any more")
        for name, view in here.items():
            if name not in self.vms:
                self._numbers += 1
                self.vms[name] = VmOnBoard(self._numbers, view)
            vm = self.vms[name]
            self._log_state(vm.view, view)
            vm.note(self.seconds, view)
        gone = [name for name, vm in self.vms.items() if not vm.is_there]
        for name in gone[:-_MOST_GONE]:
            vm = self.vms.pop(name)
            self.forget_page(("vm", vm.number))
        self.begin_tick()

    def find(self, shown: str) -> VmOnBoard | None:
        """Return the VM whose name is shown so; of several, the first."""
        return next(
            (vm for name, vm in self.vms.items() if make_printable(name) == shown), None
        )

    def _log_state(self, before: VmView, view: VmView) -> None:
        # A VM that is connecting will be in another state soon.
        if view.state not in (before.state, "connecting"):
            detail = f": {view.detail}" if view.detail else ""
            self.log(view.name, f"is {view.state}{detail}")
