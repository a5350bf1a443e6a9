"""The ``qmpballoon`` command.

Each subcommand is a module of its own, loaded when it is called for, and each loads
what draws and paints only when something is drawn: ``status --json`` in a monitoring
script starts as fast as Python lets it.

What it needs besides the library comes with the extra ``cli``. So nothing of that is
imported before :func:`main`, which tells what to install.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

_EXTRAS: Final = {
    "click": "cli",
    "libvirt": "libvirt",
    "matplotlib": "charts",
    "plotext": "cli",
    "prometheus_client": "prometheus",
    "rich": "cli",
}
_INTERRUPTED: Final = 130


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit with its status.

    Args:
        arguments: The command line without the program's name; by default the
            process' own.
    """
    _make_writable()
    sys.exit(_run(sys.argv[1:] if arguments is None else arguments))


def _make_writable() -> None:
    """See to it that whatever is written can be, on any standard stream.

    Names of VMs and files need not be what the terminal's encoding has. And streams
    may be closed: what nobody wants to see goes nowhere, and above all not to a socket
    that has come by the free descriptor.
    """
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(nowhere, "r" if name == "stdin" else "w"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run(arguments: Sequence[str]) -> int:
    try:
        from qmpballoon.cli._group import run  # noqa: PLC0415 - needs the extra

        return run(arguments)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(error.name or "")
        if extra is None:
            raise
        sys.stderr.write(
            f"qmpballoon: {error.name} is not installed:"
            f" pip install 'qmpballoon[{extra}]'\n"
        )
        return 1
    except KeyboardInterrupt:  # before there was anything to put in order
        return _INTERRUPTED
