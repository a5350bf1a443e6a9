"""A running guest: commands in it, its memory and its console."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing.lab._report import GuestCommandError, LabError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Generator
    from pathlib import Path

    from qmpballoon.testing.lab._channel import Channel

__all__ = ["Guest", "parse_meminfo"]

# A hog is one dd whose buffer one read() fills: at most 2 GiB less a page.
_LARGEST_HOG: Final = GiB
# Bytes a second. Under TCG, on a busy machine, a guest touches some 100 MiB a second.
# A guest that is ten times slower is taken to have stopped.
_SLOWEST: Final = 10 * MiB
# Seconds until a guest that has not answered is taken to hang. On a host with other
# work, guests that are emulated take thirty times as long as alone.
_LONGEST: Final = 300
# Seconds between two reads of meminfo or the console; a command takes 5 ms.
_POLL: Final = 0.02
_PANIC: Final = "Kernel panic"
# Seconds between two checks for a panic while the guest boots.
_PANIC_LOOK: Final = 0.5
# Lines that an error's message shows of QEMU's output and the console.
_TAIL: Final = 20
_MEMINFO_LINE: Final = re.compile(r"(\S+):\s+(\d+)( kB)?")


@define(eq=False)
class Guest:
    """A Linux guest in a QEMU of its own, as :func:`boot` yields it.

    All times are in seconds and all sizes in bytes. Every coroutine raises
    :exc:`LabError` when QEMU ends, when the guest reboots before it has answered, or
    when the deadline passes. The message ends with the console's last lines. Every
    coroutine can be cancelled; the guest may then still do what was asked.

    Attributes:
        socket: The unix socket of the QMP monitor. Only this user can connect to it.
        second_socket: The unix socket of a second QMP monitor, for a test that
            watches while the code under test has the first.
        process: QEMU's process, for a test that kills, stops or continues it. The
            lab ends it.
        accel: ``"kvm"`` or ``"tcg"``.
        qemu_version: QEMU's version, for example ``"10.0.13"``.
    """

    socket: Path
    second_socket: Path
    process: subprocess.Popen[bytes]
    accel: str
    qemu_version: str
    _console_file: Path = field(alias="console_file")
    _errors_file: Path = field(alias="errors_file")
    _channel: Channel = field(alias="channel")
    _filled: int = field(default=0, alias="filled")

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self.process.pid

    @property
    def kernel_release(self) -> str:
        """The guest kernel's release; empty before the guest is first ready."""
        return self._channel.release

    @property
    def console(self) -> str:
        """Everything that the guest's kernel has printed so far."""
        return self._console_file.read_text(errors="replace")

    async def run(
        self, command: str, *, timeout: float = _LONGEST, check: bool = True
    ) -> str:
        """Run a shell command in the guest; several can run at once.

        It runs as root in busybox's shell, and the guest's OOM killer may kill it. A
        background process must not keep the command's output open, or the answer
        never comes: write ``(sleep 9; reboot -f) >/dev/null 2>&1 &``.

        Args:
            command: One or more lines of shell.
            timeout: Seconds until the command must have ended. A command that takes
                longer runs on, and its answer is dropped.
            check: Whether a status other than 0 is raised as an error.

        Returns:
            Standard output and standard error as one text, without trailing newlines.

        Raises:
            GuestCommandError: The command ended with a status other than 0.
        """
        with self._deadline(timeout, f"did not answer {command!r}"):
            answer = await self._channel.run(command)
        if check and answer.status:
            raise GuestCommandError(command, answer.status, answer.output)
        return answer.output

    async def ready(self, *, boots: int = 1, timeout: float = _LONGEST) -> None:
        """Wait until the guest's user space has started ``boots`` times.

        :func:`boot` has waited for the first start, unless the guest was paused.
        After a reset, wait for the second. A reboot undoes :meth:`fill_cache`,
        :meth:`hog` and :meth:`unload_driver`.

        Args:
            boots: How many starts to wait for, counted from the beginning.
            timeout: Seconds to wait for them.
        """
        # What an earlier kernel printed does not count.
        known = 0 if boots == 1 else len(self.console)
        with self._deadline(timeout, "did not become ready"):
            while True:
                with trio.move_on_after(_PANIC_LOOK):
                    await self._channel.ready(boots)
                    return
                if _PANIC in self.console[known:]:
                    raise LabError(f"the guest panicked{self._last_output()}")

    async def fill_cache(self, size: int) -> None:
        """Read bytes of a disk that were not read before; they stay in the page cache.

        The disk has 1 TiB of zeroes and needs no storage on the host. What is cached
        of it counts as ``Buffers`` in meminfo, because it is a device and not a
        file, and as disk caches in the balloon's statistics.

        Args:
            size: Bytes to read, rounded up to 1 MiB.
        """
        count = -(-size // MiB)
        skip, self._filled = self._filled, self._filled + count
        await self.run(
            f"dd if=/dev/vda of=/dev/null bs=1M skip={skip} count={count}",
            timeout=_LONGEST + size / _SLOWEST,
        )

    async def drop_cache(self) -> None:
        """Let the guest drop its whole page cache."""
        await self.run("echo 3 >/proc/sys/vm/drop_caches")

    async def hog(self, size: int) -> None:
        """Allocate anonymous memory in the guest, and touch every page of it.

        Processes of up to 1 GiB each hold it until :meth:`release`. Each call adds
        to what earlier calls hold.

        Args:
            size: Bytes to allocate.

        Raises:
            GuestCommandError: The guest's OOM killer killed a process (status 137).
        """
        for start in range(0, size, _LARGEST_HOG):
            part = min(_LARGEST_HOG, size - start)
            await self.run(f"hog {part}", timeout=_LONGEST + part / _SLOWEST)

    async def release(self) -> None:
        """Free what :meth:`hog` holds, and return when it is free."""
        await self.run("release")

    async def meminfo(self) -> dict[str, int]:
        """Read the guest's ``/proc/meminfo``.

        Returns:
            Bytes by name, for example ``MemAvailable``; huge pages are counts.
        """
        return parse_meminfo(await self.run("cat /proc/meminfo"))

    async def oom_kills(self) -> int:
        """Count the processes that the guest's OOM killer has killed since boot."""
        return int(await self.run("sed -n 's/^oom_kill //p' /proc/vmstat"))

    async def load_driver(self) -> None:
        """Load the balloon's driver, or bind it to its device."""
        await self.run("load-driver")

    async def unload_driver(self) -> None:
        """Remove the balloon's driver; the ballooned memory goes back to the guest."""
        await self.run("unload-driver")

    async def wait_for(
        self, condition: Callable[[dict[str, int]], bool], *, timeout: float = _LONGEST
    ) -> dict[str, int]:
        """Wait until the guest's meminfo fulfils a condition.

        Args:
            condition: Takes what :meth:`meminfo` returns, and tells whether that
                fulfils it.
            timeout: Seconds to wait.

        Returns:
            The first meminfo that fulfils the condition.
        """
        with self._deadline(timeout, "did not come to fulfil the condition"):
            # meminfo has no notifications.
            while not condition(meminfo := await self.meminfo()):  # noqa: ASYNC110
                await trio.sleep(_POLL)
        return meminfo

    async def wait_for_console(self, text: str, *, timeout: float = _LONGEST) -> None:
        """Wait until the guest's kernel has printed a text, for example of a panic.

        Args:
            text: The text, anywhere on the console.
            timeout: Seconds to wait.
        """
        with self._deadline(timeout, f"did not print {text!r}"):
            # No event loop can wait for a file to grow.
            while text not in self.console:  # noqa: ASYNC110
                await trio.sleep(_POLL)

    @contextmanager
    def _deadline(self, seconds: float, failure: str) -> Generator[None]:
        try:
            with trio.fail_after(seconds):
                yield
        except trio.TooSlowError as error:
            raise LabError(
                f"the guest {failure} within {seconds:g} s{self._last_output()}"
            ) from error
        except ConnectionError as error:
            raise LabError(f"{error}{self._last_output()}") from error

    def _last_output(self) -> str:
        printed = self._errors_file.read_text(errors="replace") + self.console
        lines = printed.strip().splitlines()[-_TAIL:]
        return "; last seen of QEMU and the console:\n" + "\n".join(lines)


def parse_meminfo(text: str) -> dict[str, int]:
    """Parse ``/proc/meminfo``: kilobytes become bytes, and counts stay counts."""
    return {
        name: int(number) * (1024 if unit else 1)
        for name, number, unit in _MEMINFO_LINE.findall(text)
    }
