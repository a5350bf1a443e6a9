"""A supervised fleet, with whatever can be wrong with a VM, on a mock clock."""

from __future__ import annotations

import errno
import inspect
import math
import os
import random
import resource
import socket
import sys
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
import trio.testing
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from qemu_likes import fake_process
from suffering import NEEDS, SUFFERINGS, Suffering, SufferingKind
from worlds import GUEST, become, open_world, simulated, states, supervised, view

from qmpballoon.address import LibvirtVm, UnixAddress
from qmpballoon.errors import (
    BalloonBusy,
    MonitorBusy,
    MonitorUnreachable,
    UntrustedMonitor,
)
from qmpballoon.fleet import command_line, processes, sources, vm_spec
from qmpballoon.fleet.policy import Move
from qmpballoon.fleet.sources import make_source
from qmpballoon.fleet.supervisor import Settings, open_fleet, raise_descriptor_limit
from qmpballoon.fleet.vm_spec import Refused, VmSpec
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import SECOND, GuestConfig, MachineConfig, ramp, serve
from qmpballoon.trio import open_monitor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Sequence
    from types import FrameType

    from qmpballoon.address import Vm
    from qmpballoon.fleet.sources import Source
    from qmpballoon.fleet.vm_view import VmState
    from qmpballoon.monitor import Command
    from qmpballoon.testing import FakeQemu, Machine
    from qmpballoon.trio import TrioMonitor


def interval(fake: object) -> int:
    return fake.machine.device.interval  # type: ignore[attr-defined, no-any-return]


@simulated
async def test_healthy_vms_are_known_within_seconds() -> None:
    async with open_world() as world:
        for name in ("a", "b", "c"):
            world.start(name)
        async with supervised(world) as fleet:
            assert states(fleet) == dict.fromkeys("abc", "connecting")
            assert await fleet.wait_until_known(5.0)
            assert states(fleet) == dict.fromkeys("abc", "healthy")
            assert [
                m.name for m in sorted(fleet.list_guests(), key=lambda m: m.name)
            ] == [*"abc"]
            seen = view(fleet, "a")
            assert (seen.actual, seen.total) == (2 * GiB, 2 * GiB)
            assert seen.to_json()["detail"] == ""


@simulated
async def test_statistics_are_polled_and_the_interval_is_restored() -> None:
    async with open_world() as world:
        fake = world.start("vm")
        fake.machine.device.set_interval(7, 0)  # type: ignore[union-attr]
        async with supervised(world) as fleet:
            await become(fleet, {"vm": "healthy"})
            assert interval(fake) == 1
        assert interval(fake) == 7


@pytest.mark.parametrize(("period", "seconds"), [(1.0, 1), (5.0, 5)])
@simulated
async def test_the_usage_increase_is_that_until_the_next_plan(
    period: float, seconds: int
) -> None:
    workload = ramp(0, 100 * SECOND, 1000 * MiB, 1000)
    config = MachineConfig(memory=4 * GiB, guest=evolve(GUEST, workload=workload))
    async with open_world() as world:
        world.start("vm", config)
        settings = Settings(period=period, stale_after=3 * period)
        async with supervised(world, settings) as fleet:
            await trio.sleep(60)
            (guest,) = fleet.list_guests()
            assert guest.usage_increase == pytest.approx(seconds * 10 * MiB, rel=0.2)


@simulated
async def test_every_ill_is_told_apart_and_harms_nobody_else() -> None:
    async with open_world() as world:
        world.start("well")
        world.start("bare", MachineConfig(balloon=None))
        world.start("no-driver", MachineConfig(guest=evolve(GUEST, driver=False)))
        mute = world.start("mute")
        world.add("gone")
        held = world.start("held")
        async with open_monitor(held.connect()), supervised(world) as fleet:
            await become(fleet, {"mute": "healthy"})
            mute.machine.stop()
            mute.touch()
            await become(
                fleet,
                {
                    "well": "healthy",
                    "bare": "no-balloon",
                    "no-driver": "no-driver",
                    "mute": "stale",
                    "gone": "gone",
                    "held": "busy",
                },
            )
            for name in ("bare", "gone", "held"):
                assert view(fleet, name).detail
            assert [guest.name for guest in fleet.list_guests()] == ["well"]


