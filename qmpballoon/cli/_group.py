"""The table of subcommands, and how a command line becomes an exit status."""

from __future__ import annotations

import os
import re
import signal
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import click

import qmpballoon
from qmpballoon.cli import _output

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["command_line", "run"]

# A shell sets it when it wants to know how a word could go on: click's name for it.
_COMPLETE: Final = "_QMPBALLOON_COMPLETE"
# Name, and what `--help` says of it. The command is the function of that name in
# the module of that name.
_COMMANDS: Final = {
    "status": "Show a VM, its balloon and its guest's memory.",
    "doctor": "Say what stands in the way of a reclaim, and what helps.",
    "resize": "Bring a guest to a size, and show the progress.",
    "reclaim": "Take from a guest the memory that it does not need.",
    "watch": "Watch balloon, guest and host, live.",
    "plot": "Draw what `watch --record` has recorded.",
    "demo": "Boot a guest, and reclaim its page cache.",
    "fleet": "Show all VMs of a host, and move memory between them.",
    "web": "Serve pages of all VMs of a host for a browser, live.",
    "cluster": "Show many hosts, and take memory where it hurts least.",
    "exporter": "Serve metrics of all VMs of a host to Prometheus.",
    "fake": "Serve a simulated VM, to test other clients with.",
}


class _LazyGroup(click.Group):
    """A group that imports a subcommand only when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(
            import_module(f"qmpballoon.cli.{cmd_name}"), cmd_name
        )
        return command

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002
        formatter: click.HelpFormatter,
    ) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(
    cls=_LazyGroup,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "show_default": True,
    },
    epilog="SOCKET is the path that QEMU was started with, as in -qmp"
    " unix:SOCKET,server=on,wait=off; or tcp:HOST:PORT; or libvirt:NAME for a VM that"
    " libvirt manages. Sizes are like 2G, 512MiB or 50%. Exit status: 0 done, 1"
    " unexpected, 2 wrong usage, 3 the balloon did not reach its target, 4 the"
    " monitor, or a cluster's server, cannot be reached or is busy, 5 no balloon"
    " device or no answer from the guest, 6 refused as unsafe, 129, 130 or 143"
    " interrupted in the middle.",
)
@click.version_option(qmpballoon.__version__, message="%(prog)s %(version)s")
def command_line() -> None:
    """Control the virtio-balloon of QEMU's VMs over the QMP monitor socket."""


def run(arguments: Sequence[str]) -> int:
    """Run a command line, print what went wrong, and return the exit status."""
    if _COMPLETE in os.environ:
        import_module("qmpballoon.cli._completion")  # tells click of the shells
    try:
        status: Any = command_line.main(
            list(arguments), prog_name="qmpballoon", standalone_mode=False
        )
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return _output.USAGE
    except click.Abort as error:
        if isinstance(error.__cause__, EOFError):  # click takes it for Ctrl-D
            return _output.fail(error.__cause__)
        # Ctrl-C outside trio, where nothing has to be cleaned up
        return _output.fail(_output.Interrupted(signal.SIGINT))
    except click.ClickException as error:
        _output.note(_explain(error))
        return _output.USAGE
    except Exception as error:  # noqa: BLE001 - fail() raises bugs again
        return _output.fail(error)
    return status if isinstance(status, int) else _output.DONE


def _explain(error: click.ClickException) -> str:
    """Say in one line what is wrong with a command line, and where to find help."""
    message = error.format_message()
    if isinstance(error, click.NoSuchOption) and re.match(r"-\d", error.option_name):
        message = (
            f"{error.option_name} is not a size, sizes are not negative: write bytes,"
            " or like 512MiB, 1.5G or 50%"
        )
    context = getattr(error, "ctx", None)
    if context is None:
        return message
    return f"{message.rstrip('.')} (see {context.command_path} --help)"
