"""What the fleet's commands say: pure, from plans, reports and VMs to text and JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, Protocol

from attrs import define, field, frozen

from qmpballoon._printable import make_printable
from qmpballoon.cli.render.summary import write_undo
from qmpballoon.sizes import GiB, MiB, TiB, format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence, Sized

    from qmpballoon.fleet.control_loop import FleetReclaimReport
    from qmpballoon.fleet.guests import Host
    from qmpballoon.fleet.policy import FleetPlan, Rules
    from qmpballoon.fleet.vm_spec import Refused
    from qmpballoon.fleet.vm_view import LeftGuest, SmallGuest, VmView

__all__ = [
    "Changes",
    "describe_absent",
    "describe_available",
    "describe_left",
    "describe_plan",
    "describe_refused",
    "describe_report",
    "describe_small",
    "describe_uncertain",
    "host_to_json",
]

_NAME: Final = 100  # characters of a VM's name at most: the rest of its line has room


class _Named(Protocol):
    """Something of a VM with a name."""

    @property
    def name(self) -> str: ...


def _show_name(named: _Named) -> str:
    return make_printable(named.name, _NAME)


def host_to_json(host: Host, rules: Rules) -> dict[str, object]:
    """Return what the host has, and what it is to keep, in bytes."""
    return {
        "total": host.total,
        "available": host.available,
        "reserve": rules.reserve,
        "reserve_hard": rules.reserve_hard,
        "buffer": rules.buffer,
        "promised": host.promised,
        "pressed": host.pressed,
        "notes": list(host.notes),
    }


# Plans and reports


@frozen
class _Unit:
    """A unit for sizes that are to add up: all are rounded to a tenth of it.

    Attributes:
        size: Its bytes.
        name: Its name.
    """

    size: int
    name: str

    def round(self, size: int) -> int:
        """Return a size in tenths of the unit, rounded."""
        return round(size * 10 / self.size)

    def format(self, tenths: int, sign: Literal["+", ""] = "") -> str:
        """Write a number of tenths; with ``"+"`` there is a sign in any case."""
        whole = tenths % 10 == 0
        return f"{tenths / 10:{sign}.{0 if whole else 1}f} {self.name}"


_UNITS: Final = (_Unit(TiB, "TiB"), _Unit(GiB, "GiB"), _Unit(MiB, "MiB"))


def _choose_unit(changes: Iterable[int]) -> _Unit:
    """Return the largest unit of which each change that is not 0 has one or more."""
    smallest = min((abs(change) for change in changes if change), default=0)
    return next((unit for unit in _UNITS if unit.size <= smallest), _UNITS[-1])


def describe_available(size: int) -> str:
    """Say how much of its memory a host has available.

    Args:
        size: Bytes; negative if more is in use than a limit allows.
    """
    if size < 0:
        return f"nothing available ({format_size(-size)} more than its limit in use)"
    return f"{format_size(size)} available"


def describe_plan(host: Host, rules: Rules, plan: FleetPlan) -> str:
    """Say what is to be moved, and why."""
    about = (
        f"The host has {describe_available(host.available)} of"
        f" {format_size(host.total)}, and is to keep {format_size(rules.reserve)}"
        f" and a buffer of {format_size(rules.buffer)}."
    )
    unit = _choose_unit(move.change for move in plan.moves)
    changes = [unit.round(move.target) - unit.round(move.before) for move in plan.moves]
    moves = [
        f"{_show_name(move)}: {unit.format(unit.round(move.before))} ->"
        f" {unit.format(unit.round(move.target))} ({unit.format(change, '+')}):"
        f" {move.reason}"
        for move, change in zip(plan.moves, changes, strict=True)
    ]
    lines = [about, *moves, *_describe_sums(unit, changes)]
    if plan.lacking:
        lines.append(
            f"No guest can free the {format_size(plan.lacking)} still lacking."
        )
    elif not plan.moves:
        lines.append("Nothing is to be moved.")
    return "\n".join(lines)


def _describe_sums(unit: _Unit, changes: Sequence[int]) -> list[str]:
    """Say how much all guests together give and get."""
    taken = sum(-change for change in changes if change < 0)
    given = sum(change for change in changes if change > 0)
    lines: list[str] = []
    if taken:
        lines.append(f"Guests give {unit.format(taken)} in all.")
    if given:
        lines.append(f"Guests get {unit.format(given)} in all.")
    return lines


def describe_report(
    report: FleetReclaimReport,
    before: int,
    after: int,
    addresses: Mapping[str, str] | None = None,
) -> str:
    """Say who gave what, and what the host has gained.

    Args:
        report: The reclaim's.
        before: Bytes the host had available.
        after: Bytes the host has available now.
        addresses: The VMs' addresses, by their names; with them, the commands that give
            back what is held are shown.
    """
    unit = _choose_unit(vm.handed_over for vm in report.vms)
    lines = [
        f"{_show_name(vm)}: gave {unit.format(unit.round(vm.handed_over))} of"
        f" {unit.format(unit.round(vm.requested))} that were asked for"
        for vm in report.vms
    ]
    taken = sum(unit.round(vm.handed_over) for vm in report.vms)
    lines += [
        f"{_show_name(vm)}: has yet to take {format_size(vm.owed)} back; look at it"
        " with `fleet status`, and resize it again"
        for vm in report.vms
        if vm.owed
    ]
    kept = "and keeps it from them" if report.held else "and gave the sizes back"
    lines.append(
        f"Took {unit.format(taken)} of {unit.format(unit.round(report.requested))}"
        f" from {_count_guests(report.vms)}, {kept}; the host had"
        f" {format_size(before)} available, and has {format_size(after)}."
    )
    lines += describe_small(report.small)
    lines += [
        write_undo(addresses[vm.name], vm.before)
        for vm in report.vms
        if report.held and vm.handed_over and addresses and vm.name in addresses
    ]
    return "\n".join(lines)


def _count_guests(vms: Sized) -> str:
    return "1 guest" if len(vms) == 1 else f"{len(vms)} guests"


def describe_left(guests: Iterable[LeftGuest]) -> list[str]:
    """Name the guests that were left on their way, one line each."""
    return [_describe_left(guest) for guest in guests]


def _describe_left(guest: LeftGuest) -> str:
    size = "a size not known" if guest.actual is None else format_size(guest.actual)
    return (
        f"{_show_name(guest)} was left with the target"
        f" {format_size(guest.target)}: its QEMU does not answer, and last told of"
        f" {size}; look at it with `fleet status` when QEMU goes on, and resize it"
    )


# Of what there may be many, so many are named. Anybody can start processes that are
# refused, as many as the system lets him.
_MOST_NAMED: Final = 20


def describe_small(guests: Sequence[SmallGuest]) -> list[str]:
    """Name the guests that were left with less than all their RAM, one line each."""
    lines = [f"{_show_name(guest)} {guest.describe()}" for guest in guests]
    return _limit(lines, "and {} more, which `fleet status` lists")


def _limit(lines: list[str], more: str) -> list[str]:
    """Leave lines out if there are many, and say how many."""
    left_out = len(lines) - _MOST_NAMED
    return [*lines[:_MOST_NAMED], more.format(left_out)] if left_out > 0 else lines


# What takes no part


def describe_refused(refused: Sequence[Refused]) -> list[str]:
    """Say what was found and is not managed, and why, one line each.

    The first line says how many there are.
    """
    if not refused:
        return []
    lines = [f"{_show_name(each)} is not managed: {each.reason}" for each in refused]
    count = "1 QEMU or socket" if len(lines) == 1 else f"{len(lines)} QEMUs or sockets"
    verb = "was" if len(lines) == 1 else "were"
    named = _limit(lines, "and {} more, which --json lists")
    return [f"{count} {verb} refused:", *named]


def describe_absent(views: Iterable[VmView]) -> list[str]:
    """Name the VMs that take no part, and say why, one line each."""
    return [_describe_absent(view) for view in views if not view.takes_part]


def describe_uncertain(
    host: Host, views: Iterable[VmView], *, limited: bool
) -> list[str]:
    """Say what of the host's figures could not be read, one line each.

    Args:
        host: The host.
        views: The VMs.
        limited: Whether there is a limit for what the VMs hold.
    """
    names = [
        make_printable(view.name, _NAME) for view in views if view.holds_unknown_memory
    ]
    lines = list(host.notes)
    if names and limited:
        lines.append(
            f"{', '.join(names)}: how much memory QEMU holds is not known; the limit"
            " counts all that the guest has"
        )
    return lines


def _describe_absent(view: VmView) -> str:
    return f"{_show_name(view)} takes no part: {view.detail or view.state}"


@define
class Changes:
    """Tells which VMs have begun or ceased to take part, each change once.

    `fleet run` may run for months and be read in a journal. So nothing is said of VMs
    that are well, and nothing is said twice.
    """

    _known: dict[str, VmView] = field(factory=dict[str, "VmView"])
    _refused: frozenset[Refused] = field(default=frozenset(), alias="refused")
    _uncertain: frozenset[str] = frozenset()

    def describe_new(self, lines: Iterable[str]) -> list[str]:
        """Return the lines of :func:`describe_uncertain` that the last call had not."""
        before, now = self._uncertain, list(lines)
        self._uncertain = frozenset(now)
        return [line for line in now if line not in before]

    def describe(
        self, views: Iterable[VmView], refused: Iterable[Refused] = ()
    ) -> list[str]:
        """Say what has changed since the last call, one line a change.

        Args:
            views: All VMs that belong to the fleet now.
            refused: What is refused now.
        """
        here = {view.name: view for view in views}
        lines = [
            f"{make_printable(name, _NAME)} is no longer there"
            for name in sorted(self._known.keys() - here.keys())
            if self._known.pop(name).takes_part
        ]
        for name, view in here.items():
            # A VM that is connecting will be in another state soon.
            if view.state != "connecting":
                lines += _describe_change(self._known.get(name), view)
                self._known[name] = view
        refused = list(refused)
        lines += describe_refused([r for r in refused if r not in self._refused])
        self._refused = frozenset(refused)
        return lines


def _describe_change(before: VmView | None, view: VmView) -> list[str]:
    if before is not None and before.state == view.state:
        return []
    lines: list[str] = []
    if not view.takes_part:
        lines.append(_describe_absent(view))
    elif before is not None and not before.takes_part:
        lines.append(f"{_show_name(view)} takes part again")
    if view.state == "stalled":
        lines.append(f"{_show_name(view)} is left alone for a while: {view.detail}")
    return lines
