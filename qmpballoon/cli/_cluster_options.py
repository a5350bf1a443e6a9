"""Options on a cluster: which server, and as which host to join."""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from attrs import frozen

from qmpballoon.cluster.bus import require_host_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.cluster.valkey import BusAddress

__all__ = ["SERVER", "Membership", "add_membership_options", "cluster_option"]

_T = TypeVar("_T")
_F = TypeVar("_F", bound="Callable[..., Any]")

SERVER: Final = (
    "URL is like valkeys://USER@HOST?ca=FILE&cert=FILE&password_file=FILE. valkey:// is"
    " without TLS, and unix:///PATH a socket of this host. The password is read from"
    " the file, or from the environment variable QMPBALLOON_CLUSTER_PASSWORD."
)
"""The end of the help of commands on clusters."""


def _read_url(text: str) -> BusAddress:
    """Read the server's URL."""
    # Late: it loads trio, and fails where the extra is not installed.
    from qmpballoon.cluster.valkey import parse_bus_address  # noqa: PLC0415

    try:
        return parse_bus_address(text)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def cluster_option(
    *, required: bool, text: str, reads_environment: bool = True
) -> Callable[[_F], _F]:
    """Return the option that names the server.

    Args:
        required: Whether it has to be given.
        text: What it is for.
        reads_environment: Whether a variable of the environment can give it, too.
    """
    return click.option(
        "--cluster",
        type=_read_url,
        required=required,
        metavar="URL",
        envvar="QMPBALLOON_CLUSTER" if reads_environment else None,
        show_envvar=reads_environment,
        help=text,
    )


@frozen
class Membership:
    """As what a host joins a cluster.

    Attributes:
        address: The server.
        host: The host's name.
        folder: Where it keeps the last policy, and which jobs it has begun.
        lowers: What a policy may lower: ``"reserve"``, ``"floors"``.
    """

    address: BusAddress
    host: str
    folder: Path
    lowers: frozenset[str]


def add_membership_options(command: Callable[..., _T]) -> Callable[..., _T]:
    """Add the options with which a host joins a cluster to a command.

    Instead of their values the command is given ``membership``; ``None``: it joins
    none.
    """

    @functools.wraps(command)
    def call(
        *,
        cluster: BusAddress | None,
        host: str | None,
        state: Path | None,
        may_lower: tuple[str, ...],
        **others: Any,  # noqa: ANN401 - the command's own options
    ) -> _T:
        membership = None
        if cluster is not None:
            name = _choose_name(host)
            folder = (state or _find_state_folder()) / "cluster" / name
            membership = Membership(cluster, name, folder, frozenset(may_lower))
        elif host or state or may_lower:
            raise click.UsageError(
                "--host, --state and --may-lower are for members of a cluster: add"
                " --cluster URL"
            )
        return command(membership=membership, **others)

    for option in reversed(_MEMBERSHIP_OPTIONS):
        call = option(call)
    return call


_MEMBERSHIP_OPTIONS: Final = (
    cluster_option(
        required=False,
        text="Join the cluster of this server: report this host's state, and follow the"
        " cluster's policy and jobs. Without the server the host continues by itself.",
    ),
    click.option(
        "--host",
        metavar="NAME",
        help="The name of this host in the cluster.  [default: what `hostname` prints]",
    ),
    click.option(
        "--state",
        type=click.Path(file_okay=False, path_type=Path),
        help="The folder in which the host keeps the cluster's last policy, and which"
        " jobs it has begun.  [default: systemd's StateDirectory, or"
        " /var/lib/qmpballoon for root, or ~/.local/state/qmpballoon]",
    ),
    click.option(
        "--may-lower",
        type=click.Choice(["reserve", "floors"]),
        multiple=True,
        help="Let the cluster's policy lower this host's reserve, or the floors of its"
        " VMs, too; can be repeated. Otherwise it only raises them.",
    ),
)


def _choose_name(host: str | None) -> str:
    try:
        return require_host_name(socket.gethostname() if host is None else host)
    except ValueError as error:
        raise click.UsageError(f"{error} (--host)") from error


def _find_state_folder() -> Path:
    """Return the folder for what outlives a restart; see file-hierarchy(7)."""
    if given := os.environ.get("STATE_DIRECTORY"):  # several are separated by colons
        return Path(given.partition(":")[0])
    if os.geteuid() == 0:
        return Path("/var/lib/qmpballoon")
    home = os.environ.get("XDG_STATE_HOME")
    return Path(home or Path.home() / ".local" / "state") / "qmpballoon"