@simulated
async def test_who_comes_back_is_taken_up_again() -> None:
    async with open_world() as world:
        fake = world.start("vm")
        async with supervised(world) as fleet:
            await become(fleet, {"vm": "healthy"})
            fake.machine.quit()
            fake.touch()
            await become(fleet, {"vm": "gone"})
            world.start("vm")
            await become(fleet, {"vm": "healthy"})
            assert view(fleet, "vm").counters.losses == 1


@simulated
async def test_who_has_left_the_fleet_keeps_no_task() -> None:
    def count_tasks() -> int:
        return trio.lowlevel.current_statistics().tasks_living

    async with open_world() as world, supervised(world) as fleet:
        tasks = count_tasks()
        world.add("gone")
        await become(fleet, {"gone": "gone"})
        await trio.sleep(300)  # the longest pause between two attempts to connect
        assert count_tasks() > tasks
        del world.specs["gone"]
        await trio.sleep(Settings().rescan)
        await trio.testing.wait_all_tasks_blocked()
        assert states(fleet) == {}
        assert count_tasks() == tasks


@simulated
async def test_a_hanging_qemu_costs_nobody_else_anything() -> None:
    async with open_world() as world:
        hanging = world.start("hanging")
        world.start("well")
        async with supervised(world) as fleet:
            await become(fleet, {"hanging": "healthy", "well": "healthy"})
            hanging.machine.reply_delay = 3600 * SECOND
            await become(fleet, {"hanging": "stale", "well": "healthy"})
            await trio.sleep(5)
            assert "did not answer" in view(fleet, "hanging").detail
            begun = trio.current_time()
            fleet.start_move(Move("well", 2 * GiB, GiB + 512 * MiB, "test"))
            assert await fleet.wait_for_moves(10.0)
            assert view(fleet, "well").actual == GiB + 512 * MiB
            assert trio.current_time() - begun < 5
            hanging.machine.reply_delay = 0
            hanging.touch()
        # Even one that hangs does not hold up the end.


