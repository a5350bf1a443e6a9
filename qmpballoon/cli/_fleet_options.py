"""Arguments and options that the subcommands on fleets take: which VMs, which host."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_args

import click

from qmpballoon._checks import read_port
from qmpballoon.cli._completion import complete_vm
from qmpballoon.cli._options import SECONDS, read_positive_size, read_size
from qmpballoon.fleet.host_memory import HostMemory
from qmpballoon.fleet.policy import PolicyName, Rules
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "VMS",
    "add_host_options",
    "allow_host_option",
    "policy_option",
    "read_listen_address",
    "timeout_option",
    "users_option",
    "vms_argument",
]

_T = TypeVar("_T")

VMS: Final = (
    "VMS are globs of monitor sockets (quoted: '/run/vms/*.qmp'), addresses like"
    " tcp:HOST:PORT or libvirt:NAME, or files (*.toml) with the limits of each VM."
    " Without any, they are the QEMUs that run on this host. The command holds their"
    " monitors while it runs, and a monitor serves one client: a VM that other programs"
    " talk to needs a second -qmp."
)
"""The end of each command's help."""

vms_argument: Final = click.argument(
    "vms", nargs=-1, metavar="[VMS]...", shell_complete=complete_vm
)
users_option: Final = click.option(
    "--user",
    "users",
    multiple=True,
    metavar="NAME",
    help="Trust the QEMUs and sockets of this user as well, where VMs are found by"
    " processes or globs; can be repeated. Root trusts only those named.  [default:"
    " yourself; as root: root, qemu, libvirt-qemu]",
)
allow_host_option: Final = click.option(
    "--allow-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="Answer requests for this host name, too; can be repeated. Those for an"
    " address, for this machine's name and for localhost are answered anyway.",
)
timeout_option: Final = click.option(
    "--timeout",
    type=SECONDS,
    default=6.0,
    metavar="SECONDS",
    help="How long to wait at the start for VMs that do not answer.",
)
policy_option: Final = click.option(
    "--policy",
    type=click.Choice(get_args(PolicyName)),
    default="available",
    help="What is made equal among the guests, by their weights: the share of their RAM"
    " that they have available above their headroom (`available`), how far they are"
    " between floor and ceiling (`proportional`), or their size (`shares`).",
)
_HOST_OPTIONS: Final = (
    click.option(
        "--reserve",
        type=read_size,
        metavar="SIZE",
        help="How much memory the host keeps available.  [default: 5 % of its memory,"
        " and 256MiB]",
    ),
    click.option(
        "--reserve-hard",
        type=read_size,
        metavar="SIZE",
        help="The part of the reserve that the host keeps whatever guests need. The"
        " rest is for guests that would soon kill processes.  [default: a quarter of"
        " the reserve]",
    ),
    click.option(
        "--limit",
        type=read_positive_size,
        metavar="SIZE",
        help="How much of the host's memory all VMs together may hold.  [default: all]",
    ),
    click.option(
        "--cgroup",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="The folder of the control group (v2) that the VMs run in. Its limit and"
        " its memory pressure then count, too.",
    ),
    policy_option,
)


def add_host_options(command: Callable[..., _T]) -> Callable[..., _T]:
    """Add the options on the host and the policy to a command.

    Instead of their values, the command is given ``memory``, which reads the host's
    memory, and ``rules``.
    """

    @functools.wraps(command)
    def call(
        *,
        reserve: int | None,
        reserve_hard: int | None,
        limit: int | None,
        cgroup: Path | None,
        policy: PolicyName,
        **others: Any,  # noqa: ANN401 - the command's own options
    ) -> _T:
        memory = HostMemory(limit=limit, cgroup=cgroup)
        rules = _make_rules(memory, reserve, reserve_hard, policy)
        return command(memory=memory, rules=rules, **others)

    for option in reversed(_HOST_OPTIONS):
        call = option(call)
    return call


def _make_rules(
    memory: HostMemory,
    reserve: int | None,
    reserve_hard: int | None,
    policy: PolicyName,
) -> Rules:
    """Return the rules for a host, from the options.

    Args:
        memory: Reads the host's memory.
        reserve: Bytes the host is to keep available; ``None`` for the default.
        reserve_hard: Bytes of them that it keeps whatever guests need, likewise.
        policy: What is levelled out among the guests.

    Raises:
        OSError: The host's memory cannot be read.
        click.UsageError: The options contradict each other, or the host.
    """
    group = memory.cgroup
    if group is not None and not (group / "memory.max").exists():
        raise click.UsageError(
            f"{group} has no memory.max: give a group of cgroup v2, not its root, that"
            " has the memory controller"
        )
    total = memory.read().total
    try:
        rules = Rules.for_host(total, reserve, policy, reserve_hard)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if rules.reserve >= total:
        raise click.UsageError(
            f"a reserve of {format_size(rules.reserve)} leaves nothing of the"
            f" {format_size(total)} there are: give the host less to keep (--reserve),"
            " or VMs a higher limit"
        )
    return rules


def read_listen_address(text: str) -> tuple[str, int]:
    """Read ``HOST:PORT``; without a host only this machine can connect."""
    host, _, number = text.rpartition(":")
    try:
        port = read_port(number)
    except ValueError as error:
        raise click.UsageError(f"{error}; 0 is one that is free") from error
    if port is None:
        raise click.UsageError(f"{text!r} has no port: write HOST:PORT, or PORT")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise click.UsageError(
            f"{text!r} has an IPv6 host without brackets: write [HOST]:PORT"
        )
    return host.strip("[]") or "127.0.0.1", port
