"""A running guest: what a test asks of it, and what it can do to it."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing.lab.errors import GuestCommandError, LabError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Generator
    from pathlib import Path

    from qmpballoon.testing.lab.channel import Channel

__all__ = ["Guest", "parse_meminfo"]

# The buffer of one dd must stay below what one read() fills: 2 GiB less a page.
_LARGEST_HOG: Final = GiB
# Under TCG on a busy machine a guest touches some 100 MiB a second; slower than
# this, it is not going to end.
_SLOWEST: Final = 10 * MiB
_POLL: Final = 0.02
_PANIC: Final = "Kernel panic"
_PANIC_LOOK: Final = 0.5  # seconds between two looks for it
_TAIL: Final = 20
_MEMINFO_LINE: Final = re.compile(r"(\S+):\s+(\d+)( kB)?")


@define(eq=False)
class Guest:
    """A Linux guest in its own QEMU, as :func:`boot` hands it out.

    All times are seconds and all sizes bytes. Every coroutine raises
    :exc:`LabError` when QEMU goes away, when the guest is rebooted under it, or
    when its deadline passes; the message ends with the console's last lines.
    Cancelling one is safe: the guest may or may not still do what was asked.

    Attributes:
        socket: QMP's unix socket. Only this user can reach it.
        second_socket: A second QMP monitor, so that a test can look on while
            somebody else holds the first.
        process: QEMU, to be killed, stopped or continued. The lab ends it.
        accel: ``"kvm"`` or ``"tcg"``.
        qemu_version: QEMU's version, as in ``"10.0.13"``.
    """

    socket: Path
    second_socket: Path
    process: subprocess.Popen[bytes]
    accel: str
    qemu_version: str
    _console_file: Path = field(alias="console_file")
    _errors_file: Path = field(alias="errors_file")
    _channel: Channel = field(alias="channel")
    _filled: int = field(default=0, init=False)

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self.process.pid

    @property
    def kernel_release(self) -> str:
        """The guest kernel's release; empty before it was first ready."""
        return self._channel.release

    @property
    def console(self) -> str:
        """All that the guest's kernel has printed so far."""
        return self._console_file.read_text(errors="replace")

    async def run(
        self, command: str, *, timeout: float = 60, check: bool = True
    ) -> str:
        """Run a shell command in the guest; several can run at once.

        It runs as root in busybox's shell, and the OOM killer may take it. What it
        leaves running in the background must not keep its output open, or there
        is no answer: write ``(sleep 9; reboot -f) >/dev/null 2>&1 &``.

        Args:
            command: One or more lines of shell.
            timeout: Seconds until it must have ended. After that the answer is
                given up, and the command runs on.
            check: Whether a failure is raised.

        Returns:
            What it printed, both streams together, less trailing newlines.

        Raises:
            GuestCommandError: It ended with another status than 0.
        """
        with self._deadline(timeout, f"did not answer {command!r}"):
            answer = await self._channel.run(command)
        if check and answer.status:
            raise GuestCommandError(command, answer.status, answer.output)
        return answer.output

    async def ready(self, *, boots: int = 1, timeout: float = 120) -> None:
        """Wait until the guest's user space has come up ``boots`` times.

        :func:`boot` has waited for the first time, unless the guest was paused.
        After a reset wait for the second. What :meth:`fill_cache`, :meth:`hog`
        and :meth:`unload_driver` did is gone with a reboot.
        """
        # The last words of a kernel before this one are no news.
        known = 0 if boots == 1 else len(self.console)
        with self._deadline(timeout, "did not become ready"):
            while True:
                with trio.move_on_after(_PANIC_LOOK):
                    await self._channel.ready(boots)
                    return
                if _PANIC in self.console[known:]:
                    raise LabError(f"the guest panicked{self._last_words()}")

    async def fill_cache(self, size: int) -> None:
        """Read so many more bytes of a disk, which stay in the page cache.

        The disk is endless, made of zeroes, and costs the host nothing. What is
        cached of it counts as ``Buffers`` in meminfo, being a bare device, and
        as disk caches in the balloon's statistics. Rounded up to 1 MiB.
        """
        count = -(-size // MiB)
        skip, self._filled = self._filled, self._filled + count
        await self.run(
            f"dd if=/dev/vda of=/dev/null bs=1M skip={skip} count={count}",
            timeout=60 + size / _SLOWEST,
        )

    async def drop_cache(self) -> None:
        """Let the guest throw its whole page cache away."""
        await self.run("echo 3 >/proc/sys/vm/drop_caches")

    async def hog(self, size: int) -> None:
        """Hold so many more bytes of anonymous memory, every page touched.

        Held by processes of up to 1 GiB each until :meth:`release`. Call it again
        and again for a guest that grows.

        Raises:
            GuestCommandError: The guest's OOM killer took it (status 137).
        """
        for start in range(0, size, _LARGEST_HOG):
            part = min(_LARGEST_HOG, size - start)
            await self.run(f"hog {part}", timeout=60 + part / _SLOWEST)

    async def release(self) -> None:
        """Free what :meth:`hog` holds; returns when it is free."""
        await self.run("release")

    async def meminfo(self) -> dict[str, int]:
        """Read the guest's ``/proc/meminfo``.

        Returns:
            Bytes by name, as in ``MemAvailable``; counts of huge pages are counts.
        """
        return parse_meminfo(await self.run("cat /proc/meminfo"))

    async def oom_kills(self) -> int:
        """Count the processes that the guest's OOM killer took since boot."""
        return int(await self.run("sed -n 's/^oom_kill //p' /proc/vmstat"))

    async def load_driver(self) -> None:
        """Let the balloon's driver take its device."""
        await self.run("load-driver")

    async def unload_driver(self) -> None:
        """Take the balloon's driver away: the guest gets back what it held."""
        await self.run("unload-driver", timeout=300)

    async def wait_for(
        self, condition: Callable[[dict[str, int]], bool], *, timeout: float = 60
    ) -> dict[str, int]:
        """Wait until the guest's meminfo is as wanted.

        Args:
            condition: Told what :meth:`meminfo` gives, says whether that is it.
            timeout: Seconds.

        Returns:
            The first meminfo that fulfilled the condition.
        """
        with self._deadline(timeout, "did not come to fulfil the condition"):
            # Nothing tells us: the guest has to be asked.
            while not condition(meminfo := await self.meminfo()):  # noqa: ASYNC110
                await trio.sleep(_POLL)
        return meminfo

    async def wait_for_console(self, text: str, *, timeout: float = 60) -> None:
        """Wait until the guest's kernel has printed a text, as in a panic."""
        with self._deadline(timeout, f"did not print {text!r}"):
            # A file, and no event loop can wait for one to grow.
            while text not in self.console:  # noqa: ASYNC110
                await trio.sleep(_POLL)

    @contextmanager
    def _deadline(self, seconds: float, failure: str) -> Generator[None]:
        try:
            with trio.fail_after(seconds):
                yield
        except trio.TooSlowError as error:
            raise LabError(
                f"the guest {failure} within {seconds:g} s{self._last_words()}"
            ) from error
        except ConnectionError as error:
            raise LabError(f"{error}{self._last_words()}") from error

    def _last_words(self) -> str:
        said = self._errors_file.read_text(errors="replace") + self.console
        lines = said.strip().splitlines()[-_TAIL:]
        return "; last seen of QEMU and the console:\n" + "\n".join(lines)


def parse_meminfo(text: str) -> dict[str, int]:
    """Read ``/proc/meminfo``: bytes by name, and plain counts as they are."""
    return {
        name: int(number) * (1024 if unit else 1)
        for name, number, unit in _MEMINFO_LINE.findall(text)
    }
