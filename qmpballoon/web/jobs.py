"""Changes that people ask for on a page: one at a time for each VM, with its progress.

Each of them is a call of the library that watches the guest, with the VM's limits in
the fleet, or the default guard. It can be stopped at any time: a reclaim then gives the
memory back, and a resize leaves the guest at the size that it has reached.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, cast

import trio
from attrs import define, evolve, field

from qmpballoon._printable import describe_bug, make_printable
from qmpballoon.balloon.guard import RESIZE_GUARD, Guard
from qmpballoon.errors import BalloonBusy, MonitorUnreachable, QmpBalloonError
from qmpballoon.export.summary import describe_reclaim
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qmpballoon._transport.trio_tasks import BackgroundTasks
    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.balloon.results import Plan
    from qmpballoon.balloon.sampling import Progress
    from qmpballoon.fleet.supervisor import Supervisor
    from qmpballoon.web.board import Board, VmOnBoard

__all__ = ["Job", "JobKind", "Jobs"]

JobKind = Literal["reclaim", "resize", "give-back"]
JobState = Literal["running", "done", "stopped", "failed"]

_SHOW_EVERY: Final = 0.25  # seconds between two samples that are shown
_LOG: Final = logging.getLogger("qmpballoon.web")


@define
class Job:
    """One change of a VM.

    Attributes:
        vm: The VM's name.
        kind: What is done.
        text: Its progress, or how it ended, in a sentence.
        state: Whether it is under way, or how it ended.
        progress: Its progress; ``None`` before the balloon moves.
        report: Its result, as the command prints it.
        scope: Cancelled to stop it.
    """

    vm: str
    kind: JobKind
    text: str
    state: JobState = "running"
    progress: Progress | None = None
    report: dict[str, object] | None = None
    scope: trio.CancelScope = field(factory=trio.CancelScope, repr=False)

    @property
    def is_running(self) -> bool:
        """Whether it goes on."""
        return self.state == "running"

    def to_json(self) -> dict[str, object]:
        """Return it as it is served."""
        seen = self.progress
        return {
            "vm": self.vm,
            "kind": self.kind,
            "state": self.state,
            "text": self.text,
            "progress": seen
            and {
                "stage": seen.stage,
                "phase": seen.phase,
                "seconds": seen.seconds,
                "before": seen.before,
                "target": seen.target,
                "actual": seen.actual,
                "rate": seen.rate,
                "time_left": seen.time_left,
            },
            "report": self.report,
        }


class Jobs:
    """Does what people ask for.

    Args:
        supervisor: Knows the VMs.
        board: Is told what happens.
        tasks: Runs the jobs; its end stops them.
        on_change: As of :func:`qmpballoon.web.open_pages`.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        board: Board,
        tasks: BackgroundTasks,
        on_change: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._supervisor = supervisor
        self._board = board
        self._tasks = tasks
        self._on_change = on_change
        self._jobs: dict[str, Job] = {}

    def find(self, name: str) -> Job | None:
        """Return the last job of a VM, if there was one."""
        return self._jobs.get(name)

    async def plan(self, name: str, amount: int | None) -> Plan:
        """Return what a reclaim would take.

        Raises:
            QmpBalloonError: The VM cannot be asked, or is moved.
        """
        vm = self._get_vm(name)
        async with self._supervisor.borrow(name, vm.view.actual or 0) as balloon:
            return await balloon.plan_reclaim(amount, guard=_make_guard(vm))

    def reclaim(self, name: str, amount: int | None, *, hold: bool) -> Job:
        """Start a reclaim.

        Args:
            name: The VM's.
            amount: Bytes at most; ``None``: all that the guest can spare.
            hold: Keep what was taken.

        Raises:
            QmpBalloonError: The VM is not connected, or is moved.
        """
        vm = self._get_vm(name)

        async def call(balloon: Balloon, job: Job) -> None:
            report = await balloon.reclaim(
                amount,
                guard=_make_guard(vm),
                hold=hold,
                on_progress=partial(self._note_progress, job, vm, [-_SHOW_EVERY]),
            )
            self._supervisor.note_size(name, report.after.actual)
            job.report = report.to_json()
            why = f"{report.outcome}: {report.reason}"
            is_refused = report.outcome == "refused"
            job.text = why if is_refused else f"{describe_reclaim(report)}; {why}"

        size = vm.view.actual or 0
        what = "all that it can spare" if amount is None else format_size(amount)
        kept = ", and keep it" if hold else ""
        target = size if amount is None else max(size - amount, 1)
        job = Job(name, "reclaim", f"reclaim {what}{kept}")
        return self._start(vm, job, target, call)

    def resize(self, name: str, size: int, kind: JobKind = "resize") -> Job:
        """Start a resize, under its default guard, but not below the VM's floor.

        Args:
            name: The VM's.
            size: Bytes.
            kind: What it is called.

        Raises:
            QmpBalloonError: The VM is not connected, or is moved.
        """
        vm = self._get_vm(name)
        bounds, guard = vm.view.bounds, RESIZE_GUARD
        if bounds is not None:
            guard = evolve(guard, floor=bounds.floor)

        async def call(balloon: Balloon, job: Job) -> None:
            result = await balloon.resize(
                size,
                on_stall="settle",
                guard=guard,
                on_progress=partial(self._note_progress, job, vm, [-_SHOW_EVERY]),
            )
            self._supervisor.note_size(name, result.actual)
            job.report = result.to_json()
            why = "" if result.diagnosis is None else f"; {result.diagnosis.detail}"
            job.text = (
                f"{result.outcome}: {format_size(result.before)} \u2192"
                f" {format_size(result.actual)} in {result.seconds:.1f} s{why}"
            )

        job = Job(name, kind, f"{kind} to {format_size(size)}")
        return self._start(vm, job, size, call)

    def give_back(self, name: str) -> Job:
        """Start to give a guest all its RAM; raises as :meth:`resize`."""
        total = self._get_vm(name).view.total
        if total is None:
            raise MonitorUnreachable(
                f"{make_printable(name)}: its RAM is not known yet"
            )
        return self.resize(name, total, "give-back")

    def stop(self, name: str) -> bool:
        """Stop what is done with a VM; return whether there is something."""
        job = self._jobs.get(name)
        if job is None or not job.is_running:
            return False
        job.text = "is being stopped"
        job.scope.cancel()
        self._board.begin_tick()
        return True

    def _get_vm(self, name: str) -> VmOnBoard:
        vm = self._board.vms.get(name)
        if vm is None or not vm.is_there:
            raise MonitorUnreachable(f"there is no VM {make_printable(name)!r}")
        running = self._jobs.get(name)
        if running is not None and running.is_running:
            raise BalloonBusy(
                f"{make_printable(name)}: a {running.kind} goes on; stop it first"
            )
        return vm

    def _start(
        self,
        vm: VmOnBoard,
        job: Job,
        target: int,
        call: Callable[[Balloon, Job], Awaitable[None]],
    ) -> Job:
        self._log(job.vm, f"asked for: {job.text}")
        # Those of VMs that have no page any more are shown to nobody.
        self._jobs = {
            name: job
            for name, job in self._jobs.items()
            if job.is_running or name in self._board.vms
        }
        self._jobs[job.vm] = job
        self._tasks.start_soon(self._run, vm, job, target, call)
        return job

    async def _run(
        self,
        vm: VmOnBoard,
        job: Job,
        target: int,
        call: Callable[[Balloon, Job], Awaitable[None]],
    ) -> None:
        try:
            with job.scope:
                async with self._supervisor.borrow(job.vm, target) as balloon:
                    vm.is_moved = True
                    await call(balloon, job)
                    job.state = "done"
        except* QmpBalloonError as group:
            job.state, job.text = "failed", make_printable(str(_find_first(group)))
        except* Exception as group:  # noqa: BLE001 - a job's bug must not end the others
            job.state, job.text = "failed", describe_bug(_find_first(group))
            _LOG.exception("%s", make_printable(job.vm))
        finally:
            vm.is_moved = False
            if job.is_running:
                job.state, job.text = "stopped", f"the {job.kind} was stopped"
            self._log(job.vm, job.text)
            self._board.begin_tick()

    def _log(self, name: str, text: str) -> None:
        line = make_printable(f"{name}: {text}")
        _LOG.info("%s", line)
        self._on_change(line)
        self._board.log(name, text)

    def _note_progress(
        self, job: Job, vm: VmOnBoard, shown: list[float], seen: Progress
    ) -> None:
        """Show progress, some times a second and whenever something is marked."""
        job.progress = seen
        self._supervisor.note_size(job.vm, seen.actual, seen.sample.available)
        if seen.seconds - shown[0] < _SHOW_EVERY and seen.sample.mark is None:
            return
        shown[0] = seen.seconds
        job.text = f"{job.kind}: {_describe(seen)}"
        vm.note_progress(self._board.seconds, seen)
        self._board.begin_tick()


def _describe(seen: Progress) -> str:
    left = "" if seen.time_left is None else f", {seen.time_left:.0f} s left"
    return (
        f"{seen.stage}, {format_size(seen.actual)} on the way from"
        f" {format_size(seen.before)} to {format_size(seen.target)},"
        f" {format_size(round(seen.rate))}/s{left}"
    )


def _make_guard(vm: VmOnBoard) -> Guard:
    """Return the guard with the VM's own limits; they are the default ones if none."""
    bounds = vm.view.bounds
    if bounds is None:
        return Guard()
    return Guard(headroom=bounds.headroom, floor=bounds.floor)


def _find_first(error: BaseException) -> BaseException:
    """Return the first exception of a group, or the exception if it is not a group."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return error
