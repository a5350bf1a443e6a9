"""``python -m qmpballoon.testing.lab``: boot a guest, and keep it until Ctrl-C."""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from qmpballoon.sizes import format_size, parse_size
from qmpballoon.testing.lab import LabError, ProgressBar, boot
from qmpballoon.testing.lab._boot import find_parts
from qmpballoon.testing.lab._qemu import BALLOON, wait_ended

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from qmpballoon.testing.lab import Guest


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 0, also after Ctrl-C; 1 if the lab failed.
    """
    options = _parser().parse_args(arguments)
    try:
        return trio.run(_fetch if options.fetch else _run, options)
    except (LabError, ValueError) as error:
        sys.stderr.write(f"qmpballoon lab: {error}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m qmpballoon.testing.lab",
        description="Boot a throwaway Linux guest in a real QEMU, until Ctrl-C.",
        epilog="Sizes are like 512M or 1.5G. QEMU and kernel are paths or versions; "
        "versions that are not installed are fetched, without root.",
    )
    add = parser.add_argument
    add("--memory", type=_size, default="2G", help="the guest's memory [2G]")
    add("--cache", type=_size, default="0", help="page cache to fill [0]")
    add("--hog", type=_size, default="0", help="memory to hold [0]")
    add("--setup", default="", metavar="COMMAND", help="what the guest runs first")
    add("--cpus", type=int, default=1, help="the guest's processors [1]")
    add("--qemu", action="append", default=[], metavar="PATH|VERSION")
    add("--kernel", action="append", default=[], metavar="PATH|VERSION")
    add("--device", default=BALLOON, help=f"QEMU's -device argument [{BALLOON}]")
    add("--no-device", action="store_true", help="no balloon")
    add("--no-driver", action="store_true", help="do not load the balloon's driver")
    add("--machine", default="pc", choices=("pc", "q35", "microvm"))
    add("--accel", choices=("kvm", "tcg"), help="[KVM where it has booted a guest]")
    add("--paused", action="store_true", help="QEMU waits for a cont")
    add("--socket", type=Path, metavar="PATH", help="make the monitor a link here")
    add(
        "--fetch",
        action="store_true",
        help="only fetch; --qemu and --kernel may be given several times",
    )
    add("extra", nargs="*", metavar="-- QEMU-ARGUMENT")
    return parser


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        # argparse shows the message of no other exception.
        raise argparse.ArgumentTypeError(str(error)) from error


async def _fetch(options: argparse.Namespace) -> int:
    bar = ProgressBar()
    pairs = itertools.zip_longest(options.qemu or [None], options.kernel or [None])
    for qemu, kernel in pairs:
        found = await find_parts(qemu, kernel, bar)
        sys.stdout.write(
            f"QEMU {found.qemu.version}, Linux {found.kernel.release}, "
            f"{found.busybox}\n"
        )
    return 0


async def _run(options: argparse.Namespace) -> int:
    if len(options.qemu) > 1 or len(options.kernel) > 1:
        raise ValueError("give one --qemu and one --kernel, or --fetch")
    # Each of these ends the guest. SIGHUP comes from a terminal that is closed; nohup
    # ignores it.
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    scope = trio.CancelScope()
    with scope, _cancelled_by(*numbers, scope=scope):
        await _boot_and_wait(options)
    return 0


async def _boot_and_wait(options: argparse.Namespace) -> None:
    async with boot(
        memory=options.memory,
        cache=options.cache,
        hog=options.hog,
        setup=options.setup,
        device=None if options.no_device else options.device,
        driver=not options.no_driver,
        machine=options.machine,
        cpus=options.cpus,
        qemu=next(iter(options.qemu), None),
        kernel=next(iter(options.kernel), None),
        accel=options.accel,
        extra=options.extra,
        paused=options.paused,
    ) as guest:
        with _linked(options.socket, guest.socket) as socket:
            _print_guest(guest, socket, options.memory)
            status = await wait_ended(guest.process)
    raise LabError(f"QEMU ended with {status}")


@contextmanager
def _cancelled_by(*signals: signal.Signals, scope: trio.CancelScope) -> Generator[None]:
    """Cancel a scope on signals. trio would raise KeyboardInterrupt on SIGINT."""
    token = trio.lowlevel.current_trio_token()

    def cancel(_number: int, _frame: object) -> None:
        token.run_sync_soon(scope.cancel)

    previous = {number: signal.signal(number, cancel) for number in signals}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _linked(link: Path | None, socket: Path) -> Generator[Path]:
    if link is None:
        yield socket
        return
    try:
        link.symlink_to(socket)
    except OSError as error:
        raise LabError(f"cannot link the monitor: {error}") from error
    try:
        yield link
    finally:
        link.unlink(missing_ok=True)


def _print_guest(guest: Guest, socket: Path, memory: int) -> None:
    sys.stdout.write(
        f"QEMU {guest.qemu_version} ({guest.accel}, pid {guest.pid}), "
        f"Linux {guest.kernel_release or 'not booted yet'}, {format_size(memory)}\n"
        f"monitor         {socket}\n"
        f"second monitor  {guest.second_socket}\n"
        f"try it          qmpballoon status {socket}\n"
        f"                qmpballoon reclaim {socket}\n"
        "Ctrl-C ends it.\n"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
