"""What several subcommands take: sockets, sizes, files to write.

Whatever can be refused is refused here, before a socket is opened: a command that
was typed wrong has no effect. The functions are types for click: text in, a value
or a usage error out.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, Final

import click
from attrs import frozen

from qmpballoon import export
from qmpballoon.address import parse_vm
from qmpballoon.sizes import GiB, parse_size

if TYPE_CHECKING:
    from qmpballoon.address import Vm

__all__ = [
    "PERIOD",
    "SECONDS",
    "RelativeSize",
    "Seconds",
    "connect_timeout_option",
    "json_option",
    "positive_share",
    "positive_size",
    "record_file",
    "report_file",
    "share",
    "share_or_none",
    "size",
    "socket_argument",
]


class Seconds(click.FloatRange):
    """A number of seconds within a range; NaN is in none, and passes every bound."""

    def convert(
        self,
        value: Any,  # noqa: ANN401 - whatever click was given
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """Read it, or refuse it."""
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value} is no time: give seconds, like 1.5", param, ctx)
        return seconds


SECONDS: Final = Seconds(min=0, min_open=True)
PERIOD: Final = Seconds(min=0, min_open=True, max=86400)  # a day


@frozen
class RelativeSize:
    """A size that may be a share of the VM's memory, which is not known yet.

    Attributes:
        text: As it was written; known to be a size or a share.
    """

    text: str

    def of(self, whole: int | None) -> int:
        """Return bytes.

        Args:
            whole: The VM's memory in bytes; ``None`` where QEMU does not tell.

        Raises:
            click.UsageError: It is a share of something that is not known.
        """
        return _parse(self.text, whole)


def size(text: str) -> int:
    """Read a size such as ``512MiB``."""
    return _parse(text, None)


def positive_size(text: str) -> int:
    """Read a size above 0, such as ``512MiB``."""
    return _above_zero(text, _parse(text, None))


def share(text: str) -> RelativeSize:
    """Read a size such as ``512MiB`` or ``50%``."""
    _parse(text, GiB)
    return RelativeSize(text)


def positive_share(text: str) -> RelativeSize:
    """Read a size above 0, such as ``512MiB`` or ``50%``."""
    _above_zero(text, _parse(text, GiB))
    return RelativeSize(text)


def share_or_none(text: str) -> RelativeSize | None:
    """Read a size such as ``512MiB`` or ``50%``, or the word ``none``."""
    return None if text.lower() == "none" else share(text)


def _parse(text: str, whole: int | None) -> int:
    try:
        return parse_size(text, whole=whole)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _above_zero(text: str, count: int) -> int:
    if count == 0:
        raise click.UsageError(f"{text!r} is nothing: give a size above 0, like 512MiB")
    return count


def report_file(text: str) -> Path:
    """Take the name of a chart or table, once it can be made and written."""
    path = Path(text)
    try:
        export.require(path)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    return _writable(path)


def record_file(text: str) -> Path:
    """Take the name of a file that can be written now, and so probably later."""
    path = Path(text)
    # A file that is there, a device or a pipe: its folder need not be writable.
    is_there = os.access(path, os.W_OK) and not os.path.isdir(path)  # noqa: PTH112 - a name may be too long
    return path if is_there else _writable(path)


def _writable(path: Path) -> Path:
    """Make sure that a file can be put in its folder, by putting one there."""
    try:
        with TemporaryFile(dir=path.parent):
            is_folder = path.is_dir()
    except OSError as error:
        raise click.UsageError(
            f"{str(path)!r} cannot be written ({error.strerror}): choose another place"
        ) from error
    if is_folder:
        raise click.UsageError(f"{str(path)!r} is a folder: add a file's name")
    return path


def _vm(text: str) -> Vm:
    try:
        return parse_vm(text)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


socket_argument: Final = click.argument("socket", type=_vm)
json_option: Final = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, sizes in bytes."
)
connect_timeout_option: Final = click.option(
    "--connect-timeout",
    type=SECONDS,
    default=5.0,
    metavar="SECONDS",
    help="How long QEMU may take to greet.",
)
