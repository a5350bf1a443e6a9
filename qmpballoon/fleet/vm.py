"""What is known of one VM, and what may be made of it.

Pure: looks at the VM in, its state out. A guest's figures are worth something only
together with the size it had when it gave them. QEMU tells neither when it asked nor
what the size was then, so a sample counts as *aligned* when the size was already what
it is now at the look before the one that first showed the sample.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Literal, get_args

from attrs import define, evolve, field, frozen

from qmpballoon.balloon.stats import GuestStats
from qmpballoon.fleet.members import Member

if TYPE_CHECKING:
    from qmpballoon.balloon.results import ResizeResult
    from qmpballoon.fleet.spec import Bounds, Spec

__all__ = ["STATES", "Counters", "Growth", "Record", "State", "View"]

State = Literal[
    "connecting",
    "healthy",
    "stalled",
    "stale",
    "no-driver",
    "no-balloon",
    "busy",
    "gone",
]
"""How a VM is:

* ``connecting``: nothing is known yet.
* ``healthy``: it answers, and its balloon can be moved.
* ``stalled``: it answers, but lately did not give what it said it could.
* ``stale``: it answered once, and does not now: paused, hung, or out of its driver.
* ``no-driver``: its guest never answered: no virtio_balloon is loaded in it, or it has
  been paused since it was first seen.
