"""What the pages of a cluster show: its hosts as they are, and what has happened.

A host that has vanished from the server stays for an hour, because somebody may want to
see that it is gone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from attrs import define, field

from qmpballoon.cluster.view import LATE
from qmpballoon.web.board import LiveBoard

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from qmpballoon.cluster.view import ClusterView, HostView

__all__ = ["ClusterBoard", "HostCondition", "HostOnBoard"]

HostCondition: TypeAlias = Literal["healthy", "silent", "malformed", "gone"]
"""How a host is: as :attr:`HostView.condition`, or gone from the server."""
_FORGOTTEN: Final = 3600.0  # seconds after which a host that is gone is forgotten
_MOST_GONE: Final = 1000
_MOST_NAMES: Final = 5  # of an entry


@define
class HostOnBoard:
    """One host on the board.

    Attributes:
        number: No other host has it, nor will have.
        view: What was last heard of it.
        age: Seconds since it said so; ``None``: that is not known.
        condition: How it is.
    """

    number: int
    view: HostView
    age: float | None = None
    condition: HostCondition = "healthy"
    _seen: float = 0.0  # when it was on the server

    def note(self, now: float, view: HostView) -> None:
        """Take in what it says now."""
        self.view, self._seen = view, now
        self.age, self.condition = view.age, view.condition

    def miss(self, now: float) -> None:
        """Take in that the server says nothing of it.

        A server that was emptied has it again in a second: it is gone once it is late.
        """
        absent = max(0.0, now - self._seen)
        self.age = absent + (self.view.age or 0.0)
        if self.age > LATE:
            self.condition = "gone"


@define
class ClusterBoard(LiveBoard):
    """What the pages of a cluster show.

    Attributes:
        view: All hosts as they were when the server was last asked; ``None``: it never
            answered.
        hosts: The hosts, by name, with those that are gone.
        problem: Why the server cannot be asked; empty if it can.
    """

    view: ClusterView | None = None
    hosts: dict[str, HostOnBoard] = field(factory=dict[str, HostOnBoard])
    problem: str = ""
    _numbers: int = 0
    _job: tuple[str, bool] = ("", True)  # the last job, and whether it is settled

    def note(self, view: ClusterView) -> None:
        """Take in what the server says of all hosts, and begin a tick."""
        now = self.now
        if self.problem:
            self.problem = ""
            self.log(None, "the server can be asked again")
        before, self.view = self.view, view
        was: dict[str, HostCondition]
        was = {name: host.condition for name, host in self.hosts.items()}
        here = {host.name: host for host in view.hosts}
        for name, host in here.items():
            if name not in self.hosts:
                self._numbers += 1
                self.hosts[name] = HostOnBoard(self._numbers, host)
            self.hosts[name].note(now, host)
        for name in self.hosts.keys() - here.keys():
            self.hosts[name].miss(now)
        self._log_changes(was, is_first=before is None)
        if before is not None and before.policy != view.policy:
            self.log(None, view.describe()[-1])
        self._log_job(view)
        self._forget()
        self.begin_tick()

    def note_problem(self, why: str) -> None:
        """Take in that the server cannot be asked, and begin a tick."""
        if why != self.problem:
            self.problem = why
            self.log(None, why)
            self.begin_tick()

    @property
    def now(self) -> float:
        """Seconds since 1970."""
        return self._wall_clock()

    def _log_changes(self, was: Mapping[str, HostCondition], *, is_first: bool) -> None:
        """Say which hosts are other than they were: one line for all of a kind."""
        changed: dict[HostCondition, list[str]] = {}
        for name, host in sorted(self.hosts.items()):
            # Of the first ones only those are named with which something is wrong.
            before = was.get(name, "healthy" if is_first else None)
            if host.condition != before:
                changed.setdefault(host.condition, []).append(name)
        for condition, names in changed.items():
            verb = "is" if len(names) == 1 else "are"
            self.log(None, f"{_list_names(names)} {verb} {condition}")

    def _log_job(self, view: ClusterView) -> None:
        """Say that a job has begun, and what came of it."""
        report = view.report_job()
        if report is None:
            return
        job, is_settled = report.job, report.is_settled or report.job.until < self.now
        if (job.id, is_settled) == self._job:
            return
        if job.id != self._job[0] or is_settled:
            self.log(None, f"job {job.id}: {report.describe()}")
        self._job = job.id, is_settled

    def _forget(self) -> None:
        """Keep no more of the hosts that are gone than somebody may look for."""
        gone = sorted(
            (host.age or math.inf, name)
            for name, host in self.hosts.items()
            if host.condition == "gone"
        )
        for number, (age, name) in enumerate(gone):
            if age > _FORGOTTEN or number >= _MOST_GONE:
                del self.hosts[name]


def _list_names(names: Iterable[str]) -> str:
    listed = list(names)
    shown, others = listed[:_MOST_NAMES], len(listed) - _MOST_NAMES
    return ", ".join(shown) + (f" and {others} others" if others > 0 else "")