@simulated
async def test_a_balloon_is_lent_to_one_at_a_time() -> None:
    async with open_world() as world:
        fake = world.start("vm")
        async with supervised(world) as fleet:
            with pytest.raises(MonitorUnreachable, match="not connected"):
                async with fleet.borrow("vm", GiB):
                    pass
            await become(fleet, {"vm": "healthy"})
            async with fleet.borrow("vm", GiB) as balloon:
                assert view(fleet, "vm").target == GiB
                with pytest.raises(BalloonBusy, match="is moving"):
                    async with fleet.borrow("vm", GiB):
                        pass
                fleet.start_move(Move("vm", 2 * GiB, 3 * GiB // 2, "test"))
                await balloon.resize(GiB)
                await trio.sleep(3)
                assert view(fleet, "vm").actual == GiB, "it is polled meanwhile"
                fleet.note_size("vm", 7 * MiB)
                assert view(fleet, "vm").actual == 7 * MiB
            await trio.sleep(3)
            assert fake.machine.guest.memory.balloon == GiB
            assert view(fleet, "vm").target is None
            fleet.start_move(Move("vm", GiB, 2 * GiB, "test"))
            with pytest.raises(BalloonBusy):
                async with fleet.borrow("vm", GiB):
                    pass
            assert await fleet.wait_for_moves(10)


async def flood(stream: trio.abc.Stream, data: bytes) -> None:
    """Greet, then send the same for ever."""
    try:
        await stream.send_all(
            b'{"QMP": {"version": {"qemu": {"major": 1, "minor": 1, "micro": 1},'
            b' "package": ""}, "capabilities": []}}\r\n'
        )
        while True:
            await stream.send_all(data)
            await trio.sleep(0.01)
    except trio.BrokenResourceError:
        pass


@pytest.mark.parametrize(
    "data",
    [
        b'{"event": "X", "timestamp": {"seconds": 1, "microseconds": 1}}',
        b"[" * 2000,
        b"\xff\xfe\x00",
        b'{"return": {}, "id": 77}',
    ],
)
@simulated
async def test_a_hostile_peer_costs_nobody_else_anything(data: bytes) -> None:
    async with open_world() as world, trio.open_nursery() as nursery:
        world.start("well")

        def connect() -> trio.abc.Stream:
            ours, theirs = trio.testing.memory_stream_pair()
            nursery.start_soon(partial(flood, theirs, data))
            return ours

        world.strange["hostile"] = connect
        world.add("hostile")
        async with supervised(world) as fleet:
            await become(fleet, {"hostile": "gone", "well": "healthy"})
            assert view(fleet, "hostile").detail
        nursery.cancel_scope.cancel()


@simulated
async def test_attempts_become_rarer_and_are_spread() -> None:
    async with open_world() as world:
        world.add("gone")
        world.add("also gone")
        async with supervised(world):
            await trio.sleep(600)
        by_name = [
            [when for when, name in world.dialled if name == wanted]
            for wanted in ("gone", "also gone")
        ]
        for times in by_name:
            gaps = [after - before for before, after in pairwise(times)]
            assert gaps[0] < 2
            assert max(gaps) <= 31
            assert min(gaps[8:]) >= 15
            assert 20 < len(times) < 50
            assert len({round(gap, 3) for gap in gaps[8:]}) > 1
        assert not set(by_name[0]) & set(by_name[1])


@simulated
async def test_vms_come_and_go() -> None:
    async with open_world() as world:
        fake = world.start("old")
        async with supervised(world) as fleet:
            await become(fleet, {"old": "healthy"})
            world.start("new")
            await become(fleet, {"new": "healthy"})
            # Its socket is gone, but the connection stands.
            del world.specs["old"]
            await trio.sleep(30)
            assert states(fleet) == {"old": "healthy", "new": "healthy"}
            fake.machine.quit()
            fake.touch()
            await trio.sleep(30)
            assert states(fleet) == {"new": "healthy"}


@simulated
async def test_a_move_is_made_and_seen_through() -> None:
    async with open_world() as world:
        world.start("vm")
        async with supervised(world) as fleet:
            await become(fleet, {"vm": "healthy"})
            fleet.start_move(Move("vm", 2 * GiB, GiB + 256 * MiB, "test"))
            assert view(fleet, "vm").target == GiB + 256 * MiB
            (guest,) = fleet.list_guests()
            assert guest.is_moving
            # Who is on its way is not sent elsewhere, and who is unknown not at all.
            fleet.start_move(Move("vm", 2 * GiB, GiB, "test"))
            fleet.start_move(Move("nobody", 2 * GiB, GiB, "test"))
            assert await fleet.wait_for_moves(20.0)
            seen = view(fleet, "vm")
            assert (seen.actual, seen.target) == (GiB + 256 * MiB, None)
            assert seen.counters.taken == 768 * MiB
            assert fleet.list_guests() == []  # until it has answered at its new size
            assert await fleet.wait_until_known(5.0)
            assert len(fleet.list_guests()) == 1


@simulated
async def test_a_move_leaves_a_guest_the_headroom_of_its_vm() -> None:
    async with open_world() as world:
        fake = world.start("vm")
        world.add("vm", headroom="512MiB")
        async with supervised(world) as fleet:
            await become(fleet, {"vm": "healthy"})
            fleet.start_move(Move("vm", 2 * GiB, 128 * MiB, "test"))
            assert await fleet.wait_for_moves(60.0)
            fake.touch()
            memory = fake.machine.guest.memory
            assert 0.9 * GiB < 2 * memory.available < 1.1 * GiB


@pytest.mark.parametrize("kind", SUFFERINGS)
@simulated
async def test_a_guest_that_suffers_from_a_move_is_let_alone_and_rests(
    kind: SufferingKind,
) -> None:
    guest = GuestConfig(used=128 * MiB, cache=512 * MiB, inflate_rate=512 * MiB)
    async with open_world() as world:
        fake = world.start("vm", MachineConfig(memory=2 * GiB, guest=guest))
        suffering = Suffering(fake.machine, kind)
        async with supervised(world) as fleet, trio.open_nursery() as nursery:
            await become(fleet, {"vm": "healthy"})
            nursery.start_soon(look_all_the_time, fake, suffering)
            fleet.start_move(Move("vm", 2 * GiB, GiB // 2, "test"))
            assert await fleet.wait_for_moves(60.0)
            assert suffering.lowest >= suffering.least
            assert suffering.told >= NEEDS
            seen = view(fleet, "vm")
            assert (seen.counters.moves, seen.counters.stalls) == (1, 1)
            assert seen.state in {"stalled", "stale"}
            nursery.cancel_scope.cancel()


async def look_all_the_time(fake: FakeQemu, suffering: Suffering) -> None:
    while True:
        fake.touch()
        suffering.look()
        await trio.sleep(0.02)


@simulated
async def test_a_guest_without_a_driver_in_need_of_a_move_stalls() -> None:
    async with open_world() as world:
        fake = world.start("vm")
        async with supervised(world) as fleet:
            await become(fleet, {"vm": "healthy"})
            # As if virtio_balloon kept answering, and did not inflate.
            fake.machine.guest.stall(300 * SECOND)
            fleet.start_move(Move("vm", 2 * GiB, GiB, "test"))
            assert await fleet.wait_for_moves(60.0)
            assert view(fleet, "vm").counters.stalls == 1
            # Nothing goes on pulling at it.
            assert fake.machine.guest.target == 0


@simulated
async def test_the_end_leaves_nothing_half_moved() -> None:
    async with open_world() as world:
        fake = world.start("vm", MachineConfig(memory=16 * GiB))
        async with supervised(world) as fleet:
            await become(fleet, {"vm": "healthy"})
            fleet.start_move(Move("vm", 16 * GiB, 2 * GiB, "test"))
            await trio.sleep(3)
            assert 2 * GiB < (view(fleet, "vm").actual or 0) < 16 * GiB
        await trio.sleep(60)
        fake.touch()
        guest = fake.machine.guest
        assert guest.memory.balloon == guest.target > 0
        assert interval(fake) == 0


@simulated
async def test_what_goes_wrong_in_the_block_comes_out_as_it_is() -> None:
    async with open_world() as world:
        world.start("vm")
        with pytest.raises(ZeroDivisionError):
            async with supervised(world):
                1 / 0  # noqa: B018


FAULTS = ("quit", "pause", "hang", "reset", "stall", "resume")


@settings(max_examples=15)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b"]), st.sampled_from(FAULTS), st.integers(1, 12)
        ),
        max_size=5,
    ),
    st.integers(0, 5),
)
def test_whatever_happens_to_others_a_healthy_vm_stays_so(
    faults: list[tuple[str, str, int]], seed: int
) -> None:
    @simulated
    async def with_faults() -> None:
        async with open_world() as world:
            for name in ("a", "b", "well"):
                world.start(name)
            async with supervised(world, Settings(), seed) as fleet:
                await become(fleet, {"well": "healthy"})
                for name, fault, seconds in faults:
                    inflict(world.fakes[name], fault)
                    fleet.start_move(Move(name, 2 * GiB, GiB, "test"))
                    for _ in range(seconds):
                        await trio.sleep(1)
                        assert states(fleet)["well"] == "healthy"

    with_faults()


def inflict(fake: object, fault: str) -> None:
    machine = fake.machine  # type: ignore[attr-defined]
    if machine.ended:
        return
    match fault:
        case "quit":
            machine.quit()
        case "pause":
            machine.stop()
        case "resume":
            machine.resume()
            machine.reply_delay = 0
        case "hang":
            machine.reply_delay = 100 * SECOND
        case "reset":
            machine.reset(by_guest=True)
        case "stall":
            machine.guest.stall(20 * SECOND)
    fake.touch()  # type: ignore[attr-defined]


@simulated
async def test_a_vm_of_libvirts_needs_an_opener_that_knows_it() -> None:
    def source() -> list[VmSpec]:
        return [VmSpec("vm", LibvirtVm("vm"))]

    async with open_fleet(source, random.Random(0)) as fleet:
        await become(fleet, {"vm": "gone"})
        assert "is libvirt's" in view(fleet, "vm").detail


@simulated
async def test_a_socket_that_this_process_may_not_write_to_is_told_as_that() -> None:
    @asynccontextmanager
    async def closed(*_: object, **__: float) -> AsyncGenerator[TrioMonitor, None]:
        error = MonitorUnreachable("no permission for vm: run as the user of QEMU")
        error.errno = errno.EACCES
        raise error
        yield

    def source() -> list[VmSpec]:
        return [VmSpec("vm", UnixAddress("vm"))]

    async with open_fleet(source, random.Random(0), opener=closed) as fleet:
        await become(fleet, {"vm": "no-permission"})
        assert (
            view(fleet, "vm").detail == "no permission for vm: run as the user of QEMU"
        )


@simulated
async def test_what_a_busy_vm_holds_counts() -> None:
    """A limit is for all VMs, those that another client talks to included."""

    @asynccontextmanager
    async def busy(*_: object, **__: float) -> AsyncGenerator[TrioMonitor, None]:
        error = MonitorBusy("another client is served")
        error.pid = os.getpid()
        raise error
        yield

    def source() -> list[VmSpec]:
        return [VmSpec("vm", UnixAddress("vm"))]

    async with open_fleet(source, random.Random(0), opener=busy) as fleet:
        await become(fleet, {"vm": "busy"})
        assert fleet.held > MiB
        assert view(fleet, "vm").resident == fleet.held
        assert fleet.list_guests() == []


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("period", 0, ValueError),
        ("period", math.inf, ValueError),
        ("period", math.nan, ValueError),
        ("rescan", 100_000, ValueError),
        ("open_timeout", -1, ValueError),
        ("command_timeout", "5", TypeError),
    ],
)
def test_settings_that_make_no_sense(
    name: str, value: object, error: type[Exception]
) -> None:
    with pytest.raises(error, match=f"^{name} is"):
        Settings(**{name: cast("Any", value)})


