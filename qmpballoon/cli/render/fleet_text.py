"""What the fleet's commands say: plans and reports, as text and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpballoon.cli import _output
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Sized

    from qmpballoon.fleet.control_loop import Reclaimed
    from qmpballoon.fleet.members import Host
    from qmpballoon.fleet.policy import FleetPlan, Rules

__all__ = ["host_json", "print_plan", "report_text"]


def host_json(host: Host, rules: Rules) -> dict[str, object]:
    """Return what the host has, and is to keep, in bytes."""
    return {
        "total": host.total,
        "available": host.available,
        "reserve": rules.reserve,
        "buffer": rules.buffer,
        "promised": host.promised,
        "pressed": host.pressed,
    }


def print_plan(host: Host, rules: Rules, plan: FleetPlan, *, as_json: bool) -> None:
    """Say what is to be moved, and why."""
    if as_json:
        _output.print_json({**plan.to_json(), "host": host_json(host, rules)})
    else:
        _output.say(_describe(host, rules, plan))


def _describe(host: Host, rules: Rules, plan: FleetPlan) -> str:
    about = (
        f"The host has {format_size(host.available)} available of"
        f" {format_size(host.total)}, and is to keep {format_size(rules.reserve)}"
        f" and a buffer of {format_size(rules.buffer)}."
    )
    moves = [
        f"{move.name}: {format_size(move.before)} -> {format_size(move.target)}"
        f" ({format_size(move.change)}): {move.reason}"
        for move in plan.moves
    ]
    lines = [about, *moves, *_sums(plan)]
    if plan.lacking:
        lines.append(f"Nobody can free the {format_size(plan.lacking)} still lacking.")
    elif not plan.moves:
        lines.append("Nothing is to be moved.")
    return "\n".join(lines)


def _sums(plan: FleetPlan) -> list[str]:
    """Say what the moves come to."""
    taken = sum(max(0, -move.change) for move in plan.moves)
    given = sum(max(0, move.change) for move in plan.moves)
    lines: list[str] = []
    if taken:
        lines.append(f"Guests give {format_size(taken)} in all.")
    if given:
        lines.append(f"Guests get {format_size(given)} in all.")
    return lines


def report_text(report: Reclaimed, before: int, after: int) -> str:
    """Say who gave what, and what the host has available of it, in bytes."""
    lines = [
        f"{vm.name}: gave {format_size(vm.handed_over)} of"
        f" {format_size(vm.requested)} that were asked for"
        for vm in report.vms
    ]
    lines += [
        f"{vm.name}: has yet to take {format_size(vm.owed)} back; see how it is"
        " (fleet status), and resize it anew"
        for vm in report.vms
        if vm.owed
    ]
    kept = "and keeps it from them" if report.held else "and gave the sizes back"
    lines.append(
        f"Took {format_size(report.handed_over)} of {format_size(report.requested)}"
        f" from {_count(report.vms)}, {kept}; the host had {format_size(before)}"
        f" available, and has {format_size(after)}."
    )
    return "\n".join(lines)


def _count(vms: Sized) -> str:
    return "1 guest" if len(vms) == 1 else f"{len(vms)} guests"
