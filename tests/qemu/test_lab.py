"""The lab itself: guests boot, do as they are told, and leave nothing behind."""

from __future__ import annotations

import json
import os
import stat
import sys
import zlib
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from qmpballoon.errors import StatsUnavailable
from qmpballoon.testing import lab
from qmpballoon.testing.lab import GiB, MiB, _saved
from qmpballoon.testing.lab._cache import cache_folder
from qmpballoon.trio import open_balloon

pytestmark = pytest.mark.qemu


async def qmp(path: Path, command: str, **arguments: object) -> object:
    """Run one command on a monitor, with nothing of the library's."""
    request = {"execute": command, "arguments": arguments}
    negotiation: dict[str, object] = {"execute": "qmp_capabilities"}
    received = b""
    with trio.fail_after(300):
        stream = await trio.open_unix_socket(str(path))
        async with stream:
            for message in (negotiation, request):
                await stream.send_all(json.dumps(message).encode())
            async for data in stream:
                received += data
                lines = [json.loads(line) for line in received.splitlines()[:-1]]
                if received.endswith(b"\n"):
                    lines.append(json.loads(received.splitlines()[-1]))
                replies = [line for line in lines if {*line} & {"return", "error"}]
                if len(replies) == 2:
                    return replies[1].get("return", replies[1].get("error"))
    raise AssertionError(received)


async def test_memory_and_cache_go_where_they_are_told() -> None:
    async with lab.boot(memory=GiB // 2, cache=200 * MiB, hog=50 * MiB) as guest:
        start = await guest.meminfo()
        assert 200 * MiB <= start["Buffers"] < 250 * MiB
        assert 50 * MiB <= start["AnonPages"] < 70 * MiB
        await guest.hog(50 * MiB)
        await guest.fill_cache(50 * MiB)
        more = await guest.meminfo()
        # What is short-lived in the guest may have ended meanwhile.
        assert more["AnonPages"] - start["AnonPages"] >= 49 * MiB
        assert more["Buffers"] - start["Buffers"] >= 45 * MiB
        await guest.release()
        await guest.drop_cache()
        end = await guest.wait_for(lambda now: now["AnonPages"] < 20 * MiB)
        assert end["Buffers"] < 20 * MiB
        # A second time, after everything was dropped.
        await guest.fill_cache(100 * MiB)
        assert (await guest.meminfo())["Buffers"] >= 100 * MiB


async def test_sockets_and_folder_are_private_and_go() -> None:
    async with lab.boot(memory=256 * MiB, saved=True) as guest:
        folder = guest.socket.parent
        for path, mode in (
            (folder, 0o700),
            (guest.socket, 0o600),
            (guest.second_socket, 0o600),
        ):
            assert stat.S_IMODE(os.stat(path).st_mode) == mode  # noqa: PTH116
        for path in (guest.socket, guest.second_socket):
            assert await qmp(path, "query-balloon") == {"actual": 256 * MiB}
        pid = guest.pid
    assert not os.path.exists(folder)  # noqa: ASYNC240, PTH110
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_cancelled_boot_leaves_nothing(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path))
        with trio.move_on_after(1) as scope:
            async with lab.boot(memory=256 * MiB, accel="tcg"):
                pytest.fail("no guest boots in a second without KVM")
    assert scope.cancelled_caught
    assert os.listdir(tmp_path) == []  # noqa: PTH208


@pytest.mark.parametrize(
    ("machine", "device"),
    [
        ("pc", "virtio-balloon-pci"),
        ("pc", "virtio-balloon-pci-transitional,id=b"),
        ("q35", "virtio-balloon-pci-non-transitional,deflate-on-oom=on"),
        ("q35", "virtio-balloon-pci,free-page-reporting=on"),
        ("microvm", "virtio-balloon-device,id=b"),
    ],
)
async def test_the_guest_drives_every_kind_of_balloon(
    machine: str, device: str
) -> None:
    async with lab.boot(memory=256 * MiB, machine=machine, device=device) as guest:
        await qmp(guest.socket, "balloon", value=200 * MiB)
        with trio.fail_after(300):
            while await qmp(guest.socket, "query-balloon") != {"actual": 200 * MiB}:
                await guest.run("usleep 20000")


