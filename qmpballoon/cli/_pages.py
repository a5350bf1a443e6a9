"""Serves pages for a subcommand: where, and for whom."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from attrs import frozen

from qmpballoon._transport.http_hosts import KnownHosts, is_loopback
from qmpballoon.cli import _output
from qmpballoon.cli._fleet_options import read_listen_address
from qmpballoon.cli.render.fleet import host_to_json

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncGenerator, Callable, Generator

    from qmpballoon.cluster.bus import Bus
    from qmpballoon.fleet.host_memory import HostMemory
    from qmpballoon.fleet.policy import Rules
    from qmpballoon.fleet.supervisor import Supervisor
    from qmpballoon.web.access import Access
    from qmpballoon.web.board import Board
    from qmpballoon.web.cluster_board import ClusterBoard

__all__ = [
    "PageAddress",
    "fleet_to_json",
    "open_cluster_pages",
    "open_pages",
    "read_page_address",
]

PageAddress = tuple[str, int] | Path
"""Where pages are served: an address and a port, or a unix socket."""

_UNIX: Final = "unix:"
_TOKEN_BYTES: Final = 32
_SHORTEST_TOKEN: Final = 32  # characters of a token that somebody has chosen
_LONGEST_TOKEN: Final = 4096  # bytes; a header has to have room for it
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def read_page_address(text: str) -> PageAddress:
    """Read ``[HOST:]PORT`` or ``unix:PATH``."""
    if text.startswith(_UNIX):
        return Path(text.removeprefix(_UNIX))
    return read_listen_address(text)


def read_prefix(text: str) -> str:
    """Read the path below which a proxy has the pages; without a slash at its end."""
    prefix = text.rstrip("/")
    if prefix and not (prefix.startswith("/") and prefix.isascii()):
        raise click.UsageError(f"{text!r} is no prefix: write one like /vms")
    if "//" in prefix or any(
        character in ';,"\\ ?#%' or not character.isprintable() for character in prefix
    ):
        raise click.UsageError(f"{text!r} is no prefix: write one like /vms")
    return prefix


def fleet_to_json(
    supervisor: Supervisor, memory: HostMemory, rules: Rules
) -> dict[str, object]:
    """Return the fleet as `fleet status --json` prints it."""
    host = memory.read(supervisor.held, supervisor.promised)
    return {
        "vms": [view.to_json() for view in supervisor.list_views()],
        "refused": [refused.to_json() for refused in supervisor.list_refused()],
        "host": host_to_json(host, rules),
    }


@asynccontextmanager
async def open_pages(
    supervisor: Supervisor,
    memory: HostMemory,
    get_rules: Callable[[], Rules],
    address: PageAddress,
    *,
    names: tuple[str, ...] = (),
    token_file: Path | None = None,
    prefix: str = "",
    allow_changes: bool = False,
    say: Callable[[str], None] = _output.say,
) -> AsyncGenerator[Board]:
    """Serve the pages within the block, and print their link.

    Args:
        supervisor: Knows the VMs.
        memory: Reads the host's memory.
        get_rules: Returns what the host keeps.
        address: Where to listen.
        names: Other names under which the server can be reached.
        token_file: Holds the token; made if it is not there. ``None``: a new token.
        prefix: As of :func:`qmpballoon.web.open_pages`.
        allow_changes: Whether balloons can be moved from the pages.
        say: Prints the link.

    Raises:
        click.UsageError: The address cannot be listened on, or the file is no good.
    """
    from qmpballoon import web  # noqa: PLC0415 - an extra

    with _listen(address, names, token_file, prefix) as at:
        async with web.open_pages(
            supervisor,
            at.listener,
            at.access,
            lambda: fleet_to_json(supervisor, memory, get_rules()),
            allow_changes=allow_changes,
            prefix=prefix,
            on_change=_output.note,
        ) as board:
            at.announce(say)
            yield board


@asynccontextmanager
async def open_cluster_pages(
    bus: Bus,
    address: PageAddress,
    *,
    names: tuple[str, ...],
    token_file: Path | None,
    prefix: str,
    period: float,
) -> AsyncGenerator[ClusterBoard]:
    """Serve the page of a cluster's hosts within the block, and print its link.

    Args:
        bus: The server between the hosts.
        address: Where to listen.
        names: As of :func:`open_pages`, and so are the rest.
        token_file: Likewise.
        prefix: Likewise.
        period: Seconds between two looks at all hosts.

    Raises:
        click.UsageError: As there.
    """
    from qmpballoon import web  # noqa: PLC0415 - an extra

    with _listen(address, names, token_file, prefix) as at:
        async with web.open_cluster_pages(
            bus, at.listener, at.access, prefix=prefix, period=period
        ) as board:
            at.announce(_output.say)
            yield board


@frozen
class _Place:
    """Where pages are served, and for whom."""

    listener: socket.socket
    access: Access
    link: str
    is_open: bool  # to the network

    def announce(self, say: Callable[[str], None]) -> None:
        """Print the link."""
        say(f"pages at {self.link}")
        if self.is_open:
            _output.note(
                "the link and all pages go over the network as they are: put a"
                " server with TLS before it"
            )


@contextmanager
def _listen(
    address: PageAddress, names: tuple[str, ...], token_file: Path | None, prefix: str
) -> Generator[_Place]:
    """Listen within the block; raises as :func:`open_pages`."""
    from qmpballoon import web  # noqa: PLC0415 - an extra

    host = "localhost" if isinstance(address, Path) else address[0]
    access = web.Access(_choose_token(token_file), KnownHosts.of(host, names))
    with ExitStack() as stack:
        listener = _open_listener(address, stack)
        link = _describe(listener, address, prefix, access.token)
        is_open = not isinstance(address, Path) and not is_loopback(host)
        yield _Place(listener, access, link, is_open)


def _open_listener(address: PageAddress, stack: ExitStack) -> socket.socket:
    from qmpballoon._transport.listening import (  # noqa: PLC0415 - loads sockets
        listen_at,
        listen_on,
    )

    if isinstance(address, Path):
        listening, where = listen_at(address), f"unix:{address}"
        instead = "a new path, in a folder that is there"
    else:
        listening, where = listen_on(*address), f"{address[0]}:{address[1]}"
        instead = "another HOST:PORT, or port 0 for one that is free"
    try:
        return stack.enter_context(listening)
    except OSError as error:
        raise click.UsageError(
            f"cannot listen on {where}: {error.strerror or error}; give {instead}"
        ) from error


def _describe(
    listener: socket.socket, address: PageAddress, prefix: str, token: str
) -> str:
    if isinstance(address, Path):
        return f"http://localhost{prefix}/?token={token} on unix:{address}"
    host, port = listener.getsockname()[:2]
    at = f"[{host}]" if ":" in host else host
    return f"http://{at}:{port}{prefix}/?token={token}"


def _choose_token(file: Path | None) -> str:
    if file is None:
        return secrets.token_urlsafe(_TOKEN_BYTES)
    try:
        return _read_token(file)
    except OSError as error:
        raise click.UsageError(
            f"{file} cannot be used: {error.strerror}; give a file in a folder that is"
            " there and yours"
        ) from error


def _read_token(file: Path) -> str:
    """Return the token in a file; where there is none, make one."""
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(file, flags, 0o600), "w", encoding="ascii") as made:
            made.write(f"{secrets.token_urlsafe(_TOKEN_BYTES)}\n")
    except FileExistsError:
        pass
    # What is checked is what is read. A FIFO must not keep us waiting.
    with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as found:
        about = os.fstat(found.fileno())
        if about.st_mode & _OTHERS:
            raise click.UsageError(
                f"other users can read or write {file}, which holds a secret: make it"
                " your own (chmod 600)"
            )
        if about.st_uid not in (0, os.geteuid()):
            raise click.UsageError(
                f"{file} belongs to another user, who can read the secret: give a file"
                " of your own"
            )
        token = (found.read(_LONGEST_TOKEN) or b"").decode("ascii", "replace").strip()
    if len(token) < _SHORTEST_TOKEN or not token.isprintable() or " " in token:
        raise click.UsageError(
            f"{file} holds no secret of {_SHORTEST_TOKEN} characters or more: remove"
            " it, and a new one is written"
        )
    return token
