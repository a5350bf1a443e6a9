"""The ``qmpballoon`` command.

Each subcommand is a module of its own, and is imported only when it is used. It imports
the modules that draw only when something is drawn. So ``status --json`` starts fast, as
monitoring scripts need it.

The packages that only the command needs come with the extra ``cli``. They are not
imported before :func:`main`, which names the extra if one is missing.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["main"]

_EXTRAS: Final = {
    "anyio": "cluster",
    "click": "cli",
    "coredis": "cluster",
    "h11": "web",
    "libvirt": "libvirt",
    "matplotlib": "charts",
    "plotext": "cli",
    "prometheus_client": "prometheus",
    "rich": "cli",
}
_INTERRUPTED: Final = 130


def main(
    arguments: Sequence[str] | None = None, *, remedies: Mapping[str, str] | None = None
) -> NoReturn:
    """Run the command and exit with its status.

    Args:
        arguments: The command line without the program's name; by default the
            process' own.
        remedies: What to run where a module of an extra is not installed, by the
            module's name; by default pip. A distribution's package, which pip must not
            change, gives its own (``debian/command``).
    """
    _make_writable()
    sys.exit(_run(sys.argv[1:] if arguments is None else arguments, remedies or {}))


def _make_writable() -> None:
    """Make sure that any text can be written to any standard stream.

    Names of VMs and files may have characters that the terminal's encoding lacks. And
    a stream may be closed. It is then replaced by the null device: otherwise the next
    socket would get the free descriptor, and be written to.
    """
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(nowhere, "r" if name == "stdin" else "w"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run(arguments: Sequence[str], remedies: Mapping[str, str]) -> int:
    try:
        from qmpballoon.cli._group import run  # noqa: PLC0415 - needs the extra

        return run(arguments)
    except ModuleNotFoundError as error:
        module = error.name or ""
        if module not in _EXTRAS:
            raise
        pip = f"pip install 'qmpballoon[{_EXTRAS[module]}]'"
        remedy = remedies.get(module, pip)
        sys.stderr.write(f"qmpballoon: {module} is not installed: {remedy}\n")
        return 1
    except KeyboardInterrupt:  # before anything was started
        return _INTERRUPTED
