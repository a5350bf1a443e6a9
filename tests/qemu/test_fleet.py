"""Real guests under ``qmpballoon fleet run``: a reserve, bursts, and VMs that go.

The host's memory is what the VMs together may hold (``--limit``), so it is as short
as the test wants, whatever the machine has.
"""

from __future__ import annotations

import re
import signal
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from attrs import define, field
from command import start
from metrics import figures, state, url_of

from qmpballoon.testing import lab
from qmpballoon.testing.lab import Guest, MiB
from qmpballoon.trio import open_monitor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

RESERVE = 256 * MiB
BUFFER = 64 * MiB  # a quarter of it, which the host holds on top
SHORT = 350 * MiB  # what the host lacks at first
HEADROOM = 128 * MiB
# What a burst leaves of what its guest has available: it is in need, and lives.
LEFT = 64 * MiB
GUESTS: dict[str, dict[str, Any]] = {
    "rich": {"memory": 768 * MiB, "cache": 600 * MiB},
    "bursts": {"memory": 768 * MiB, "cache": 350 * MiB, "hog": 150 * MiB},
    "stopped": {"memory": 512 * MiB, "cache": 250 * MiB},
    "killed": {"memory": 512 * MiB, "cache": 200 * MiB, "hog": 50 * MiB},
    "no-driver": {"memory": 512 * MiB, "cache": 100 * MiB, "driver": False},
}
"""What they have, cache and anonymous memory included."""
UNHARMED = ("rich", "bursts", "no-driver")


@asynccontextmanager
async def opened() -> AsyncGenerator[dict[str, Guest]]:
    guests = {}
    async with AsyncExitStack() as stack:
        for name, config in GUESTS.items():
            options = {key: config[key] for key in {"memory", "driver"} & {*config}}
            starting = lab.boot(**options, saved=True)
            guest = guests[name] = await stack.enter_async_context(starting)
            # Resident memory is measured, and what is saved as filled is not resident.
            await guest.fill_cache(config.get("cache", 0))
            await guest.hog(config.get("hog", 0))
        yield guests


def held(guests: dict[str, Guest]) -> int:
    """Return what the QEMUs that live hold, as the kernel tells it."""
    return sum(map(resident, guests.values()))


def resident(guest: Guest) -> int:
    status = Path(f"/proc/{guest.pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0  # 0 once it is a zombie


def described(guests: dict[str, Guest], folder: Path) -> Path:
    path = folder / "fleet.toml"
    vms = [
        f'[[vm]]\nname = "{name}"\naddress = "{guest.socket}"\n'
        for name, guest in guests.items()
    ]
    path.write_text(f"[defaults]\nheadroom = {HEADROOM}\n" + "".join(vms))
    return path


@define
class Seen:
    """What is seen of a fleet on its page of metrics, time and again."""

    url: str
    now: dict[str, dict[str, float]] = field(factory=dict)
    states: dict[str, set[str]] = field(factory=dict[str, set[str]])

    async def look(self) -> None:
        self.now = await figures(self.url)
        for name in GUESTS:
            self.states.setdefault(name, set()).add(self.state(name))

    def state(self, name: str) -> str:
        return state(self.now[name])

    def figure(self, name: str, metric: str) -> float:
        return self.now[name][f"qmpballoon_{metric}"]

    def rise(self, before: dict[str, dict[str, float]], name: str, what: str) -> float:
        """Return how many bytes more a VM was given, or gave, than before."""
        metric = f"qmpballoon_vm_{what}_bytes_total"
        return self.now[name][metric] - before[name][metric]

    async def until(self, condition: Callable[[], bool], seconds: float) -> float:
        """Wait for a condition; return how long it took."""
        begun = trio.current_time()
        with trio.move_on_after(seconds):
            while not condition():
                await trio.sleep(0.1)
                await self.look()
            return trio.current_time() - begun
        pytest.fail(f"not within {seconds:g} s; seen last: {self.now}")


async def burst(guest: Guest, full: int) -> None:
    """Use up what the guest has available, but for what it needs to live.

    Of a guest that has all of its memory, so much could be used up that it cannot have
    its headroom again. So this waits until enough was taken from it.
    """
    seen = await guest.wait_for(
        lambda seen: seen["MemTotal"] <= full - HEADROOM, timeout=300
    )
    await guest.hog(seen["MemAvailable"] - LEFT)


async def fed(guest: Guest) -> float:
    """Wait until a guest has its headroom again; return how long it took."""
    begun = trio.current_time()
    await guest.wait_for(lambda seen: seen["MemAvailable"] >= HEADROOM, timeout=300)
    return trio.current_time() - begun


async def printed(stream: trio.abc.ReceiveStream) -> None:
    """Print what the command says, so that it is seen when the test fails."""
    async for chunk in stream:
        print(chunk.decode(), end="")  # noqa: T201


async def interval(guest: Guest) -> object:
    """Return the interval of the statistics, as QEMU has it."""
    async with open_monitor(guest.second_socket) as monitor:
        return await monitor.execute(
            "qom-get",
            {
                "path": "/machine/peripheral/balloon0",
                "property": "guest-stats-polling-interval",
            },
        )


async def test_a_host_full_of_guests(tmp_path: Path) -> None:
    async with opened() as guests, trio.open_nursery() as nursery:
        limit = held(guests) + RESERVE - SHORT
        full = {
            name: (await guest.meminfo())["MemTotal"] for name, guest in guests.items()
        }
        options = ["--limit", limit, "--reserve", RESERVE, "--metrics", 0]
        command = ["fleet", "run", described(guests, tmp_path), *options]

        def has_reserve() -> bool:
            return limit - held(guests) >= RESERVE

        async with start(*command) as running:
            nursery.start_soon(printed, running.stdout)
            seen = Seen(await url_of(running.stderr))
            assert not has_reserve()
            reserve = await seen.until(has_reserve, 300)
            await seen.until(lambda: seen.state("no-driver") == "no-driver", 300)

            # A burst, while one VM hangs: the guest is fed from others.
            guests["stopped"].process.send_signal(signal.SIGSTOP)
            before = seen.now
            await burst(guests["bursts"], full["bursts"])
            first = await fed(guests["bursts"])
            await seen.until(lambda: seen.rise(before, "bursts", "given") > 0, 300)
            await seen.until(lambda: seen.rise(before, "rich", "taken") > 0, 300)

            # Another one where memory was taken, as a VM dies.
            guests["killed"].process.kill()
            await burst(guests["rich"], full["rich"])
            second = await fed(guests["rich"])
            await seen.until(has_reserve, 300)
            await seen.until(lambda: seen.state("stopped") == "stale", 300)
            await seen.until(lambda: seen.state("killed") == "gone", 300)

            guests["stopped"].process.send_signal(signal.SIGCONT)
            await seen.until(lambda: seen.state("stopped") == "healthy", 300)
            print(  # noqa: T201
                f"reserve after {reserve:.1f} s; fed after {first:.1f} and {second:.1f}"
            )
            # The others did not notice.
            for name in ("rich", "bursts"):
                assert seen.states[name] <= {"healthy", "stalled"}
            for name in UNHARMED:
                assert seen.figure(name, "vm_connection_losses_total") == 0
            for name, guest in guests.items():
                assert name == "killed" or await guest.oom_kills() == 0

            running.process.terminate()
            with trio.fail_after(300):
                assert await running.process.wait() == 0
            for name in ("rich", "bursts", "stopped"):
                assert await interval(guests[name]) == 0