@simulated
async def test_the_ram_is_asked_for_at_once_and_then_once_a_minute() -> None:
    async with open_world() as world:
        fake = world.start("vm")
        summary, asked = fake.machine.commands["query-memory-size-summary"], 0

        def count(arguments: Any) -> Any:  # noqa: ANN401 - JSON
            nonlocal asked
            asked += 1
            return summary.run(arguments)

        fake.machine.commands = {
            **fake.machine.commands,
            "query-memory-size-summary": evolve(summary, run=count),
        }
        async with supervised(world) as fleet:
            await become(fleet, {"vm": "healthy"})
            assert view(fleet, "vm").total == 2 * GiB
            at_first = asked
            await trio.sleep(50)
            assert asked == at_first
            await trio.sleep(20)
            assert asked == at_first + 1


# Which VM is which


def seen_at(name: str, path: str, **known: object) -> VmSpec:
    return VmSpec(name, UnixAddress(path), **known)  # type: ignore[arg-type]


@simulated
async def test_a_name_once_given_stays() -> None:
    async with open_world() as world:
        world.start("a/vm")
        world.start("b/vm")
        world.specs = {"a": seen_at("vm", "a/vm")}
        async with supervised(world) as fleet:
            await become(fleet, {"vm": "healthy"})
            # From now on the source calls both after their addresses.
            world.specs = {path: seen_at(path, path) for path in ("a/vm", "b/vm")}
            await become(fleet, {"vm": "healthy", "b/vm": "healthy"})
            assert len(states(fleet)) == 2
            assert view(fleet, "vm").address == "a/vm"


