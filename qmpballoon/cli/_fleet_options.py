"""What the commands about fleets have in common: which VMs, and which host."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_args

import click

from qmpballoon.address import LibvirtVm
from qmpballoon.cli import _output
from qmpballoon.cli._options import SECONDS, positive_size, size
from qmpballoon.fleet.policy import PolicyName, Rules
from qmpballoon.fleet.sources import sources
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from qmpballoon.fleet.host_memory import Gauge
    from qmpballoon.fleet.sources import Source
    from qmpballoon.fleet.supervisor import Supervisor

__all__ = [
    "VMS",
    "fleet_options",
    "listen_address",
    "metrics_served",
    "note_nobody",
    "policy_option",
    "rules_for",
    "supervise",
    "timeout_option",
    "vms_argument",
]

_Command = TypeVar("_Command", bound="Callable[..., object]")

VMS: Final = (
    "VMS are globs of monitor sockets (quoted: '/run/vms/*.qmp'), addresses like"
    " tcp:HOST:PORT or libvirt:NAME, or files (*.toml) that say what is wanted of"
    " each VM. Without any, they are the QEMUs that run on this host. Sockets are"
    " held meanwhile: give a VM that others talk to as well a second -qmp."
)
"""What the help of each command ends in."""

_PORT_MAX: Final = 65535


def _source(vms: tuple[str, ...]) -> Source:
    """Return the source of VMs that the arguments mean."""
    try:
        return sources(vms)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


vms_argument: Final = click.argument("vms", nargs=-1, metavar="[VMS]...")
timeout_option: Final = click.option(
    "--timeout",
    type=SECONDS,
    default=6.0,
    metavar="SECONDS",
    help="How long to wait for VMs that do not answer.",
)
policy_option: Final = click.option(
    "--policy",
    type=click.Choice(get_args(PolicyName)),
    default="available",
    help="What is levelled out among the guests.",
)
_OPTIONS: Final = (
    click.option(
        "--reserve",
        type=size,
        metavar="SIZE",
        help="What the host keeps available.  [default: 5 % of its memory, and 256MiB]",
    ),
    click.option(
        "--limit",
        type=positive_size,
        metavar="SIZE",
        help="What all VMs together may hold of the host's memory.  [default: all]",
    ),
    click.option(
        "--cgroup",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="The folder of the control group (v2) that the VMs live in: its limit"
        " and pressure count, too.",
    ),
    policy_option,
)


def fleet_options(command: _Command) -> _Command:
    """Add what is wanted of the host."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def rules_for(gauge: Gauge, reserve: int | None, policy: PolicyName) -> Rules:
    """Return what the host is to keep to.

    Raises:
        OSError: The host's memory cannot be read.
        click.UsageError: The options contradict each other, or the host.
    """
    group = gauge.cgroup
    if group is not None and not (group / "memory.max").exists():
        raise click.UsageError(
            f"{group} has no memory.max: give a group of cgroup v2, not its root, that"
            " has the memory controller"
        )
    total = gauge.read().total
    rules = Rules.for_host(total, reserve, policy)
    if rules.reserve >= total:
        raise click.UsageError(
            f"a reserve of {format_size(rules.reserve)} leaves nothing of the"
            f" {format_size(total)} there are: give the host less to keep (--reserve),"
            " or VMs a higher limit"
        )
    return rules


def listen_address(text: str) -> tuple[str, int]:
    """Read ``HOST:PORT``; without a host only this machine can connect."""
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit()) or int(port) > _PORT_MAX:
        raise click.UsageError(f"{text!r} has no port: write HOST:PORT, or PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


@contextmanager
def metrics_served(
    supervisor: Supervisor, gauge: Gauge, rules: Rules, listen: tuple[str, int]
) -> Generator[str]:
    """Serve Prometheus metrics until the block is left; yield their URL."""
    import trio  # noqa: PLC0415 - loaded late

    from qmpballoon.fleet.metrics import Snapshot, serve  # noqa: PLC0415 - an extra

    def snapshot() -> Snapshot:
        host = gauge.read(supervisor.held, supervisor.promised)
        return Snapshot(host, rules, supervisor.views())

    def scrape() -> Snapshot:
        return trio.from_thread.run_sync(snapshot, trio_token=token)

    token = trio.lowlevel.current_trio_token()
    with ExitStack() as stack:
        try:
            host, port = stack.enter_context(serve(scrape, *listen))
        except OSError as error:
            raise click.UsageError(
                f"cannot listen on {listen[0]}:{listen[1]}: {error.strerror or error};"
                " give another HOST:PORT, or port 0 for one that is free"
            ) from error
        at = f"[{host}]" if ":" in host else host
        yield f"http://{at}:{port}/metrics"


def note_nobody(supervisor: Supervisor) -> None:
    """Say so where there are no VMs; some may come yet."""
    if not supervisor.views():
        _output.note("there are no VMs: name their sockets, like '/run/vms/*.qmp'")


def supervise(
    vms: tuple[str, ...],
    period: float,
    main: Callable[[Supervisor], Awaitable[Any]],
) -> Any:  # noqa: ANN401 - what main returns
    """Supervise VMs while something is done with them."""
    source = _source(vms)
    if any(isinstance(spec.address, LibvirtVm) for spec in source()):
        import_module("libvirt")  # refused here where it is not installed

    import random  # noqa: PLC0415 - loaded late

    from qmpballoon.cli._connect import open_monitor  # noqa: PLC0415 - loads trio
    from qmpballoon.cli._session import run  # noqa: PLC0415 - loads trio
    from qmpballoon.fleet.settings import Settings  # noqa: PLC0415 - loaded late
    from qmpballoon.fleet.supervisor import open_fleet  # noqa: PLC0415 - loads trio

    async def main_supervised() -> Any:  # noqa: ANN401
        settings = Settings(period=period, stale_after=max(5.0, 3 * period))
        # Looks are spread out: nothing secret about it.
        rng = random.Random()  # noqa: S311
        async with open_fleet(
            source, rng, settings=settings, opener=open_monitor
        ) as supervisor:
            return await main(supervisor)

    return run(main_supervised)