async def test_the_driver_comes_and_goes() -> None:
    async with lab.boot(memory=512 * MiB, driver=False, saved=True) as guest:
        total = (await guest.meminfo())["MemTotal"]
        await qmp(guest.socket, "balloon", value=450 * MiB)
        assert await qmp(guest.socket, "query-balloon") == {"actual": 512 * MiB}
        await guest.load_driver()
        await guest.wait_for(lambda now: now["MemTotal"] < total - 50 * MiB)
        async with open_balloon(str(guest.socket)) as balloon:
            await balloon.refresh_stats()
            await guest.unload_driver()
            # Nor is its last answer, of this very second, taken for a new one.
            with pytest.raises(StatsUnavailable):
                await balloon.refresh_stats(timeout=2)
        await guest.wait_for(lambda now: now["MemTotal"] >= total - MiB)


async def test_no_balloon() -> None:
    async with lab.boot(memory=256 * MiB, device=None, saved=True) as guest:
        error = cast("dict[str, str]", await qmp(guest.socket, "query-balloon"))
        assert error["class"] == "DeviceNotActive"


async def test_commands_run_side_by_side_and_tell_how_they_ended() -> None:
    async with lab.boot(memory=256 * MiB, saved=True) as guest:
        finished: list[int] = []

        async def run(number: int) -> None:
            output = await guest.run(f"sleep 0.{9 - number}; seq {number} 3000")
            assert output.splitlines() == [str(n) for n in range(number, 3001)]
            finished.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(run, number)
        assert sorted(finished) == [*range(5)]
        assert await guest.run("echo 'ü\\n\n\\' \"$((1+1))\"") == "ü\\n\n\\ 2"
        assert await guest.run("echo no; exit 3", check=False) == "no"
        with pytest.raises(lab.GuestCommandError, match="ended with 3") as caught:
            await guest.run("echo no; exit 3")
        assert (caught.value.status, caught.value.output) == (3, "no")
        with pytest.raises(lab.LabError, match=r"did not answer .* within 0.2 s"):
            await guest.run("sleep 60", timeout=0.2)
        assert await guest.run("echo still here") == "still here"


async def test_the_oom_killer_takes_a_hog_and_nothing_else() -> None:
    async with lab.boot(memory=256 * MiB, saved=True) as guest:
        assert await guest.oom_kills() == 0
        with pytest.raises(lab.GuestCommandError) as caught:
            await guest.hog(GiB)
        assert caught.value.status == 137
        assert await guest.oom_kills() == 1
        assert "Out of memory: Killed process" in guest.console
        assert (await guest.meminfo())["AnonPages"] < 20 * MiB


async def test_a_panic_is_seen_and_qemu_stays() -> None:
    async with lab.boot(memory=256 * MiB, saved=True) as guest:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guest.run, "echo c >/proc/sysrq-trigger")
            await guest.wait_for_console("Kernel panic")
            nursery.cancel_scope.cancel()
        with pytest.raises(lab.LabError, match="Kernel panic"):
            await guest.run("true", timeout=0.2)
        assert guest.process.poll() is None
        status = cast("dict[str, object]", await qmp(guest.socket, "query-status"))
        assert status["running"] is True


async def test_a_reset_boots_it_again() -> None:
    async with lab.boot(memory=256 * MiB, saved=True) as guest:
        await guest.hog(50 * MiB)
        await qmp(guest.socket, "system_reset")
        await guest.ready(boots=2)
        assert (await guest.meminfo())["AnonPages"] < 20 * MiB


async def test_a_paused_guest_boots_once_it_may() -> None:
    async with lab.boot(memory=256 * MiB, paused=True) as guest:
        assert guest.kernel_release == ""
        await qmp(guest.socket, "cont")
        await guest.ready()
        assert guest.kernel_release == await guest.run("uname -r")
        clock = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
        assert await guest.run(f"cat {clock}") != "tsc"


