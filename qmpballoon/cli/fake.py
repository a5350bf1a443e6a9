"""``qmpballoon fake``: a simulated VM on a socket, for clients in any language."""

from __future__ import annotations

import contextlib
import os
import random
import re
import time
from typing import TYPE_CHECKING, Any, Final

import click

from qmpballoon import testing
from qmpballoon.cli import _output
from qmpballoon.cli._options import positive_size, size
from qmpballoon.sizes import GiB

if TYPE_CHECKING:
    from qmpballoon.testing import Machine

__all__ = ["fake"]

_DIMMS: Final = 4
_IDENTIFIER: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
_GRANULE: Final = 8192  # bytes; QEMU rounds a VM's RAM up to whole ones


def _identifier(_: click.Context, __: click.Parameter, value: str) -> str:
    """Refuse what QEMU refuses as an id."""
    if not _IDENTIFIER.fullmatch(value):
        raise click.BadParameter(
            f"{value!r} is not an id: begin with a letter, and go on with letters,"
            " digits, '-', '.' and '_'"
        )
    return value


@click.command()
@click.argument("socket", type=click.Path(dir_okay=False))
@click.option(
    "--profile",
    type=click.Choice(testing.PROFILES),
    default=testing.PROFILES[-1],
    help="The QEMU version whose words it speaks.",
)
@click.option(
    "--memory", type=positive_size, default="2GiB", metavar="SIZE", help="The VM's RAM."
)
@click.option(
    "--used",
    type=size,
    default="123MiB",
    metavar="SIZE",
    help="In use by the guest's processes.",
)
@click.option(
    "--cache",
    type=size,
    default="1GiB",
    metavar="SIZE",
    help="The guest's page cache at the start.",
)
@click.option("--paused", is_flag=True, help="Wait for `cont` before booting.")
@click.option("--no-driver", is_flag=True, help="A guest without a balloon driver.")
@click.option("--no-balloon", is_flag=True, help="A VM without a balloon.")
@click.option(
    "--id",
    "name",
    callback=_identifier,
    default="balloon0",
    metavar="ID",
    help="The balloon's id in QEMU.",
)
@click.option("--seed", type=int, default=0, help="The same seed acts the same.")
def fake(socket: str, **options: Any) -> None:  # noqa: ANN401 - one each, from above
    """Serve a simulated VM on the unix socket SOCKET until interrupted.

    It answers as QEMU does, word for word, and has a guest whose memory acts as a
    Linux guest's does. DIMMs can be plugged in.
    """
    from qmpballoon.cli._session import run  # noqa: PLC0415 - loads trio

    # An interruption is how it is meant to end.
    with contextlib.suppress(_output.Interrupted):
        run(lambda: _serve(socket, **options))


async def _serve(socket: str, **options: Any) -> None:  # noqa: ANN401 - likewise
    import trio  # noqa: PLC0415 - loaded last

    from qmpballoon.testing import open_fake  # noqa: PLC0415 - loads trio

    failure: Exception | None = None  # raised outside, where it is put into no group
    async with open_fake(_machine(**options)) as qemu, trio.open_nursery() as nursery:
        try:
            await nursery.start(qemu.listen, socket)
        except OSError as error:
            failure = click.UsageError(
                f"cannot listen on {socket}: {error.strerror or error}; give a new"
                " path, in a folder that is there"
            )
        else:
            try:
                _output.say(
                    f"A simulated QEMU {options['profile']} listens on {socket}"
                )
            except (OSError, _output.Interrupted) as error:
                failure = error
                nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _machine(
    *,
    profile: str,
    memory: int,
    used: int,
    cache: int,
    paused: bool,
    no_driver: bool,
    no_balloon: bool,
    name: str,
    seed: int,
) -> Machine:
    from qmpballoon.testing import (  # noqa: PLC0415 - likewise
        GuestConfig,
        Machine,
        MachineConfig,
    )

    memory = -(-memory // _GRANULE) * _GRANULE
    config = MachineConfig(
        memory=memory,
        slots=_DIMMS,
        max_memory=memory + 64 * GiB,
        balloon=None if no_balloon else "virtio-balloon-pci",
        balloon_id=name,
        paused=paused,
        pid=os.getpid(),
        epoch=time.time_ns(),
        guest=GuestConfig(used=used, cache=cache, driver=not no_driver),
    )
    return Machine(config, testing.profile(profile), random.Random(seed))  # noqa: S311 - a simulation
