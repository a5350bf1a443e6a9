"""What `fleet run` says of its VMs: who takes no part in it, and who gives no more.

A loop that runs for months is read in a journal. So each thing is said once, when it
comes about, and nothing is said of VMs that are well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, field

from qmpballoon.cli import _output

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qmpballoon.fleet.vm import View

__all__ = ["News", "note_absent"]


def note_absent(views: Iterable[View]) -> None:
    """Name the VMs that take no part, and why."""
    for view in views:
        if not view.is_fresh:
            _output.note(_absent(view))


@define
class News:
    """Notes how the VMs are, and what has changed since it was last told."""

    _known: dict[str, View] = field(factory=dict[str, "View"])

    def tell(self, views: Iterable[View]) -> None:
        """Say what is new of a fleet, given all VMs that belong to it."""
        here = {view.name: view for view in views}
        for name in sorted(self._known.keys() - here.keys()):
            if self._known.pop(name).is_fresh:
                _output.note(f"{name} is there no more")
        for name, view in here.items():
            # One that connects is about to be something else.
            if view.state != "connecting":
                _tell(self._known.get(name), view)
                self._known[name] = view


def _tell(before: View | None, view: View) -> None:
    if before is not None and before.state == view.state:
        return
    if not view.is_fresh:
        _output.note(_absent(view))
    elif before is not None and not before.is_fresh:
        _output.note(f"{view.name} takes part again")
    if view.state == "stalled":
        _output.note(f"{view.name} is left alone for a while: {view.detail}")


def _absent(view: View) -> str:
    return f"{view.name} takes no part: {view.detail or view.state}"