async def test_plugged_memory_comes_online() -> None:
    extra = ("-m", "slots=1,maxmem=2G")
    async with lab.boot(memory=512 * MiB, extra=extra) as guest:
        before = (await guest.meminfo())["MemTotal"]
        backend = {"qom-type": "memory-backend-ram", "id": "m", "size": GiB}
        assert await qmp(guest.socket, "object-add", **backend) == {}
        dimm = {"driver": "pc-dimm", "id": "d", "memdev": "m"}
        assert await qmp(guest.socket, "device_add", **dimm) == {}
        await guest.wait_for(lambda now: now["MemTotal"] == before + GiB)


async def test_a_device_that_does_not_exist_is_told_in_qemus_words() -> None:
    with pytest.raises(lab.LabError, match="'nonsense' is not a valid device"):
        async with lab.boot(device="nonsense"):
            pytest.fail("it started")


async def test_the_end_of_qemu_is_told() -> None:
    async with lab.boot(memory=256 * MiB, saved=True) as guest:
        guest.process.kill()
        with pytest.raises(lab.LabError, match="QEMU went away"):
            await guest.run("sleep 60")


@pytest.mark.parametrize(
    ("qemu", "kernel"), [("7.2", "6.1"), ("10.0", "6.12"), ("11.1", "6.12")]
)
async def test_other_versions_beside_the_installed_one(qemu: str, kernel: str) -> None:
    try:
        async with lab.boot(memory=256 * MiB, qemu=qemu, kernel=kernel) as guest:
            version = await qmp(guest.socket, "query-version")
            assert guest.qemu_version.startswith(f"{qemu}.")
            assert guest.kernel_release.startswith(f"{kernel}.")
            # Lists what its modules offer: it aborts if it loads another QEMU's.
            types = await qmp(guest.second_socket, "qom-list-types")
    except lab.LabError as error:
        if "cannot be fetched" not in str(error):
            raise
        pytest.skip(str(error))
    numbers = cast("dict[str, dict[str, int]]", version)["qemu"]
    assert f"{numbers['major']}.{numbers['minor']}" == qemu
    names = {entry["name"] for entry in cast("list[dict[str, str]]", types)}
    assert {"virtio-balloon-pci", "virtio-gpu-pci"} <= names


async def test_a_guest_that_panics_at_boot_is_told_at_once() -> None:
    nothing = ("-append", "console=ttyS0 panic=0 rdinit=/nothing init=/nothing")
    with pytest.raises(lab.LabError, match="panicked"):
        async with lab.boot(memory=128 * MiB, extra=nothing, timeout=110):
            pass


@pytest.fixture
def guests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have a cache folder without saved guests, but with what was fetched."""
    trees = cache_folder() / "trees"
    monkeypatch.setenv("QMPBALLOON_CACHE", str(tmp_path))
    (tmp_path / "trees").symlink_to(trees)
    return tmp_path / "guests"


def saved_files(guests: Path) -> dict[Path, int]:
    """Return the saved guests' files, with what tells whether they are made anew."""
    return {path: path.stat().st_ino for path in guests.glob("*/state")}


async def test_a_saved_guest_is_like_one_that_has_booted(guests: Path) -> None:
    options: dict[str, Any] = {
        "memory": 256 * MiB,
        "cache": 64 * MiB,
        "hog": 32 * MiB,
        "setup": "echo prepared >/note",
    }
    async with lab.boot(**options, saved=True) as guest:
        release = guest.kernel_release
        assert await guest.run("cat /note") == "prepared"
    files = saved_files(guests)
    assert len(files) == 1
    async with lab.boot(**options, saved=True) as guest:
        # Held from the beginning: other tests look for all VMs, and ask them, too.
        async with open_balloon(guest.socket) as balloon:
            # As after a boot there are the statistics that the driver sent first.
            first = await balloon.stats()
            assert first.last_update is not None
            assert (first.disk_caches or 0) < 32 * MiB
            assert await balloon.get_stats_interval() == 0
            assert ((await balloon.refresh_stats()).disk_caches or 0) >= 64 * MiB
        assert saved_files(guests) == files
        assert guest.kernel_release == release == await guest.run("uname -r")
        assert await guest.run("cat /note") == "prepared"
        before = await guest.meminfo()
        assert before["Buffers"] >= 64 * MiB
        assert before["AnonPages"] >= 32 * MiB
        await guest.fill_cache(32 * MiB)
        await guest.release()
        await guest.wait_for(lambda now: now["AnonPages"] < 20 * MiB)
        assert (await guest.meminfo())["Buffers"] >= before["Buffers"] + 30 * MiB
        await qmp(guest.socket, "balloon", value=200 * MiB)
        with trio.fail_after(300):
            while await qmp(guest.socket, "query-balloon") != {"actual": 200 * MiB}:
                await guest.run("usleep 20000")
        # What its kernel prints goes on, and so does the count of its boots.
        await guest.run("echo 'a line' >/dev/kmsg; echo '<0>an alarm' >/dev/kmsg")
        await guest.wait_for_console("an alarm")
        await qmp(guest.socket, "system_reset")
        await guest.ready(boots=2)
        assert (await guest.meminfo())["Buffers"] < 20 * MiB


