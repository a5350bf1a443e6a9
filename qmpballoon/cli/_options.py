"""Arguments and options that several subcommands take: sockets, sizes, files.

Everything that can be checked is checked here, before a socket is opened: a wrong
command line has no effect. The functions are types for click: they take text, and
return a value or raise a usage error.
"""

from __future__ import annotations

import math
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias

import click
from attrs import evolve, frozen

from qmpballoon.address import parse_vm
from qmpballoon.cli._completion import complete_file, complete_vm
from qmpballoon.sizes import GiB, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.address import Vm
    from qmpballoon.balloon.guard import Guard

Option: TypeAlias = "Callable[[Callable[..., Any]], Callable[..., Any]]"

__all__ = [
    "PERIOD",
    "REPORT_FORMATS",
    "SECONDS",
    "Duration",
    "RelativeGuard",
    "RelativeSize",
    "Seconds",
    "check_record_file",
    "check_report_file",
    "connect_timeout_option",
    "floor_option",
    "gentle_option",
    "headroom_option",
    "json_option",
    "max_rate_option",
    "own_monitor_option",
    "read_positive_share",
    "read_positive_size",
    "read_share",
    "read_size",
    "report_option",
    "reread_within_option",
    "socket_argument",
]


class Seconds(click.FloatRange):
    """A number of seconds within a range. NaN is refused, which passes every bound."""

    def convert(
        self,
        value: Any,  # noqa: ANN401 - whatever click was given
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """Read the number, or raise a usage error."""
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value} is no time: give seconds, like 1.5", param, ctx)
        return seconds


