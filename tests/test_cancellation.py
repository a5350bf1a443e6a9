"""Every coroutine of a balloon, cancelled wherever it waits, on trio and asyncio.

Over a client of qemu.qmp's as well, and over libvirt's passthrough, with a libvirt that
is none.

Afterwards the monitor answers, or its block has been left and another can be opened;
no task and no descriptor is left; the statistics interval is what it was; and the
guest is told to have no less than it has.

An operation is cancelled at each of its first 30 places, and at some 20 of the rest:
the long ones do the same again and again.
"""

from __future__ import annotations

import asyncio
import itertools
import selectors
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import fake_libvirt
import pytest
import trio
from attrs import define
from cancelling import (
    CONFIG,
    INTERVAL,
    OPERATIONS,
    QUICK,
    RAM,
    check_left_behind,
    descriptors,
    places,
    target_of,
)
from fake_libvirt import FakeDomain
from qemu.qmp import QMPClient
from trio.testing import wait_all_tasks_blocked

from qmpballoon import asyncio as aio
from qmpballoon import blocking, libvirt
from qmpballoon.testing import FakeQemu, serve, simulate
from qmpballoon.testing.model.guest import Guest
from qmpballoon.trio import open_balloon

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
    from contextlib import AbstractAsyncContextManager

    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.testing import Machine, ThreadedFake

NEVER: Final = 10**9  # no operation waits so often
PACE: Final = 50  # so much shorter are sleeps on a real clock


@pytest.fixture(autouse=True)
def restless_guests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no two answers of a guest be equal.

    Equal ones are told apart by the second that they are of. Here the seconds of the
    fakes are not hurried, as those of the code under test are.
    """
    tell, faults = Guest.tell_statistics, itertools.count(10**6)

    def tell_anew(guest: Guest) -> dict[str, int]:
        return tell(guest) | {"minor-faults": next(faults)}

    monkeypatch.setattr(Guest, "tell_statistics", tell_anew)


@pytest.fixture
def fake() -> Iterator[ThreadedFake]:
    with serve(QUICK) as fake:
        yield fake


@pytest.fixture
def newest() -> Iterator[ThreadedFake]:
    """A fake of the first version that gives clients monitors of their own."""
    with serve(QUICK, version="11.1") as fake:
        yield fake


def count_monitors(machine: Machine) -> tuple[int, int, int]:
    """Return how many monitors, devices and descriptors for them QEMU has."""
    files = sum(len(each.files) for each in machine.monitors.values())
    return len(machine.monitors), len(machine.chardevs), files


NONE_ADDED: Final = (1, 1, 0)


@contextmanager
def connected(fake: ThreadedFake) -> Generator[FakeDomain]:
    """Yield a domain whose QEMU is a fake."""
    with blocking.open_monitor(fake.socket) as monitor:
        domain = FakeDomain(monitor)
        domain.hang.set()
        yield domain


@pytest.fixture
def domain(fake: ThreadedFake, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDomain]:
    fake_libvirt.install(monkeypatch)
    with connected(fake) as domain:
        yield domain


@pytest.fixture
def newest_domain(
    newest: ThreadedFake, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeDomain]:
    fake_libvirt.install(monkeypatch)
    with connected(newest) as domain:
        yield domain


# The passthrough has no events.
THROUGH_LIBVIRT: Final = sorted(OPERATIONS.keys() - {"receive"})


async def back(balloon: Balloon) -> None:
    """Make everything what it was in the beginning."""
    await balloon.monitor.execute("cont")
    await balloon.set_target(RAM)
    await balloon.set_stats_interval(INTERVAL)
    while await balloon.actual() != RAM:
        pass


# trio


class HurriedClock(trio.abc.Clock):
    """Cuts short what is only slept away, as :class:`HurriedSelector` does."""

    def __init__(self) -> None:
        self._ahead = 0.0
        self._asleep: tuple[float, float] | None = None

    def start_clock(self) -> None:
        """Trio calls this when it begins; there is nothing to do."""

    def current_time(self) -> float:
        """Return the time in seconds."""
        now = time.monotonic()
        if self._asleep is not None:
            until, skipped = self._asleep
            self._asleep = None
            if now >= until:
                self._ahead += skipped
        return now + self._ahead

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Return how many seconds to wait; trio calls this just before it does."""
        timeout = deadline - self.current_time()
        if not 0 < timeout < 1:
            return timeout
        short = timeout / PACE
        self._asleep = (time.monotonic() + short, timeout - short)
        return short