@simulated
async def test_vms_that_share_a_name_get_others() -> None:
    async with open_world() as world:
        for path in ("a", "b", "c"):
            world.start(path)
        world.specs = {path: seen_at("a", path) for path in ("a", "b", "c")}
        async with supervised(world) as fleet:
            await become(fleet, {"a": "healthy", "b": "healthy", "c": "healthy"})
            fleet.start_move(Move("b", 2 * GiB, GiB, "test"))
            assert view(fleet, "b").target == GiB
            assert view(fleet, "a").target is None


@simulated
async def test_the_same_qemu_under_another_address_is_the_same_vm() -> None:
    async with open_world() as world:
        fake = world.start("1.qmp")
        world.fakes["2.qmp"] = fake
        world.specs = {"vm": seen_at("vm", "1.qmp", process=7, socket=1)}
        async with supervised(world) as fleet:
            await become(fleet, {"vm": "healthy"})
            world.specs = {"vm": seen_at("other", "2.qmp", process=7, socket=2)}
            await trio.sleep(20)
            assert states(fleet) == {"vm": "healthy"}
            assert [name for _, name in world.dialled] == ["1.qmp"]


@simulated
async def test_another_qemu_at_the_same_address_is_another_vm() -> None:
    async with open_world() as world:
        old = world.start("1.qmp")
        world.specs = {"vm": seen_at("vm", "1.qmp", process=7, socket=1)}
        async with supervised(world) as fleet:
            await become(fleet, {"vm": "healthy"})
            # The old one runs on without its socket's file.
            world.start("1.qmp")
            world.specs = {"vm": seen_at("vm", "1.qmp", process=8, socket=2)}
            await become(fleet, {"vm": "healthy", "1.qmp": "healthy"})
            old.machine.quit()
            old.touch()
            await trio.sleep(30)
            assert states(fleet) == {"1.qmp": "healthy"}