async def test_a_saved_guest_s_pages_of_zeroes_are_not_resident(guests: Path) -> None:
    del guests
    size = 128 * MiB
    async with lab.boot(memory=512 * MiB, cache=size, saved=True) as guest:
        before = resident(guest)
        await guest.fill_cache(size)
        assert resident(guest) - before >= 0.8 * size
        assert (await guest.meminfo())["Buffers"] >= 2 * size
        assert before < 220 * MiB


def resident(guest: lab.Guest) -> int:
    status = Path(f"/proc/{guest.pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def cut_off(state: Path) -> None:
    os.truncate(state, state.stat().st_size // 2)


def write_nonsense(state: Path) -> None:
    """Have a file that is whole, and that QEMU cannot read."""
    state.write_bytes(b"nonsense")
    about = state.with_name("about.json")
    content = json.loads(about.read_text())
    content |= {"size": 8, "checksum": zlib.crc32(b"nonsense")}
    about.write_text(json.dumps(content))


async def test_a_damaged_saved_guest_is_made_anew(guests: Path) -> None:
    async with lab.boot(memory=256 * MiB, saved=True):
        (state,) = files = saved_files(guests)
    for damage in (cut_off, write_nonsense):
        damage(state)
        async with lab.boot(memory=256 * MiB, saved=True) as guest:
            assert await guest.run("echo alive") == "alive", damage
        files, before = saved_files(guests), files
        assert files.keys() == before.keys()
        assert files != before, damage


# Prints when the guest's kernel was booted, by the guest's clock.
_START = """
import trio
from qmpballoon.errors import StatsUnavailable
from qmpballoon.testing import lab

async def main():
    async with lab.boot(memory=256 << 20, saved=True, timeout=500) as guest:
        print(await guest.run("grep btime /proc/stat"))

trio.run(main)
"""


async def test_processes_that_want_the_same_guest_boot_it_once(guests: Path) -> None:
    booted: list[bytes] = []

    async def start() -> None:
        done = await trio.run_process(
            [sys.executable, "-c", _START], capture_stdout=True
        )
        booted.append(done.stdout)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(start)
    assert len(saved_files(guests)) == 1
    assert len(booted) == 3
    assert len({*booted}) == 1


async def test_a_cancelled_save_leaves_nothing(
    guests: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope = trio.CancelScope()

    def store(*_: object) -> None:
        trio.from_thread.run_sync(scope.cancel)
        trio.from_thread.check_cancelled()

    monkeypatch.setattr(_saved, "store_guest", store)
    with scope:
        async with lab.boot(memory=256 * MiB, saved=True):
            pytest.fail("it was cancelled")
    assert os.listdir(guests) == ["locks"]  # noqa: PTH208


async def test_a_guest_that_cannot_be_saved_says_why(guests: Path) -> None:
    extra = ("-device", "nvme,serial=a")
    with pytest.raises(lab.LabError, match=r"QEMU refuses migrate: .*nvme"):
        async with lab.boot(memory=256 * MiB, saved=True, extra=extra):
            pytest.fail("it was saved")
    assert not saved_files(guests)
