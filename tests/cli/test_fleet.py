"""``qmpballoon fleet`` against simulated VMs, each time in a process of its own."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import documents
import pytest
import trio
from attrs import evolve
from command import FAST, PROGRAM, actual, run, serve, start, until
from qemu_likes import listening

from qmpballoon.sizes import GiB, MiB, format_size
from qmpballoon.testing import SECOND, GuestConfig, Machine

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from qmpballoon.testing import FakeQemu


@asynccontextmanager
async def fleet(
    folder: Path, *, mute: bool = False, guest: GuestConfig = FAST
) -> AsyncGenerator[dict[str, FakeQemu]]:
    """Serve a large VM, a small one, and perhaps one without a driver."""
    async with AsyncExitStack() as stack:

        async def vm(name: str, memory: int, *, driver: bool = True) -> FakeQemu:
            config = evolve(guest, driver=driver)
            path = folder / f"{name}.qmp"
            return await stack.enter_async_context(serve(path, config, memory=memory))

        if mute:
            await vm("mute", GiB, driver=False)
        yield {
            "large": await vm("large", 4 * GiB),
            "small": await vm("small", 2 * GiB),
        }


def short(folder: Path, left: int) -> Path:
    """Make a control group of 8 GiB that has so much left."""
    group = folder / "group"
    group.mkdir()
    (group / "memory.max").write_text(str(8 * GiB))
    (group / "memory.current").write_text(str(8 * GiB - left))
    (group / "memory.stat").write_text("inactive_file 0\n")
    return group


def object_of(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert result.stderr == ""
    (line,) = result.stdout.splitlines()
    value = json.loads(line)
    assert isinstance(value, dict)
    return value


async def test_status(tmp_path: Path) -> None:
    async with fleet(tmp_path, mute=True):
        seen = object_of(await run("fleet", "status", tmp_path / "*.qmp", "--json"))
    large, mute, small = seen["vms"]
    assert [vm["name"] for vm in seen["vms"]] == ["large", "mute", "small"]
    assert large["state"] == small["state"] == "healthy"
    assert mute["state"] == "no-driver"
    assert "virtio_balloon" in mute["detail"]
    assert mute["stats"] is None
    assert large["address"] == str(tmp_path / "large.qmp")
    sizes = {"actual": 4 * GiB, "total": 4 * GiB, "target": None}
    assert large["balloon"] == {**sizes, "owed": None, "holder": None}
    assert large["stats"]["fresh"]
    assert large["stats"]["disk_caches"] == GiB
    assert large["limits"]["ceiling"] == 4 * GiB
    assert seen["host"]["available"] <= seen["host"]["total"]
    assert not seen["host"]["pressed"]


async def test_status_for_people_sorted_by_size(tmp_path: Path) -> None:
    async with fleet(tmp_path):
        shown = await run("fleet", "status", tmp_path / "*.qmp", "--sort", "size")
    lines = shown.stdout.splitlines()
    assert "is to keep" in lines[0]
    assert lines[1:3] == ["2 VMs: 2 healthy", "They have 6 GiB of 6 GiB"]
    assert [line.split()[0] for line in lines[4:]] == ["large", "small"]
    assert "4 GiB" in lines[4]


async def test_a_vm_that_is_named_and_not_there_is_gone(tmp_path: Path) -> None:
    result = await run("fleet", "status", tmp_path / "nobody.qmp", "--json")
    (vm,) = object_of(result)["vms"]
    assert (vm["name"], vm["state"], vm["balloon"]) == ("nobody", "gone", None)
    assert result.returncode == 4


@pytest.mark.parametrize(
    "command", [("status",), ("plan",), ("run", "--once"), ("reclaim", "1G")]
)
async def test_where_nothing_can_be_reached_the_status_says_so(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    result = await run("fleet", *command, tmp_path / "a.qmp", tmp_path / "b.qmp")
    assert result.returncode == 4
    assert "no guest had memory to spare" not in result.stderr


async def test_no_vms(tmp_path: Path) -> None:
    shown = await run("fleet", "status", tmp_path / "*.qmp")
    assert "There are no VMs" in shown.stdout


async def test_watching_ends_on_ctrl_c(tmp_path: Path) -> None:
    async with (
        fleet(tmp_path) as fakes,
        start("fleet", "status", tmp_path / "*.qmp", "--watch", "--json") as running,
    ):
        text = b""
        with trio.fail_after(300):
            while text.count(b"\n") < 2:
                text += await running.stdout.receive_some()
            running.process.send_signal(signal.SIGINT)
            assert await running.process.wait() == 0
        assert [json.loads(line)["vms"][0]["name"] for line in text.splitlines()]
        documents.check_output(("fleet", "status", "--json"), text.decode())
        device = fakes["large"].machine.device
        assert device is not None
        assert device.interval == 0


async def test_watching_without_a_terminal_shows_one_table_after_the_other(
    tmp_path: Path,
) -> None:
    path = tmp_path / "vm.qmp"
    async with serve(path), start("fleet", "status", path, "--watch") as running:
        text = b""
        with trio.fail_after(300):
            while text.count(b"The host has") < 2:
                text += await running.stdout.receive_some()
            await running.stdout.aclose()
            await running.process.wait()
        assert await running.said() == ""


async def test_status_ends_with_whoever_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "vm.qmp"
    async with serve(path), start("fleet", "status", path) as running:
        await running.stdout.aclose()
        assert await running.process.wait() == 128 + signal.SIGPIPE
        assert await running.said() == ""


async def test_a_plan_moves_nothing(tmp_path: Path) -> None:
    group = short(tmp_path, 512 * MiB)
    arguments = (tmp_path / "*.qmp", "--cgroup", group, "--reserve", "1GiB")
    async with fleet(tmp_path) as fakes:
        made = object_of(await run("fleet", "plan", *arguments, "--json"))
        shown = await run("fleet", "plan", *arguments)
        assert actual(fakes["large"]) == 4 * GiB
    # 512 MiB to the reserve, and a quarter of it for the buffer: first from the
    # richest, but no more than an eighth of its RAM at a time.
    assert made["wanted"] == 768 * MiB
    changes = {move["name"]: move["change"] for move in made["moves"]}
    assert changes == {"large": -512 * MiB, "small": -256 * MiB}
    assert all(m["target"] - m["before"] == m["change"] for m in made["moves"])
    assert made["lacking"] == 0
    about, large, small, in_all = shown.stdout.splitlines()
    assert about.endswith("is to keep 1 GiB and a buffer of 256 MiB.")
    assert large.startswith("large: 4096 MiB -> 3584 MiB (-512 MiB): the host is short")
    assert small.startswith("small: 2048 MiB -> 1792 MiB (-256 MiB): the host is short")
    assert in_all == "Guests give 768 MiB in all."


async def test_a_reserve_that_cannot_be_reached_is_said_once(tmp_path: Path) -> None:
    group = short(tmp_path, 2 * GiB)
    arguments = (tmp_path / "*.qmp", "--cgroup", group, "--reserve", "7GiB")
    async with fleet(tmp_path) as fakes:
        hard = ("--reserve-hard", "512MiB")
        planned = await run("fleet", "plan", *arguments, *hard, "--json")
        async with start("fleet", "run", *arguments, "--period", "0.1") as running:
            with trio.fail_after(300):
                # Some plans are made meanwhile.
                while actual(fakes["large"]) > 3 * GiB:  # noqa: ASYNC110
                    await trio.sleep(0.02)
                running.process.terminate()
                said = await running.said()
        # It keeps half of what it does not use.
        assert actual(fakes["large"]) > 2 * GiB
    made = json.loads(planned.stdout)
    # All have 6 GiB, and floors of 192 MiB.
    assert made["unreachable"] == 7 * GiB + 896 * MiB - (8 * GiB - 192 * MiB)
    assert made["host"]["reserve_hard"] == 512 * MiB
    (line,) = planned.stderr.splitlines()
    assert line.startswith(
        "qmpballoon: the reserve of 7 GiB and half its buffer cannot"
    )
    assert "more than 512 MiB available" in line
    assert said.count("cannot be reached") == 1
    assert "more than 1.8 GiB available" in said  # a quarter of the reserve


async def test_a_balanced_host_has_nothing_to_plan(tmp_path: Path) -> None:
    async with fleet(tmp_path):
        shown = await run("fleet", "plan", tmp_path / "*.qmp", "--reserve", "0")
    assert shown.stdout.splitlines()[-1] == "Nothing is to be moved."


@pytest.mark.parametrize(
    "command", [("plan",), ("run", "--once"), ("reclaim", "256M")], ids=" ".join
)
async def test_vms_that_take_no_part_are_named(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    gone = tmp_path / "gone.qmp"
    async with fleet(tmp_path, mute=True) as fakes:
        assert fakes
        vms = [tmp_path / "*.qmp", gone]
        shown = await run("fleet", *command, *vms)
    assert f"gone takes no part: there is no socket at {gone}" in shown.stderr
    assert "mute takes no part: the guest never answered" in shown.stderr
    assert "large takes no part" not in shown.stderr
    nobody = await run("fleet", *command, tmp_path / "none" / "*.qmp")
    assert "there are no VMs: name their sockets" in nobody.stderr


async def test_running_once(tmp_path: Path) -> None:
    group = short(tmp_path, 512 * MiB)
    arguments = (tmp_path / "*.qmp", "--cgroup", group, "--reserve", "1GiB", "--once")
    async with fleet(tmp_path) as fakes:
        result = await run("fleet", "run", *arguments)
        assert actual(fakes["large"]) == 3 * GiB + 512 * MiB
    assert result.returncode == 0
    assert "large: 4096 MiB -> 3584 MiB (-512 MiB)" in result.stdout


async def test_running_until_a_signal_leaves_nothing_half_moved(tmp_path: Path) -> None:
    group = short(tmp_path, 0)
    arguments = (tmp_path / "*.qmp", "--cgroup", group, "--reserve", "1GiB")
    async with (
        # Slow enough to be caught on its way.
        fleet(tmp_path, guest=GuestConfig()) as fakes,
        start("fleet", "run", *arguments, "--json") as running,
    ):
        fake = fakes["large"]
        with trio.fail_after(300):
            assert await running.stdout.receive_some()
            while actual(fake) == 4 * GiB:  # noqa: ASYNC110 - nothing tells us
                await trio.sleep(0.02)
            running.process.send_signal(signal.SIGTSTP)  # nobody else would watch them
            running.process.terminate()
            assert await running.process.wait() == 0
        assert fake.machine.device is not None
        assert fake.machine.device.asked * 4096 == fake.machine.guest.memory.balloon
        assert fake.machine.device.interval == 0


async def test_running_says_who_goes_and_who_comes_back(tmp_path: Path) -> None:
    large, small, said = tmp_path / "large.qmp", tmp_path / "small.qmp", b""

    async def wait_for_line(start: bytes) -> None:
        nonlocal said
        while b"\n" not in said:
            said += await running.stderr.receive_some()
        line, _, said = said.partition(b"\n")
        assert line.startswith(start)

    with trio.fail_after(300):
        async with serve(large), start("fleet", "run", large, small) as running:
            await wait_for_line(b"qmpballoon: small takes no part: there is no socket")
            async with serve(small):
                await wait_for_line(b"qmpballoon: small takes part again")
            await wait_for_line(b"qmpballoon: small takes no part: ")
            running.process.terminate()
            assert await running.process.wait() == 0
            assert said.decode() + await running.said() == ""


async def test_a_file_sets_limits(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(f"""
        [[vm]]
        name = "capped"
        address = "{tmp_path}/large.qmp"
        ceiling = "3GiB"
    """)
    async with fleet(tmp_path) as fakes:
        result = await run("fleet", "run", path, "--reserve", "0", "--once")
        assert result.returncode == 0
        assert actual(fakes["large"]) == 3 * GiB
    assert "its ceiling is 3 GiB" in result.stdout


async def test_reclaiming(tmp_path: Path) -> None:
    async with fleet(tmp_path) as fakes:
        arguments = ("fleet", "reclaim", "2G", tmp_path / "*.qmp", "--json")
        given_back = await run(*arguments)
        assert actual(fakes["large"]) == 4 * GiB
        held = await run(*arguments, "--hold")
        assert actual(fakes["large"]) < 3 * GiB
    for result, is_held in ((given_back, False), (held, True)):
        report = object_of(result)
        assert report["held"] is is_held
        assert 0 <= 2 * GiB - report["handed_over"] < MiB
        assert sum(vm["handed_over"] for vm in report["vms"]) == report["handed_over"]
        assert result.returncode == 0


async def test_who_cannot_take_memory_back_when_a_reclaim_is_interrupted_is_named(
    tmp_path: Path,
) -> None:
    slow = evolve(FAST, inflate_rate=256 * MiB)
    async with (
        serve(tmp_path / "vm.qmp", slow) as vm,
        start("fleet", "reclaim", "1G", tmp_path / "vm.qmp") as running,
    ):
        await until(lambda: actual(vm) < vm.machine.guest.memory.ram - 64 * MiB)
        vm.do(Machine.stop)
        running.process.send_signal(signal.SIGTERM)
        said = b"".join([data async for data in running.stderr])
        assert b"vm is left with" in said
        assert b"`resize 100%` gives it all" in said
        assert actual(vm) < vm.machine.guest.memory.ram
        vm.do(Machine.resume)
        await until(lambda: actual(vm) == vm.machine.guest.memory.ram)


async def test_what_a_fleet_holds_is_given_back_by_the_commands_that_are_shown(
    tmp_path: Path,
) -> None:
    async with fleet(tmp_path) as fakes:
        held = await run("fleet", "reclaim", "4G", tmp_path / "*.qmp", "--hold")
        assert actual(fakes["large"]) < 4 * GiB
        assert actual(fakes["small"]) < 2 * GiB
        lines = held.stdout.splitlines()
        shown = [line for line in lines if line.startswith("  qmpballoon resize ")]
        assert shown == lines[-2:]
        for line in shown:
            await run(*shlex.split(line, comments=True)[1:])
        assert actual(fakes["large"]) == 4 * GiB
        assert actual(fakes["small"]) == 2 * GiB


async def test_a_guest_that_was_found_small_and_is_left_so_is_named(
    tmp_path: Path,
) -> None:
    async with fleet(tmp_path) as fakes:
        await run("resize", tmp_path / "large.qmp", "3G")
        arguments = ("fleet", "reclaim", "256M", tmp_path / "*.qmp")
        said, listed = await run(*arguments), await run(*arguments, "--json")
        for name in ("large", "small"):
            await run("reclaim", tmp_path / f"{name}.qmp", "--hold")
        left = {name: actual(fake) for name, fake in fakes.items()}
        nobody = await run("fleet", "reclaim", "1G", tmp_path / "*.qmp")
        assert left == {name: actual(fake) for name, fake in fakes.items()}
    assert "large is left with 3 GiB, as it was found, and not all" in said.stdout
    assert "small is left" not in said.stdout
    assert object_of(listed)["small"] == [
        {"name": "large", "actual": 3 * GiB, "ram": 4 * GiB, "found": 3 * GiB}
    ]
    for name, size in left.items():
        assert f"{name} is left with {format_size(size)}, as it" in nobody.stdout


async def test_guests_that_are_left_small_are_named_at_the_end_of_a_run(
    tmp_path: Path,
) -> None:
    short(tmp_path, GiB - 64 * MiB)
    host = ("--cgroup", tmp_path / "group", "--reserve", "1GiB")
    async with fleet(tmp_path) as fakes:
        await run("resize", tmp_path / "small.qmp", "1G")
        async with start("fleet", "run", *host, tmp_path / "*.qmp") as running:
            # By less a guest is not called small.
            await until(lambda: actual(fakes["large"]) < 4 * GiB - 256 * MiB)
            running.process.terminate()
            with trio.fail_after(300):
                assert await running.process.wait() == 0
            large, small = (await running.said()).splitlines()
        left = format_size(actual(fakes["large"]))
    assert f"large is left with {left}, to which it was moved, and not" in large
    assert "small is left with 1 GiB, as it was found, and not all of its 2" in small


async def test_reclaiming_more_than_there_is(tmp_path: Path) -> None:
    async with fleet(tmp_path):
        result = await run("fleet", "reclaim", "64G", tmp_path / "*.qmp")
    assert result.returncode == 3
    assert "Took" in result.stdout
    assert "%" in result.stdout


async def test_nothing_to_reclaim_from(tmp_path: Path) -> None:
    result = await run("fleet", "reclaim", "1G", tmp_path / "*.qmp")
    assert result.returncode == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("status", "/nowhere/fleet.toml"), "No such file"),
        (("status", "tcp:nowhere"), "has no port"),
        (("status", "x", "--timeout", "nan"), "nan is no time"),
        (("run", "x", "--period", "nan"), "nan is no time"),
        (("run", "x", "--once", "--metrics", "0"), "leave --metrics out"),
        (("run", "x", "--period", "inf"), "86400"),
        (("run", "x", "--period", "1e300"), "86400"),
        (("plan", "--policy", "fair"), "'fair' is not one of"),
        (("plan", "x", "--reserve", "64TiB"), "give the host less to keep"),
        (("plan", "x", "--limit", "1GiB", "--reserve", "1GiB"), "less to keep"),
        (("plan", "x", "--limit", "1MiB"), "less to keep"),
        (
            ("plan", "x", "--reserve", "1GiB", "--reserve-hard", "2GiB"),
            "reserve_hard is 2 GiB: it is a part of the reserve, which is 1 GiB; lower",
        ),
        (("plan", "x", "--cgroup", "/proc"), "no memory.max: give a group"),
        (("reclaim", "0"), "'0' is no size above 0: give one like 512MiB"),
    ],
)
async def test_wrong_usage(arguments: tuple[str, ...], message: str) -> None:
    result = await run("fleet", *arguments)
    assert result.returncode in (1, 2)
    (line,) = result.stderr.splitlines()
    assert message in line


@pytest.mark.parametrize("arguments", [("plan",), ("run", "--once"), ("reclaim", "1G")])
async def test_nobody_is_there(arguments: tuple[str, ...], tmp_path: Path) -> None:
    result = await run("fleet", *arguments, tmp_path / "*.qmp")
    (line,) = result.stderr.splitlines()
    assert line.startswith("qmpballoon: there are no VMs: name their sockets")


async def test_nobody_has_anything_to_give(tmp_path: Path) -> None:
    command = ("fleet", "reclaim", "1G", tmp_path / "*.qmp", "--timeout", "120")
    full = GuestConfig(used=16 * GiB - 128 * MiB, cache=0)
    # That a VM has no balloon is known at once.
    async with serve(tmp_path / "bare.qmp", balloon=None):
        alone = await run(*command)
        async with serve(tmp_path / "full.qmp", full):
            result = await run(*command)
    assert (alone.returncode, result.returncode) == (6, 6)
    absent, why = result.stderr.splitlines()
    assert absent.startswith("qmpballoon: bare takes no part: ")
    assert "`qmpballoon fleet status` says how they are" in why
    # Of a guest that takes no part it is not known what it has to spare.
    assert alone.stderr.splitlines() == [absent]


# What is refused


async def test_a_pretender_is_listed_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.qmp"
    line = ("-name", "guest=db\x1b[2J", "-qmp", f"unix:{path},server=on,wait=off")
    name = "qemu-system-x86_64"
    with listening([sys.executable], path, *line, argv0=name) as pid:
        shown = await run("fleet", "status", "--timeout", "0.1")
        planned = await run("fleet", "plan", "--json", "--timeout", "0.1")
        listed = await run("fleet", "status", "--json", "--timeout", "0.1")
    (seen,) = [row for row in shown.stdout.splitlines() if f"pid-{pid} " in row]
    assert f"is not managed: it calls itself {name}, but is python" in seen
    assert f"qmpballoon: {seen}" in planned.stderr.splitlines()
    for done in (planned, listed):
        refused = json.loads(done.stdout)["refused"]
        (row,) = [row for row in refused if row["pid"] == pid]
        assert row["name"] == f"pid-{pid}"
        assert row["reason"] in seen
    assert str(path) not in listed.stdout


async def test_a_user_that_does_not_exist(tmp_path: Path) -> None:
    done = await run("fleet", "status", tmp_path / "*.qmp", "--user", "no-such-user")
    assert done.returncode == 2
    assert "there is no user 'no-such-user'" in done.stderr


async def test_a_descriptor_for_each_vm(tmp_path: Path) -> None:
    """The soft limit is often lower than there are VMs; the hard one counts."""
    limit = 24
    async with AsyncExitStack() as stack:
        for number in range(limit + 4):
            path = tmp_path / f"{number}.qmp"
            await stack.enter_async_context(serve(path, FAST, memory=GiB))
        line = [*PROGRAM, "fleet", "status", str(tmp_path / "*.qmp"), "--json"]
        limited = ["sh", "-c", f'ulimit -Sn {limit}; exec "$0" "$@"', *line]
        done = await trio.run_process(limited, capture_stdout=True)
    seen = json.loads(done.stdout)
    assert {vm["state"] for vm in seen["vms"]} == {"healthy"}


@pytest.mark.parametrize("command", ["run", "reclaim"])
async def test_ending_while_a_qemu_hangs_says_how_its_guest_was_left(
    command: str, tmp_path: Path
) -> None:
    slow = GuestConfig(inflate_rate=64 * MiB)
    host = ("--cgroup", short(tmp_path, 0), "--reserve", "1GiB")
    words = ("run", *host) if command == "run" else ("reclaim", "1GiB")
    async with (
        fleet(tmp_path, guest=slow) as fakes,
        start("fleet", *words, tmp_path / "*.qmp") as running,
    ):
        large, small = fakes["large"], fakes["small"]
        await until(lambda: actual(large) < 4 * GiB)
        large.machine.reply_delay = 3600 * SECOND
        large.touch()
        running.process.terminate()
        with trio.fail_after(300):
            await running.process.wait()
        said = await running.said()
        assert small.machine.device is not None
        assert small.machine.device.interval == 0
    (line,) = (line for line in said.splitlines() if "was left" in line)
    assert line.startswith("qmpballoon: large was left with the target ")
    assert "its QEMU does not answer, and last told of" in line
