"""What a fleet has done in the last minutes: pure, from what was seen of the VMs.

Moves are recognised by the guests' sizes, whoever has moved them.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from attrs import define, field

from qmpballoon._printable import make_printable
from qmpballoon.sizes import MiB, format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from qmpballoon.fleet.vm_view import VmView

__all__ = ["STEPS", "History"]

STEPS: Final = 12
"""How many parts of the last minutes are remembered of each VM."""
_STEP: Final = 15.0  # seconds of each part: three minutes in all
_MINUTE: Final = 60.0  # seconds that count as lately
_LEAST: Final = MiB  # bytes; less is no move
_NAME: Final = 20  # characters of a VM's name in a sentence
_BARS: Final = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"


def _make_shares() -> deque[float | None]:
    return deque(maxlen=STEPS)


@define
class _Seen:
    """What was seen of one VM.

    Attributes:
        part: The number of the last part of the time.
        shares: The least of its RAM that it had available in each part.
        sizes: When it was seen, and how many bytes it had.
    """

    part: int
    shares: deque[float | None] = field(factory=_make_shares)
    sizes: deque[tuple[float, int]] = field(factory=deque[tuple[float, int]])


@define
class History:
    """Remembers what the VMs of a fleet had, for the last minutes."""

    _seen: dict[str, _Seen] = field(factory=dict[str, "_Seen"])

    def note(self, now: float, views: Iterable[VmView]) -> None:
        """Take in what is seen of the VMs. Those that are not named are forgotten.

        Args:
            now: Seconds of a clock that only goes forward.
            views: All VMs.
        """
        known, self._seen = self._seen, {}
        for view in views:
            part = int(now // _STEP)
            seen = known.get(view.name) or _Seen(part)
            self._seen[view.name] = seen
            for _ in range(min(part - seen.part, STEPS)):
                seen.shares.append(None)
            seen.part = part
            share = _compute_share(view)
            last = seen.shares.pop() if seen.shares else None
            known_shares = [each for each in (last, share) if each is not None]
            seen.shares.append(min(known_shares, default=None))
            while seen.sizes and seen.sizes[0][0] < now - _MINUTE:
                seen.sizes.popleft()
            if view.actual is not None:
                seen.sizes.append((now, view.actual))

    def draw(self, name: str) -> str:
        """Draw how much of its RAM a VM had available, the latest at the right."""
        seen = self._seen.get(name)
        shares: Iterable[float | None] = () if seen is None else seen.shares
        return "".join(map(_draw_share, shares)).rjust(STEPS)

    def describe(self, views: Sequence[VmView]) -> str:
        """Say who lacks memory, what has moved lately, and who could spare most.

        Args:
            views: All VMs.
        """
        known = [
            (above, view.name)
            for view in views
            if (above := view.above_headroom) is not None
        ]
        parts = [_describe_needy(known), self._describe_moves()]
        if known and max(known)[0] > 0:
            above, name = max(known)
            parts.append(f"{_show(name)} can spare most, {format_size(above)}")
        return "; ".join(parts)

    def _describe_moves(self) -> str:
        changes = [
            seen.sizes[-1][1] - seen.sizes[0][1]
            for seen in self._seen.values()
            if seen.sizes
        ]
        given = sum(-change for change in changes if change <= -_LEAST)
        taken = sum(change for change in changes if change >= _LEAST)
        moves = [
            *([f"gave {format_size(given)}"] if given else []),
            *([f"got {format_size(taken)}"] if taken else []),
        ]
        return f"in the last minute {', '.join(moves) or 'nothing moved'}"


def _describe_needy(known: Sequence[tuple[int, str]]) -> str:
    """Say who lacks most; of each guest it is known what it has above its headroom."""
    if not known:
        return "of no guest it is known what it needs"
    least, name = min(known)
    if least >= 0:
        return "no guest is in need"
    others = sum(above < 0 for above, _ in known) - 1
    more = f" (and {others} more)" if others else ""
    return f"{_show(name)} lacks {format_size(-least)}{more}"


def _compute_share(view: VmView) -> float | None:
    """Return which share of its RAM a VM has available, if that is known."""
    available = view.stats.reclaimable
    if not view.is_fresh or available is None or not view.total:
        return None
    return min(available / view.total, 1.0)


def _draw_share(share: float | None) -> str:
    if share is None:
        return " "
    return _BARS[min(int(share * len(_BARS)), len(_BARS) - 1)]


def _show(name: str) -> str:
    return make_printable(name, _NAME)