@simulated
async def test_two_monitors_of_one_qemu_are_one_vm() -> None:
    """Also where only the connection tells that they are one QEMU's."""

    @asynccontextmanager
    async def reach(vm: Vm, /, **options: float) -> AsyncGenerator[TrioMonitor, None]:
        async with world.reach(vm, **options) as monitor:
            monitor.pid = {"other": os.getppid()}.get(str(vm), os.getpid())
            yield monitor

    async with open_world() as world:
        for name in ("tcp", "unix", "other"):
            world.start(name)
        async with open_fleet(world.source, random.Random(0), opener=reach) as fleet:
            await trio.sleep(60)
            assert len(states(fleet)) == 2
            held = next(name for name in states(fleet) if name != "other")
            left = "unix" if held == "tcp" else "tcp"
            assert [name for _, name in world.dialled].count(left) == 1
            world.fakes[held].machine.quit()
            world.fakes[held].touch()
            await become(fleet, {left: "healthy", "other": "healthy"})


@simulated
async def test_qemu_has_the_last_word_on_a_name_that_nobody_chose() -> None:
    async with open_world() as world:
        for path in ("1", "2", "3"):
            world.start(path, evolve(MachineConfig(), name="web\x1b"))
        world.start("4", evolve(MachineConfig(), name=None))
        world.specs = {
            path: seen_at(f"pid-{path}", path, is_named=path == "3")
            for path in ("1", "2", "3", "4")
        }
        async with supervised(world) as fleet:
            wanted = {r"web\x1b": "healthy", "pid-3": "healthy", "pid-4": "healthy"}
            await become(fleet, cast("dict[str, VmState]", wanted))
            await trio.sleep(10)
            # The second to say so is called by its address: the name is taken.
            assert len(states(fleet)) == 4
            assert {*states(fleet)} - {*wanted} <= {"1", "2"}


@simulated
async def test_qemu_is_asked_for_a_name_once() -> None:
    async with open_world() as world:
        fake = world.start("1", MachineConfig(name="web"))
        specs = {"1": seen_at("pid-1", "1", is_named=False)}
        world.specs = specs.copy()
        async with supervised(world) as fleet:
            await become(fleet, {"web": "healthy"})
            fake.machine.quit()
            fake.touch()
            await become(fleet, {"web": "gone"})
            world.start("1", MachineConfig(name="mail"))
            world.specs = specs
            await become(fleet, {"web": "healthy"})


# What is refused


@simulated
async def test_who_listens_there_instead_is_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @asynccontextmanager
    async def refuse(*_: object, **__: float) -> AsyncGenerator[TrioMonitor, None]:
        raise UntrustedMonitor("vm belongs to user nobody")
        yield

    def source() -> list[VmSpec | Refused]:
        return [seen_at("vm", "vm"), Refused("pid-7", "it is perl", pid=7)]

    async with open_fleet(source, random.Random(0), opener=refuse) as fleet:
        await become(fleet, {"vm": "refused"})
        assert view(fleet, "vm").detail == "vm belongs to user nobody"
        assert fleet.list_refused() == [Refused("pid-7", "it is perl", pid=7)]
        await trio.sleep(60)
    assert caplog.messages == [
        "pid-7 is refused: it is perl",
        "vm: vm belongs to user nobody",
    ]


@simulated
async def test_a_source_that_fails_ends_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_world() as world:
        world.start("vm")
        broken = False

        def source() -> list[VmSpec]:
            return [world.specs["vm"] if not broken else cast("Any", 1 / 0)]

        async with open_fleet(source, random.Random(0), opener=world.reach) as fleet:
            await become(fleet, {"vm": "healthy"})
            broken = True
            await trio.sleep(60)
            assert states(fleet) == {"vm": "healthy"}
            (refused,) = fleet.list_refused()
            assert "VMs cannot be looked for: ZeroDivisionError" in refused.reason
            broken = False
            await trio.sleep(10)
            assert fleet.list_refused() == []
        assert len(caplog.messages) == 1


SCANNED = {module.__file__ for module in (sources, processes, command_line, vm_spec)}