class Duration(click.types.FloatParamType):
    """A time above 0, in seconds or with a unit: ``90``, ``90s``, ``10m``, ``1h``."""

    name = "duration"
    units: ClassVar[dict[str, int]] = {"s": 1, "m": 60, "h": 3600}

    def convert(
        self,
        value: Any,  # noqa: ANN401 - whatever click was given
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """Read the time, or raise a usage error."""
        text = str(value)
        unit = self.units.get(text[-1:], 0)
        try:
            seconds = float(text[:-1]) * unit if unit else float(text)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            why = f"{value!r} is no time above 0: give one like 90 (seconds) or 10m"
            self.fail(why, param, ctx)
        return seconds


SECONDS: Final = Seconds(min=0, min_open=True)
PERIOD: Final = Seconds(min=0, min_open=True, max=86400)  # a day


@frozen
class RelativeSize:
    """A size that may be a share of the VM's memory.

    That memory is known only after connecting.

    Attributes:
        text: As it was written; it was checked to be a size or a share.
    """

    text: str

    def resolve(self, whole: int | None) -> int:
        """Return the size in bytes.

        Args:
            whole: The VM's memory in bytes; ``None`` where QEMU does not tell.

        Raises:
            click.UsageError: It is a share, and the whole is not known.
        """
        return _parse(self.text, whole)


def read_size(text: str) -> int:
    """Read a size such as ``512MiB``."""
    return _parse(text, None)


def read_positive_size(text: str) -> int:
    """Read a size above 0, such as ``512MiB``."""
    return _require_positive(text, _parse(text, None))


def read_share(text: str) -> RelativeSize:
    """Read a size such as ``512MiB`` or ``50%``."""
    _parse(text, GiB)
    return RelativeSize(text)


def read_positive_share(text: str) -> RelativeSize:
    """Read a size above 0, such as ``512MiB`` or ``50%``."""
    _require_positive(text, _parse(text, GiB))
    return RelativeSize(text)


def _parse(text: str, whole: int | None) -> int:
    try:
        return parse_size(text, whole=whole)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _require_positive(text: str, count: int) -> int:
    if count == 0:
        raise click.UsageError(f"{text!r} is no size above 0: give one like 512MiB")
    return count


def check_report_file(text: str) -> Path:
    """Return the path of a chart or table, if its format and its place are possible."""
    from qmpballoon import export  # noqa: PLC0415 - only for reports

    path = Path(text)
    try:
        export.require(path)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    return _require_writable(path)


def check_record_file(text: str) -> Path:
    """Return the path of a file that can be written now, and so probably later."""
    path = Path(text)
    # The folder of an existing file, device or pipe need not be writable.
    exists = os.access(path, os.W_OK) and not os.path.isdir(path)  # noqa: PTH112 - a name may be too long
    return path if exists else _require_writable(path)


def _require_writable(path: Path) -> Path:
    """Make sure that a file can be created, by creating one in the same folder."""
    from tempfile import TemporaryFile  # noqa: PLC0415 - only for reports

    is_folder = False
    try:
        # Path.is_dir, from Python 3.14 on, has no error for a name that is too long.
        with TemporaryFile(dir=path.parent), suppress(FileNotFoundError):
            is_folder = stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        raise click.UsageError(
            f"{str(path)!r} cannot be written ({error.strerror}): choose another place"
        ) from error
    if is_folder:
        raise click.UsageError(f"{str(path)!r} is a folder: add a file's name")
    return path


def _read_vm(text: str) -> Vm:
    try:
        return parse_vm(text)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


@frozen(kw_only=True)
class RelativeGuard:
    """What a guest must keep, as the options say; sizes may be shares of its memory.

    Attributes:
        headroom: How much it keeps available; ``None``: the default.
        floor: The size that it never goes below; ``None``: the default.
        max_rate: Bytes a second to take at most; ``None``: no limit.
        gentle: Seconds over which page cache is taken; ``None``: as fast as it goes.
        reread_within: Seconds within which page cache has to be read again to be worth
            keeping; ``None``: the default.
    """

    headroom: RelativeSize | None = None
    floor: RelativeSize | None = None
    max_rate: int | None = None
    gentle: float | None = None
    reread_within: float | None = None

    @property
    def is_given(self) -> bool:
        """Whether any of the options was given."""
        return self != RelativeGuard()

    def resolve(self, total: int | None, default: Guard) -> Guard:
        """Return the guard for a VM.

        Args:
            total: Bytes of its memory; ``None`` where QEMU does not tell.
            default: Says what holds where no option is given.
        """
        guard = default
        if self.headroom is not None:
            guard = evolve(guard, headroom=self.headroom.resolve(total))
        if self.floor is not None:
            guard = evolve(guard, floor=self.floor.resolve(total))
        if self.max_rate is not None:
            guard = evolve(guard, max_rate=self.max_rate)
        if self.gentle is not None:
            guard = evolve(guard, gentle=self.gentle)
        if self.reread_within is not None:
            guard = evolve(guard, reread_within=self.reread_within)
        return guard


def headroom_option(default: str) -> Option:
    """Return the option ``--headroom``.

    Args:
        default: What holds without it, for the help.
    """
    return click.option(
        "--headroom",
        type=read_share,
        metavar="SIZE",
        help=f"How much memory the guest keeps available.  [default: {default}]",
    )


def floor_option(default: str) -> Option:
    """Return the option ``--floor``; as :func:`headroom_option`."""
    return click.option(
        "--floor",
        type=read_share,
        metavar="SIZE",
        help=f"The size that the guest never goes below.  [default: {default}]",
    )


def reread_within_option(default: str) -> Option:
    """Return the option ``--reread-within``; as :func:`headroom_option`."""
    return click.option(
        "--reread-within",
        type=Seconds(min=0),
        metavar="SECONDS",
        help="Leave the guest the page cache that it reads again from its disks within"
        f" this time; 0 takes it all.  [default: {default}]",
    )


max_rate_option: Final = click.option(
    "--max-rate",
    type=read_positive_size,
    metavar="SIZE",
    help="How much to take in a second at most.  [default: no limit]",
)
gentle_option: Final = click.option(
    "--gentle",
    type=Duration(),
    metavar="DURATION",
    help="Take page cache evenly over this time, like 10m, and free memory at once."
    " The guest keeps the page cache that it reads again within a tenth of this time."
    "  [default: as fast as the guest gives it]",
)
REPORT_FORMATS: Final = ".html, .svg, .png, .csv or .json"
"""What the name of a report may end in, without loading what writes them."""
report_option: Final = click.option(
    "--report",
    type=check_report_file,
    shell_complete=complete_file,
    metavar="FILE",
    help="Write a page, a chart or the figures to FILE. The name's ending chooses the"
    f" format: {REPORT_FORMATS}.",
)
socket_argument: Final = click.argument(
    "socket", type=_read_vm, shell_complete=complete_vm
)
json_option: Final = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, sizes in bytes."
)
connect_timeout_option: Final = click.option(
    "--connect-timeout",
    type=SECONDS,
    default=5.0,
    metavar="SECONDS",
    help="How long connecting to the monitor may take.",
)
own_monitor_option: Final = click.option(
    "--own-monitor",
    is_flag=True,
    help="Have QEMU add a monitor for this command, and leave the one of SOCKET free"
    " for others. QEMU 11.1 or later.",
)