* ``no-balloon``: it has no balloon device.
* ``busy``: another client holds its monitor.
* ``gone``: its monitor cannot be reached.
"""
STATES: Final[tuple[State, ...]] = get_args(State)

_DETAILS: Final[dict[State, str]] = {
    "stale": "the guest does not answer: it is paused, hangs, or lost its driver",
    "no-driver": "the guest never answered: load virtio_balloon in it, or resume it if"
    " it is paused",
}
_FIRST_REST: Final = 30.0  # seconds for which a guest that stalled is not asked again
_LONGEST_REST: Final = 600.0


@define
class Counters:
    """What has happened to one VM since it was first seen.

    Attributes:
        given: Bytes it was given.
        taken: Bytes it gave.
        moves: Moves that came to their end, reached or not.
        stalls: Those that did not reach their target.
        losses: How often the connection was lost.
    """

    given: int = 0
    taken: int = 0
    moves: int = 0
    stalls: int = 0
    losses: int = 0


@frozen
class View:
    """One VM at one moment; what is not known is ``None``. Sizes in bytes.

    Attributes:
        name: What it is called.
        address: Where its monitor is.
        state: How it is.
        detail: What is wrong and what can be done, in words; empty if nothing is.
        actual: What it has.
        total: Its RAM.
        target: Where it is going, while it does.
        resident: What QEMU holds of the host's memory.
        bounds: Floor, ceiling and headroom.
        stats: What the guest last said.
        counters: What has happened to it.
    """

    name: str
    address: str
    state: State
    detail: str
    actual: int | None
    total: int | None
    target: int | None
    resident: int | None
    bounds: Bounds | None
    stats: GuestStats
    counters: Counters

    @property
    def is_fresh(self) -> bool:
        """Whether what the guest last said still holds."""
        return self.state in ("healthy", "stalled")

    @property
    def above_headroom(self) -> int | None:
        """Bytes it has available above its headroom; below 0 for one in need."""
        available, bounds = self.stats.reclaimable, self.bounds
        if not self.is_fresh or available is None or bounds is None:
            return None
        return available - bounds.headroom

    def to_json(self) -> dict[str, object]:
        """Return it as the command prints it: bytes and seconds."""
        balloon = {"actual": self.actual, "total": self.total, "target": self.target}
        bounds = self.bounds
        return {
            "name": self.name,
            "address": self.address,
            "state": self.state,
            "detail": self.detail,
            "balloon": None if self.actual is None else balloon,
            "limits": bounds
            and {
                "floor": bounds.floor,
                "ceiling": bounds.ceiling,
                "headroom": bounds.headroom,
            },
            "stats": None
            if self.stats.last_update is None
            else {**self.stats.to_json(), "fresh": self.is_fresh},
            "host": {"resident": self.resident},
        }


_LEAST: Final = 1.0  # seconds: a move takes some time, however soon the next plan comes


@define
class Growth:
    """The rate at which a guest came to use more, between the last two samples.

    Attributes:
        rate: Bytes a second; 0 if it does not grow, or that is not known.
    """

    rate: int = 0
    _at: float | None = None
    _used: int = 0

    def see(self, at: float, used: int) -> None:
        """Take in a sample.

        Args:
            at: Its moment, in seconds on any clock that runs steadily.
            used: Bytes that the guest could not do without then.
        """
        if self._at is not None:
            if at <= self._at:
                return
            self.rate = max(0, int((used - self._used) / (at - self._at)))
        self._at, self._used = at, used

    def until_next(self, period: float) -> int:
        """Return the bytes by which it grows until the next plan.

        Args:
            period: Seconds between two plans; less than one counts as one.
        """
        return int(self.rate * max(period, _LEAST))


@define
class Record:
    """Keeps what is known of one VM.

    Attributes:
        spec: What is wanted of it.
        stale_after: Seconds without an answer after which the guest is silent.
        period: Seconds between two looks, and two plans.
        actual: Bytes it has, ``None`` if unknown.
        total: Bytes of its RAM.
        resident: Bytes QEMU holds.
        target: Where it is going.
        promised: Bytes it was given and has not touched yet.
        stats: What the guest last said.
        counters: What has happened to it.
        bounds: Its limits, known once its RAM is.
        looked_at: When it was last looked at, on the monitor's clock.
    """

    spec: Spec
    stale_after: float
    period: float = 1.0
    actual: int | None = None
    total: int | None = None
    resident: int | None = None
    target: int | None = None
    promised: int = 0
    stats: GuestStats = field(factory=GuestStats)
    counters: Counters = field(factory=Counters)
    bounds: Bounds | None = None
    looked_at: float = -math.inf
    _state: State = "connecting"
    _detail: str = ""
    # All of these are moments on the monitor's clock.
    _connected_at: float = -math.inf
    _steady_since: float = math.inf
    _asked_at: float = -math.inf
    _answered_at: float = -math.inf
    _rests_until: float = -math.inf
    _rest: float = _FIRST_REST
    _growth: Growth = field(factory=Growth)

    # What happens to it

    def connect(self, now: float) -> None:
        """Note that the monitor answers, and the balloon is found."""
        self._state, self._detail = "healthy", ""
        self._connected_at = now
        self._answered_at = self.looked_at = -math.inf
        self._steady_since = math.inf
        self.stats, self._growth = GuestStats(), Growth()

    def lose(self, state: State, detail: str, resident: int | None = None) -> None:
        """Note that it cannot be reached, and why; what was known is void.

        Args:
            state: How it is.
            detail: What is wrong and what can be done.
            resident: Bytes its QEMU holds all the same.
        """
        if self.connected:
            self.counters.losses += 1
        self._state, self._detail = state, detail
        self.actual = self.target = None
        self.resident = resident
        self.promised = 0

    def look(
        self, now: float, actual: int, stats: GuestStats, resident: int | None
    ) -> None:
        """Take in what a look has shown."""
        first = self.looked_at == -math.inf
        if actual != self.actual or first:
            self._steady_since = now
        is_news = stats.last_update != self.stats.last_update and not first
        if is_news:
            self._asked_at, self._answered_at = self.looked_at, now
        self.looked_at = now
        if now >= self._rests_until:
            self._detail = ""
        self.actual, self.stats, self.resident = actual, stats, resident
        if is_news and self._is_aligned and stats.reclaimable is not None:
            self._growth.see(now, actual - stats.reclaimable)
        self.promised = min(self.promised, self._untouched)

    def learn_total(self, total: int | None) -> None:
        """Note its RAM; where QEMU does not tell, the most it was seen to have."""
        known = total or max(self.total or 0, self.actual or 0)
        if known and known != self.total:
            self.total, self.bounds = known, self.spec.bounds(known)

    def fall_silent(self, detail: str) -> None:
        """Note that it did not answer a look."""
        self._detail = detail

    def begin(self, target: int) -> None:
        """Note that it is about to move."""
        self.target = target
        self.promised += max(0, target - (self.actual or 0))

    def pass_by(self, now: float, actual: int) -> None:
        """Note where it is on its way; it is looked at there, by who moves it."""
        self.actual, self._answered_at = actual, now

    def finish(self, now: float, result: ResizeResult) -> None:
        """Note how its move ended."""
        self.target, self.actual = None, result.actual
        self._steady_since = now
        change, asked = result.actual - result.before, result.requested - result.before
        self.counters.moves += 1
        self.counters.given += max(0, change)
        self.counters.taken += max(0, -change)
        if result.outcome == "reached":
            self._rest = _FIRST_REST
            return
        self.counters.stalls += 1
        if asked < 0 and abs(change) < abs(asked) // 2:
            detail = result.diagnosis.detail if result.diagnosis else ""
            self._detail = detail or "it gave less than half of what it had to spare"
            self._rests_until = now + self._rest
            self._rest = min(self._rest * 2, _LONGEST_REST)

    def stop(self) -> None:
        """Note that its move was given up."""
        self.target = None

    # What may be made of it

    @property
    def connected(self) -> bool:
        """Whether its monitor answers."""
        return self._state == "healthy"

    def state(self, now: float) -> State:
        """Tell how it is."""
        if not self.connected:
            return self._state
        if self._is_fresh(now):
            return "stalled" if now < self._rests_until else "healthy"
        if self._answered_at == -math.inf:
            if now - self._connected_at <= self.stale_after:
                return "connecting"
            return "no-driver" if self.stats.last_update is None else "stale"
        return "stale"

    def is_known(self, now: float) -> bool:
        """Tell whether a plan could be made, or is never going to be."""
        state = self.state(now)
        return state != "connecting" and (state != "healthy" or self._is_aligned)

    def member(self, now: float) -> Member | None:
        """Return it as plans take it; ``None`` if it cannot be moved now."""
        available, bounds = self.stats.reclaimable, self.bounds
        actual, total = self.actual, self.total
        if not (self._is_fresh(now) and (self._is_aligned or self.target is not None)):
            return None
        if available is None or bounds is None or actual is None or total is None:
            return None
        return Member(
            name=self.spec.name,
            actual=actual,
            total=total,
            # A guest that claims more than it has is not to be believed.
            available=min(available, actual),
            headroom=bounds.headroom,
            floor=bounds.floor,
            ceiling=bounds.ceiling,
            weight=self.spec.weight,
            target=self.target,
            free=min(self.stats.free or 0, actual),
            untouched=self._untouched,
            refuses=now < self._rests_until,
            growth=self._growth.until_next(self.period),
        )

    def view(self, now: float) -> View:
        """Return it as it is shown."""
        state = self.state(now)
        return View(
            name=self.spec.name,
            address=str(self.spec.address),
            state=state,
            detail=self._detail or _DETAILS.get(state, ""),
            actual=self.actual,
            total=self.total,
            target=self.target,
            resident=self.resident,
            bounds=self.bounds,
            stats=self.stats,
            counters=evolve(self.counters),
        )

    def _is_fresh(self, now: float) -> bool:
        return self.connected and now - self._answered_at <= self.stale_after

    @property
    def _is_aligned(self) -> bool:
        return self._asked_at >= self._steady_since

    @property
    def _untouched(self) -> int:
        """Bytes it could use without the host having given memory for them."""
        if self.actual is None or self.resident is None:
            return 0
        untouched = max(0, self.actual - self.resident)
        # What a guest has not touched is free in it, or its kernel never uses it.
        knows_free = self._is_aligned and self.stats.free is not None
        return min(untouched, self.stats.free or 0) if knows_free else untouched