class CancelAt(trio.abc.Instrument):
    """Cancels a scope when its task has been resumed so many times."""

    def __init__(self, scope: trio.CancelScope, number: int) -> None:
        self._scope = scope
        self._number = number
        self._task = trio.lowlevel.current_task()
        self.count = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count; trio calls this whenever a task has come to a checkpoint."""
        if task is self._task:
            self.count += 1
            if self.count == self._number:
                self._scope.cancel()


async def struck(number: int, operation: Callable[[], Awaitable[object]]) -> int:
    """Cancel an operation at that checkpoint; return how many it came to."""
    with trio.CancelScope() as scope:
        instrument = CancelAt(scope, number)
        trio.lowlevel.add_instrument(instrument)
        try:
            await operation()
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return instrument.count


@pytest.mark.parametrize("name", OPERATIONS)
def test_on_trio(name: str) -> None:
    async def main(vm: FakeQemu, number: int) -> int:
        tasks = trio.lowlevel.current_statistics().tasks_living
        async with open_balloon(vm.connect(), wall_clock=vm.wall_clock) as balloon:
            await balloon.set_stats_interval(INTERVAL)
            count = await struck(number, lambda: OPERATIONS[name](balloon))
            if number != NEVER:
                await balloon.actual()  # what was sent is done
                await check_left_behind(name, balloon, vm.do(target_of))
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living <= tasks
        return count

    count = simulate(lambda vm: main(vm, NEVER), CONFIG)
    for number in places(count):
        simulate(lambda vm, number=number: main(vm, number), CONFIG)


def use_on_trio(
    place: Callable[[], AbstractAsyncContextManager[Balloon[Any]]],
) -> Callable[[], Awaitable[None]]:
    async def use() -> None:
        async with place() as balloon:
            await balloon.query()

    return use


@pytest.mark.parametrize("own", [False, True])
def test_opening_on_trio(newest: ThreadedFake, *, own: bool) -> None:
    use = use_on_trio(lambda: open_balloon(newest.socket, own=own))
    check_opening_on_trio(use, newest)


def test_opening_through_libvirt_on_trio(
    newest_domain: FakeDomain, newest: ThreadedFake
) -> None:
    use = use_on_trio(lambda: libvirt.open_balloon_trio(newest_domain))
    check_opening_on_trio(use, newest)


def check_opening_on_trio(
    use: Callable[[], Awaitable[None]], newest: ThreadedFake
) -> None:
    """Cancel it at each of its places; look at what it leaves behind."""

    async def added() -> bool:
        do = trio.to_thread.run_sync
        return await do(newest.do, count_monitors) != NONE_ADDED

    async def main() -> None:
        tasks = trio.lowlevel.current_statistics().tasks_living
        before = descriptors()
        count = await struck(NEVER, use)
        assert count > 4
        for number in places(count):
            await struck(number, use)
            await wait_all_tasks_blocked()
            assert trio.lowlevel.current_statistics().tasks_living <= tasks
            with trio.fail_after(10):
                # The other side closes its own, too, and nobody tells when.
                while await added() or descriptors() != before:  # noqa: ASYNC110
                    await trio.sleep(0.001)
            await use()  # the place is free again

    trio.run(main)


@pytest.mark.parametrize("name", THROUGH_LIBVIRT)
def test_on_trio_through_libvirt(
    name: str, domain: FakeDomain, fake: ThreadedFake
) -> None:
    async def main() -> None:
        balloon = await libvirt.find_balloon_trio(domain)
        await back(balloon)
        count = await struck(NEVER, lambda: OPERATIONS[name](balloon))
        tasks = trio.lowlevel.current_statistics().tasks_living
        for number in places(count):
            await back(balloon)
            await struck(number, lambda: OPERATIONS[name](balloon))
            await balloon.actual()  # what was sent is done
            target = await trio.to_thread.run_sync(fake.do, target_of)
            await check_left_behind(name, balloon, target)
            assert trio.lowlevel.current_statistics().tasks_living <= tasks

    trio.run(main, clock=HurriedClock())


# asyncio


class HurriedSelector(selectors.DefaultSelector):
    """Cuts short what is only slept away.

    Whoever waits for an answer has a longer timeout than that, and all the time that
    an answer may take.

    Attributes:
        ahead: Seconds by which it has made its loop's time run ahead.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ahead = 0.0

    def select(
        self, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for what is registered."""
        if timeout is None or not 0 < timeout < 1:
            return super().select(timeout)
        ready = super().select(timeout / PACE)
        if not ready:
            self.ahead += timeout * (1 - 1 / PACE)
        return ready


class HurriedLoop(asyncio.SelectorEventLoop):
    """An event loop on which sleeping takes little time."""

    def __init__(self) -> None:
        self._hurried = HurriedSelector()
        super().__init__(self._hurried)

    def time(self) -> float:
        """Return the loop's time in seconds."""
        return time.monotonic() + self._hurried.ahead


@define
class Struck:
    """An awaitable that is cancelled where it waits for the so-manieth time.

    Attributes:
        operation: What to await.
        number: Where to cancel.
        how: ``"at once"``: what it waits for is not done. ``"late"``: it is, and
            the task has not been told yet. ``"relentlessly"``: at once, and wherever
            it waits after that.
        count: How often it waited.
    """

    operation: Coroutine[Any, Any, object]
    number: int
    how: str
    count: int = 0

    def __await__(self) -> Generator[Any, Any, object]:
        """Drive the operation, step by step."""
        cancelled: BaseException | None = None
        while True:
            try:
                if cancelled is None:
                    waits_for = self.operation.send(None)
                else:
                    waits_for = self.operation.throw(cancelled)
            except StopIteration as end:
                return end.value
            self.count += 1
            self._strike(waits_for)
            cancelled = None
            try:
                yield waits_for
            except BaseException as error:  # noqa: BLE001 (it is passed on)
                cancelled = error

    def _strike(self, waits_for: asyncio.Future[object] | None) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self.how == "late" and waits_for is not None:
            if self.count == self.number:
                waits_for.add_done_callback(lambda _: task.cancel())
        elif self.count == self.number or (
            self.how == "relentlessly" and self.count > self.number
        ):
            task.cancel()


async def strike(
    operation: Callable[[], Awaitable[object]], number: int, how: str
) -> int:
    """Cancel an operation there; see that it ends so, and return how often it waits."""

    async def whole() -> object:
        return await operation()

    hit = Struck(whole(), number, how)

    async def main() -> None:
        await hit

    task = asyncio.create_task(main())
    await asyncio.wait({task})
    if not task.cancelled():
        await task
    assert task.cancelled() == (number <= hit.count)
    return hit.count


async def settled(tasks: set[asyncio.Task[Any]], before: set[str]) -> None:
    """Wait until no other tasks and descriptors are there than before."""
    async with asyncio.timeout(300):
        # Nobody tells when.
        while (  # noqa: ASYNC110
            asyncio.all_tasks() != tasks or descriptors() != before
        ):
            await asyncio.sleep(0.001)


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run it on a loop that hurries."""
    with asyncio.Runner(loop_factory=HurriedLoop) as runner:
        runner.run(main)


async def cancelled_everywhere(
    name: str, how: str, balloon: Balloon, fake: ThreadedFake
) -> None:
    """Cancel an operation at each of its places; look at what it leaves behind."""
    await back(balloon)
    count = await strike(lambda: OPERATIONS[name](balloon), NEVER, how)
    before, tasks = descriptors(), asyncio.all_tasks()
    for number in places(count):
        await back(balloon)
        await strike(lambda: OPERATIONS[name](balloon), number, how)
        await balloon.actual()  # what was sent is done
        await check_left_behind(name, balloon, fake.do(target_of))
        await settled(tasks, before)


@pytest.mark.parametrize("how", ["at once", "late", "relentlessly"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_on_asyncio(name: str, how: str, fake: ThreadedFake) -> None:
    async def main() -> None:
        async with aio.open_balloon(fake.socket) as balloon:
            await cancelled_everywhere(name, how, balloon, fake)

    run(main())


@pytest.mark.parametrize("how", ["at once", "late", "relentlessly"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_over_a_client_of_ones_own(name: str, how: str, fake: ThreadedFake) -> None:
    async def main() -> None:
        client = QMPClient()
        await client.connect(fake.socket)
        balloon = await aio.find_balloon(client)
        await cancelled_everywhere(name, how, balloon, fake)
        await client.disconnect()

    run(main())


@pytest.mark.parametrize("how", ["at once", "late", "relentlessly"])
@pytest.mark.parametrize("name", THROUGH_LIBVIRT)
def test_on_asyncio_through_libvirt(
    name: str, how: str, domain: FakeDomain, fake: ThreadedFake
) -> None:
    async def main() -> None:
        threads = threading.active_count()
        balloon = await libvirt.find_balloon_asyncio(domain)
        await cancelled_everywhere(name, how, balloon, fake)
        async with asyncio.timeout(300):
            while threading.active_count() > threads:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.001)

    run(main())


@pytest.mark.parametrize("how", ["at once", "late", "relentlessly"])
def test_finding_through_libvirt(how: str, domain: FakeDomain) -> None:
    async def main() -> None:
        def find() -> Awaitable[Balloon]:
            return libvirt.find_balloon_asyncio(domain)

        count = await strike(find, NEVER, how)
        before, tasks = descriptors(), asyncio.all_tasks()
        for number in places(count):
            await strike(find, number, how)
            assert await (await find()).actual() == RAM
            await settled(tasks, before)

    run(main())


async def use_monitor(path: str) -> None:
    async with aio.open_monitor(path) as monitor:
        await monitor.execute("query-status")


async def use_balloon(path: str) -> None:
    async with aio.open_balloon(path) as balloon:
        await balloon.query()


async def use_own_monitor(path: str) -> None:
    async with aio.open_monitor(path, own=True) as monitor:
        await monitor.execute("query-status")


@pytest.mark.parametrize("how", ["at once", "late", "relentlessly"])
@pytest.mark.parametrize("use", [use_monitor, use_balloon, use_own_monitor])
def test_opening_on_asyncio(
    use: Callable[[str], Awaitable[object]], how: str, newest: ThreadedFake
) -> None:
    run(check_opening(lambda: use(newest.socket), how, newest))


@pytest.mark.parametrize("how", ["at once", "late", "relentlessly"])
def test_opening_over_a_client_of_ones_own(how: str, newest: ThreadedFake) -> None:
    async def main() -> None:
        client = QMPClient()
        await client.connect(newest.socket)

        async def use() -> None:
            async with aio.open_balloon(client, own=True) as balloon:
                await balloon.query()

        await check_opening(use, how, newest)
        assert await client.execute("query-status")
        await client.disconnect()

    run(main())


@pytest.mark.parametrize("how", ["at once", "late", "relentlessly"])
def test_opening_through_libvirt_on_asyncio(
    how: str, newest_domain: FakeDomain, newest: ThreadedFake
) -> None:
    async def use() -> None:
        async with libvirt.open_balloon_asyncio(newest_domain) as balloon:
            await balloon.query()

    run(check_opening(use, how, newest))


async def check_opening(
    use: Callable[[], Awaitable[object]], how: str, newest: ThreadedFake
) -> None:
    """Cancel it at each of its places; look at what it leaves behind."""
    before, tasks = descriptors(), asyncio.all_tasks()
    count = await strike(use, NEVER, how)
    assert count >= 3  # for greeting, negotiation and a command
    for number in places(count):
        await strike(use, number, how)
        await settled(tasks, before)
        while newest.do(count_monitors) != NONE_ADDED:
            pass
        await use()  # the place is free again


@pytest.mark.parametrize("how", ["at once", "late", "relentlessly"])
def test_finding_with_a_client_of_ones_own(how: str, fake: ThreadedFake) -> None:
    async def main() -> None:
        client = QMPClient()
        await client.connect(fake.socket)
        count = await strike(lambda: aio.find_balloon(client), NEVER, how)
        before, tasks = descriptors(), asyncio.all_tasks()
        for number in places(count):
            await strike(lambda: aio.find_balloon(client), number, how)
            assert await client.execute("query-status")
            await settled(tasks, before)
        await client.disconnect()

    run(main())