@contextmanager
def failing_at_call(number: int | None) -> Generator[list[str]]:
    """Let the search for VMs raise when it calls a function for the nth time.

    It yields the names of the functions that are called until then.
    """
    called: list[str] = []

    def trace(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        # Closing a generator that was not read to its end is no call.
        if event != "call" or code.co_flags & inspect.CO_GENERATOR:
            return
        if code.co_filename not in SCANNED:
            return
        called.append(code.co_qualname)
        if len(called) - 1 == number:
            raise OSError(errno.EIO, "injected")

    sys.setprofile(trace)
    try:
        yield called
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("kind", ["processes", "entries"])
def test_whatever_call_of_a_search_fails_the_vms_stay(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("vm")
        path = str(tmp_path / "vm")
        proc = tmp_path / "proc"
        line = ["-name", "vm", "-qmp", "unix:/x", "-readconfig", "/nothing"]
        line += ["-chardev", f"socket,id=c,path={path},server=on", "-qmp", "chardev:c"]
        fake_process(proc, 7, ["qemu-kvm", *line])
        fake_process(proc, 8, ["qemu-kvm"], exe="/usr/bin/perl")
        monkeypatch.setattr(
            sources,
            "find_processes",
            lambda *_, known: processes.find_processes({0, os.geteuid()}, proc, known),
        )
        Path("fleet.toml").write_text("[[vm]]\nsockets = 'v*'\n", encoding="utf-8")
        wanted = [] if kind == "processes" else ["fleet.toml", "v?", path]
        search_with_failures(source=make_source(wanted))


@simulated
async def search_with_failures(*, source: Source) -> None:
    """Let each call of a search fail, one after the other."""
    number: int | None = None
    called: list[str] = []

    def find() -> Sequence[VmSpec | Refused]:
        nonlocal called
        with failing_at_call(number) as called:
            return source()

    async with open_world() as world:
        (spec,) = [each for each in find() if isinstance(each, VmSpec)]
        whole = len(called)
        assert whole > 20
        world.fakes[str(spec.address)] = world.start("vm")
        async with open_fleet(find, random.Random(0), opener=world.reach) as fleet:
            await become(fleet, {"vm": "healthy"})
            number = 0
            while number < whole:
                await trio.sleep(Settings().rescan)
                assert states(fleet) == {"vm": "healthy"}, called[-1]
                number += 1
            number = None
            await trio.sleep(Settings().rescan)
            assert not any("injected" in each.reason for each in fleet.list_refused())


# Descriptors


@simulated
async def test_some_descriptors_stay_free() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with open_world() as world:
        world.start("vm")
        async with supervised(world) as fleet:
            used = os.open("/", os.O_RDONLY)
            os.close(used)
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + 2, hard))
            try:
                await become(fleet, {"vm": "gone"})
                assert "no file descriptor left" in view(fleet, "vm").detail
                raise_descriptor_limit()
                assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
                await become(fleet, {"vm": "healthy"})
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@simulated
async def test_the_interval_is_set_again_whoever_has_cleared_it() -> None:
    async with open_world() as world:
        fake = world.start("vm")
        async with supervised(world) as fleet:
            await become(fleet, {"vm": "healthy"})
            for _ in range(3):
                fake.do(lambda machine: machine.device.set_interval(0, machine.now))  # type: ignore[union-attr]
                for _ in range(20):
                    await trio.sleep(0.5)
                    assert states(fleet) == {"vm": "healthy"}
                assert interval(fake) == 1


@simulated
async def test_a_guest_that_answers_has_its_interval_set_once() -> None:
    async with open_world() as world:
        fake = world.start("vm")
        setting, times = fake.machine.commands["qom-set"], 0

        def count(arguments: Any) -> Any:  # noqa: ANN401 - JSON
            nonlocal times
            times += 1
            return setting.run(arguments)

        commands = {**fake.machine.commands, "qom-set": evolve(setting, run=count)}
        fake.machine.commands = commands
        async with supervised(world) as fleet:
            await become(fleet, {"vm": "healthy"})
            await trio.sleep(20)
            assert times == 1


@simulated
async def test_a_vm_that_is_paused_from_the_start_is_not_told_to_load_a_driver() -> (
    None
):
    async with open_world() as world:
        world.start("vm", MachineConfig(paused=True))
        incoming = world.start("incoming", MachineConfig(paused=True))
        incoming.machine.status = "inmigrate"
        async with supervised(world) as fleet:
            await become(fleet, {"vm": "stale", "incoming": "stale"})
            assert "start it (cont)" in view(fleet, "vm").detail
            assert "migration" in view(fleet, "incoming").detail


