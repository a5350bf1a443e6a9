"""A supervised fleet: which VMs it has, what they are called, and what all hold."""

from __future__ import annotations

import errno
import inspect
import os
import random
import socket
import sys
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
import trio.testing
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from qemu_likes import fake_process
from worlds import GUEST, become, open_world, simulated, states, supervised, view

from qmpballoon.address import UnixAddress
from qmpballoon.fleet import command_line, processes, sources, vm_spec
from qmpballoon.fleet.policy import Move
from qmpballoon.fleet.sources import make_source
from qmpballoon.fleet.supervisor import open_fleet
from qmpballoon.fleet.vm_spec import Refused, VmSpec
from qmpballoon.fleet.vm_task import Settings
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import SECOND, MachineConfig, ramp

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Sequence
    from types import FrameType

    from qmpballoon.address import Vm
    from qmpballoon.fleet.sources import Source
    from qmpballoon.fleet.vm_view import VmState
    from qmpballoon.trio import TrioMonitor


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
        assert fake.machine.device is not None
        assert fake.machine.device.interval == 0


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
