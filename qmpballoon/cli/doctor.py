"""``qmpballoon doctor``: say what stands in the way of a reclaim, and what helps."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

import click
from attrs import field, frozen

from qmpballoon._printable import make_printable
from qmpballoon.address import LibvirtVm
from qmpballoon.cli import _output
from qmpballoon.cli._findings import find_findings, is_about_monitor
from qmpballoon.cli._fleet_options import VMS, users_option, vms_argument
from qmpballoon.cli._fleet_session import find_source
from qmpballoon.cli._options import (
    PERIOD,
    SECONDS,
    connect_timeout_option,
    json_option,
)
from qmpballoon.fleet.processes import choose_users, find_processes
from qmpballoon.fleet.vm_spec import Refused, VmSpec

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from qmpballoon.cli._findings import Finding, Severity
    from qmpballoon.fleet.processes import QemuProcess

__all__ = ["doctor"]

_AT_ONCE: Final = 32  # VMs that are examined at one time: each takes a connection
_NAME: Final = 100  # characters of a VM's name at most
_MORE: Final = "What each means: man qmpballoon-doctor"
_STATUS: Final[dict[Severity, int]] = {
    "error": _output.NO_BALLOON,
    "warning": _output.NOT_REACHED,
    "note": _output.DONE,
}


@frozen(kw_only=True)
class _Limits:
    """How long an examination may take, in seconds: to connect, to ask, to watch."""

    connect: float
    ask: float
    watch: float


@frozen(kw_only=True)
class _Report:
    """What is known of one VM, and what stands in the way."""

    name: str
    address: str
    pid: int | None = None
    version: str = ""
    status: str = ""
    findings: Sequence[Finding] = field(factory=list["Finding"])

    def to_json(self) -> dict[str, object]:
        """Return it as it is printed."""
        return {
            "name": self.name,
            "address": self.address or None,
            "qemu": {"version": self.version or None, "pid": self.pid},
            "status": self.status or None,
            "findings": [finding.to_json() for finding in self.findings],
        }


@click.command(
    epilog=f"{VMS} Exit status, by the worst finding: 0 nothing but notes, 3 warnings,"
    " 5 a reclaim gets nothing, 4 a VM's monitor cannot be used."
)
@vms_argument
@users_option
@connect_timeout_option
@click.option(
    "--timeout",
    type=SECONDS,
    default=8.0,
    metavar="SECONDS",
    help="How long QEMU may take to answer everything.",
)
@click.option(
    "--watch",
    type=PERIOD,
    default=1.0,
    metavar="SECONDS",
    help="How long to watch whether somebody else moves the balloon. Managers move it"
    " every few seconds.",
)
@json_option
def doctor(
    *,
    vms: tuple[str, ...],
    users: tuple[str, ...],
    connect_timeout: float,
    timeout: float,
    watch: float,
    as_json: bool,
) -> int:
    """Say what stands in the way of a reclaim, and what helps.

    Nothing is changed. The guest is asked to report its memory, and the monitor is held
    for a second or two.
    """
    from qmpballoon.cli._session import run  # noqa: PLC0415 - loads trio

    found = find_source(vms, users)()
    if any(isinstance(getattr(each, "address", None), LibvirtVm) for each in found):
        import_module("libvirt")  # fails here, before anything, if not installed
    limits = _Limits(connect=connect_timeout, ask=timeout, watch=watch)
    trusted = choose_users(users)
    reports = run(lambda: _examine_all(found, trusted, limits))
    if as_json:
        _output.print_json({"vms": [report.to_json() for report in reports]})
    elif reports:
        _output.say("\n\n".join([*map(_describe, reports), _MORE]))
    if not reports:
        _output.note("there are no VMs: name their sockets, like '/run/vms/*.qmp'")
    return _choose_status(reports)


async def _examine_all(
    found: Sequence[VmSpec | Refused], users: Collection[int], limits: _Limits
) -> list[_Report]:
    """Examine all VMs, many at one time; return what was found in their order."""
    import trio  # noqa: PLC0415 - loaded last

    from qmpballoon._transport.trio_tasks import BackgroundTasks  # noqa: PLC0415

    processes = find_processes(users)
    reports: dict[int, _Report] = {}
    turns = trio.Semaphore(_AT_ONCE)

    async def examine(number: int, each: VmSpec | Refused) -> None:
        async with turns:
            reports[number] = await _examine(each, processes, limits)

    async with BackgroundTasks(shield=False) as tasks:
        for number, each in enumerate(found):
            tasks.start_soon(examine, number, each)
        await tasks.wait()
    return [reports[number] for number in sorted(reports)]


async def _examine(
    found: VmSpec | Refused,
    processes: Sequence[QemuProcess | Refused],
    limits: _Limits,
) -> _Report:
    """Examine one VM, as far as it can be reached."""
    from qmpballoon.cli._facts import (  # noqa: PLC0415 - loaded late
        explain_refused,
        explain_unreachable,
    )
    from qmpballoon.errors import MonitorError  # noqa: PLC0415

    if isinstance(found, Refused):
        refusal = explain_refused(found, processes)
        return _Report(
            name=found.name, address=found.address, pid=found.pid, findings=[refusal]
        )
    try:
        return await _ask(found, limits)
    except MonitorError as error:
        failure = explain_unreachable(error)
        return _Report(
            name=found.name,
            address=str(found.address),
            pid=getattr(error, "pid", None),
            findings=[failure],
        )


async def _ask(spec: VmSpec, limits: _Limits) -> _Report:
    """Connect to a VM's monitor, and ask.

    Raises:
        MonitorError: It does not answer.
    """
    import trio  # noqa: PLC0415 - loaded last

    from qmpballoon.cli._connect import open_monitor  # noqa: PLC0415
    from qmpballoon.cli._facts import gather, read_host  # noqa: PLC0415
    from qmpballoon.errors import MonitorTimeout  # noqa: PLC0415

    # Who is locked out of the shared monitor cannot be seen to move the balloon.
    async with open_monitor(
        spec.address, timeout=limits.connect, own="auto"
    ) as monitor:
        with trio.move_on_after(limits.ask + limits.watch):
            facts = await gather(monitor, limits.watch)
            facts = read_host(facts, spec.address, monitor.pid, monitor.resident())
            return _Report(
                name=spec.name,
                address=str(spec.address),
                pid=monitor.pid,
                version=facts.version,
                status=facts.status,
                findings=find_findings(facts),
            )
    raise MonitorTimeout(
        f"the monitor on {spec.address} did not answer everything within"
        f" {limits.ask:g} s: QEMU is stopped or overloaded"
    )


def _describe(report: _Report) -> str:
    """Format it for people: the VM, and a line for each finding."""
    address = "" if report.address == report.name else report.address
    version = f"QEMU {report.version}" if report.version else ""
    name = make_printable(report.name, _NAME)
    about = filter(None, (name, address, version, report.status))
    heading = make_printable(", ".join(about))
    lines = [
        f"{finding.severity}: {finding.detail} ({finding.kind})"
        for finding in report.findings
    ]
    return "\n".join([heading, *(lines or ["nothing stands in the way"])])


def _choose_status(reports: Sequence[_Report]) -> int:
    """Return the exit status for the worst finding of all VMs."""
    findings = [finding for report in reports for finding in report.findings]
    if any(map(is_about_monitor, findings)):
        return _output.NO_MONITOR
    weights = [_STATUS[finding.severity] for finding in findings]
    return max(weights, default=_output.DONE)