@pytest.mark.parametrize("value", [10**400, -7, 1.5, "7", 2**64, 5 * GiB])
@simulated
async def test_who_shows_nonsense_moves_nobody(value: object) -> None:
    async with open_world() as world:
        world.start("bad", MachineConfig(shows={"available-memory": value}))
        world.start("good")
        async with supervised(world) as fleet:
            await become(fleet, {"bad": "nonsense", "good": "healthy"})
            for _ in range(20):
                await trio.sleep(1)
                assert [guest.name for guest in fleet.list_guests()] == ["good"]


@simulated
async def test_who_holds_what_the_host_cannot_see_counts_with_its_size() -> None:
    async with open_world() as world:
        world.seen.add("seen")
        seen = world.start("seen")
        world.start("unseen")
        async with supervised(world) as fleet:
            await become(fleet, {"seen": "healthy", "unseen": "healthy"})
            assert fleet.held == seen.machine.resident + 2 * GiB


@simulated
async def test_what_a_guest_has_just_touched_counts_whoever_else_is_gone() -> None:
    async with open_world() as world:
        world.add("other")
        world.seen.add("vm")
        fake = world.start("vm")
        async with supervised(world) as fleet:
            await become(fleet, {"other": "gone", "vm": "healthy"})
            before = fleet.held
            fake.machine.guest.memory.allocate(256 * MiB)
            fleet.measure_resident()
            assert fleet.held == fake.machine.resident > before


@simulated
async def test_who_hung_up_counts_with_its_size_until_it_has_ended() -> None:
    async with open_world() as world:
        fake = world.start("vm")
        async with supervised(world) as fleet:
            await become(fleet, {"vm": "healthy"})
            # It breaks the connection, and keeps whoever comes next waiting.
            world.strange["vm"] = lambda: trio.testing.memory_stream_pair()[0]
            del world.fakes["vm"]
            fake.do(lambda machine: machine.die())
            await become(fleet, {"vm": "busy"})
            assert fleet.held == 2 * GiB
            world.strange.clear()
            await become(fleet, {"vm": "gone"})
            assert fleet.held == 0


@simulated
async def test_a_fleet_is_complete_once_each_vm_was_tried() -> None:
    async with open_world() as world:
        world.start("vm")
        world.strange["silent"] = lambda: trio.testing.memory_stream_pair()[0]
        world.add("silent")
        async with supervised(world) as fleet:
            await become(fleet, {"vm": "healthy", "silent": "connecting"})
            assert not fleet.is_complete
            await become(fleet, {"vm": "healthy", "silent": "busy"})
            assert fleet.is_complete


def test_a_fleet_has_monitors_of_its_own() -> None:
    """The shared ones are free for others, where QEMU can add monitors."""

    async def main() -> list[str]:
        rng = random.Random(0)
        async with open_fleet(lambda: [vm], rng) as fleet:
            assert await fleet.wait_until_known(30)
            return await trio.to_thread.run_sync(fake.do, list_clients)

    def list_clients(machine: Machine) -> list[str]:
        return [name for name, each in machine.chardevs.items() if each.is_served]

    with serve(version="11.1") as fake:
        vm = VmSpec("vm", UnixAddress(fake.socket))
        assert len(trio.run(main)) == 1


@simulated
async def test_an_idle_guest_is_polled_less_often_until_it_does_something() -> None:
    looks = Counter[str]()
    async with open_world() as world:
        fakes = {name: world.start(name) for name in ("seen", "unseen")}
        world.seen = {"seen"}

        @asynccontextmanager
        async def reach(vm: Vm, /, **timeouts: float) -> AsyncGenerator[TrioMonitor]:
            async with world.reach(vm, **timeouts) as monitor:
                execute_all = monitor.execute_all

                async def count(commands: Sequence[Command]) -> list[object]:
                    looks[str(vm)] += 1
                    return await execute_all(commands)

                monitor.execute_all = count  # type: ignore[method-assign]
                yield monitor

        async with supervised(world, opener=reach) as fleet:
            await become(fleet, dict.fromkeys(fakes, "healthy"))
            before = looks.copy()
            await trio.sleep(40)
            assert 8 <= looks["seen"] - before["seen"] <= 12
            assert looks["unseen"] - before["unseen"] >= 38
            assert fleet.poll_delay < 0.1
            assert states(fleet) == dict.fromkeys(fakes, "healthy")
            available = view(fleet, "seen").stats.available or 0
            fakes["seen"].do(lambda machine: machine.guest.memory.allocate(available))
            # The guest answers once a second, and is polled in each of its turns.
            await trio.sleep(2.1)
            assert (view(fleet, "seen").stats.available or 0) < available // 8
