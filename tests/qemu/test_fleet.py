"""Real guests under one supervisor: memory moves, and others' ills are not theirs."""

from __future__ import annotations

import random
import signal
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from attrs import define, field

from qmpballoon.address import UnixAddress
from qmpballoon.fleet.balance import balance
from qmpballoon.fleet.gauge import Gauge
from qmpballoon.fleet.policy import Rules
from qmpballoon.fleet.spec import Spec
from qmpballoon.fleet.supervisor import Settings, Supervisor, open_fleet
from qmpballoon.testing import lab
from qmpballoon.testing.lab import GiB, Guest, MiB

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from qmpballoon.fleet.record import View

pytestmark = pytest.mark.qemu

RULES = Rules(reserve=256 * MiB, buffer=64 * MiB)
# What a guest may use up before it is fed; a burst takes some 50 MiB a second here.
HEADROOM = "128MiB"
GUESTS = {
    "rich": {"memory": GiB, "cache": 600 * MiB},
    "bursts": {"memory": GiB, "cache": 400 * MiB, "hog": 100 * MiB},
    "stopped": {"memory": 512 * MiB, "cache": 200 * MiB},
    "killed": {"memory": 512 * MiB, "cache": 100 * MiB, "hog": 50 * MiB},
    "no-driver": {"memory": 512 * MiB, "driver": False},
}


@asynccontextmanager
async def booted() -> AsyncGenerator[dict[str, Guest]]:
    async with AsyncExitStack() as stack:
        yield {
            name: await stack.enter_async_context(lab.boot(**config))  # type: ignore[arg-type]
            for name, config in GUESTS.items()
        }


@define
class Seen:
    """What was seen of a fleet over time, by looking at it all the time."""

    fleet: Supervisor
    worst: dict[str, float] = field(factory=dict[str, float])

    def view(self, name: str) -> View:
        return next(view for view in self.fleet.views() if view.name == name)

    async def until(self, condition: Callable[[], bool], seconds: float) -> float:
        """Wait for a condition; return how long it took."""
        start = trio.current_time()
        with trio.fail_after(seconds):
            while not condition():  # noqa: ASYNC110 - the host has to be asked
                await trio.sleep(0.1)
        return trio.current_time() - start


def source(guests: dict[str, Guest]) -> list[Spec]:
    return [
        Spec(name, UnixAddress(str(guest.socket)), headroom=HEADROOM)
        for name, guest in guests.items()
    ]


async def test_a_host_full_of_guests() -> None:
    async with (
        booted() as guests,
        open_fleet(
            partial(source, guests), random.Random(0), settings=Settings(period=0.5)
        ) as fleet,
        trio.open_nursery() as nursery,
    ):
        seen = Seen(fleet)
        assert await fleet.known(20)
        states = {view.name: view.state for view in fleet.views()}
        assert states == {**dict.fromkeys(GUESTS, "healthy"), "no-driver": "no-driver"}

        # The VMs hold 400 MiB more than they may: the host gets its reserve back.
        gauge = Gauge(limit=fleet.held + RULES.reserve - 400 * MiB)

        def available() -> int:
            return gauge.read(fleet.held).available

        assert available() < RULES.reserve
        nursery.start_soon(partial(balance, fleet, gauge.read, RULES, period=0.5))
        recovered = await seen.until(lambda: available() >= RULES.reserve, 60)

        # One stops, one is killed: the others go on as they were.
        guests["stopped"].process.send_signal(signal.SIGSTOP)
        guests["killed"].process.kill()

        # A burst: the guest takes more than it had available, and is fed.
        before = seen.view("bursts")
        assert before.actual is not None
        for _ in range(8):
            await guests["bursts"].hog(40 * MiB)
        bounds = before.bounds
        assert bounds is not None

        def fed() -> bool:
            now = seen.view("bursts")
            enough = (now.stats.available or 0) >= bounds.headroom
            return enough and now.state == "healthy"

        fed_after = await seen.until(fed, 10)
        await seen.until(lambda: available() >= RULES.reserve, 30)
        await seen.until(lambda: seen.view("stopped").state == "stale", 30)
        await seen.until(lambda: seen.view("killed").state == "gone", 30)
        assert seen.view("rich").state == "healthy"
        assert (seen.view("bursts").actual or 0) > before.actual
        for name in ("rich", "bursts", "no-driver"):
            assert await guests[name].oom_kills() == 0
        guests["stopped"].process.send_signal(signal.SIGCONT)
        await seen.until(lambda: seen.view("stopped").state == "healthy", 30)
        assert await guests["stopped"].oom_kills() == 0
        print(f"reserve after {recovered:.1f} s, fed {fed_after:.1f} s after")  # noqa: T201
        nursery.cancel_scope.cancel()
