"""The command on a real QEMU: its figures are QEMU's, the guest's and the host's."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
from command import run, start

from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import lab
from qmpballoon.trio import open_monitor

if TYPE_CHECKING:
    import pytest

# What may happen to a quiet guest between two samples.
SLACK = 32 * MiB


def resident(pid: int) -> int:
    """Return a process' resident memory as the kernel tells it."""
    status = Path(f"/proc/{pid}/status").read_text()
    (kibibytes,) = re.findall(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    return int(kibibytes) * 1024


async def ask(guest: lab.Guest, command: str, **arguments: object) -> Any:  # noqa: ANN401 - JSON
    """Ask QEMU on the guest's second monitor."""
    async with open_monitor(guest.second_socket) as monitor:
        return await monitor.execute(command, arguments)


async def guest_stats(guest: lab.Guest) -> dict[str, int]:
    answer = await ask(
        guest,
        "qom-get",
        path="/machine/peripheral/balloon0",
        property="guest-stats",
    )
    stats: dict[str, int] = answer["stats"]
    return stats


async def test_figures_agree_with_qemu_the_guest_and_the_host() -> None:
    async with lab.boot(memory=1280 * MiB, saved=True) as guest:
        # Resident memory is measured: what is saved as filled is not resident.
        await guest.fill_cache(1000 * MiB)
        seen = json.loads((await run("status", guest.socket, "--json")).stdout)
        stats = await guest_stats(guest)
        assert seen["qemu"]["pid"] == guest.pid
        assert seen["qemu"]["version"] == guest.qemu_version
        assert (
            seen["balloon"]["actual"] == (await ask(guest, "query-balloon"))["actual"]
        )
        assert seen["stats"]["disk_caches"] == stats["stat-disk-caches"]
        assert seen["stats"]["free"] == stats["stat-free-memory"]
        assert abs(seen["host"]["resident"] - resident(guest.pid)) < SLACK

        result = await run("reclaim", guest.socket, "--hold", "--json")
        assert result.returncode == 0, result.stderr
        held = json.loads(result.stdout)
        assert held["outcome"] == "done"
        assert held["after"]["actual"] == (await ask(guest, "query-balloon"))["actual"]
        stats = await guest_stats(guest)
        # The guest may have answered once more: each sample asks it for the next one.
        after = held["after"]["stats"]["disk_caches"]
        assert abs(after - stats["stat-disk-caches"]) < SLACK
        assert abs(held["after"]["resident"] - resident(guest.pid)) < SLACK
        meminfo = await guest.meminfo()
        cached = meminfo["Cached"] + meminfo["Buffers"]
        assert abs(after - cached) < SLACK

        cache = [held[when]["stats"]["disk_caches"] for when in ("before", "after")]
        lost = cache[0] - cache[1]
        assert lost >= 0.8 * cache[0]
        assert held["before"]["resident"] - held["after"]["resident"] >= 0.8 * lost

        result = await run("resize", guest.socket, "100%", "--json")
        grown = json.loads(result.stdout)
        assert (result.returncode, grown["outcome"]) == (0, "reached")
        assert grown["before"] == held["after"]["actual"]
        assert grown["actual"] == (await ask(guest, "query-balloon"))["actual"]
        assert await guest.oom_kills() == 0


async def test_a_target_that_the_guest_cannot_reach() -> None:
    async with lab.boot(memory=GiB, saved=True) as guest:
        result = await run(
            "resize", guest.socket, "64M", "--on-stall", "settle", "--json"
        )
        seen = json.loads(result.stdout)
        assert (result.returncode, seen["outcome"]) == (3, "settled")
        assert seen["diagnosis"]["kind"] == "guest-at-floor"
        assert seen["actual"] == (await ask(guest, "query-balloon"))["actual"]
        assert await guest.run("echo alive") == "alive"
        assert await guest.oom_kills() == 0


async def test_a_stopped_qemu_holds_nobody_up() -> None:
    async with lab.boot(memory=256 * MiB, saved=True) as guest:
        guest.process.send_signal(signal.SIGSTOP)
        try:
            for command in ("status", "reclaim", "watch"):
                with trio.fail_after(300):
                    result = await run(command, guest.socket, "--connect-timeout", "1")
                assert result.returncode == 4
                assert len(result.stderr.splitlines()) == 1
        finally:
            guest.process.send_signal(signal.SIGCONT)
        assert (await run("status", guest.socket)).returncode == 0


async def test_a_qemu_that_stops_in_mid_reclaim_holds_nobody_up() -> None:
    async with lab.boot(memory=GiB, cache=GiB // 2, saved=True) as guest:
        slowly = ("reclaim", guest.socket, "--max-rate", "50M")
        async with start(*slowly) as command:
            while b"taking" not in await command.stdout.receive_some():
                pass
            guest.process.send_signal(signal.SIGSTOP)
            try:
                with trio.fail_after(90):
                    assert await command.process.wait() == 4
            finally:
                guest.process.send_signal(signal.SIGCONT)
            (line,) = (await command.said()).splitlines()
            assert "did not answer" in line
            # The command's last words to a QEMU that stands still are lost with it.
            assert "was last asked for" in line


async def test_an_interrupted_reclaim_gives_back() -> None:
    async with lab.boot(memory=GiB, cache=GiB // 2, saved=True) as guest:
        slowly = ("reclaim", guest.socket, "--max-rate", "50M")
        async with start(*slowly) as command:
            while b"taking" not in await command.stdout.receive_some():
                pass
            command.process.send_signal(signal.SIGINT)
            assert await command.process.wait() == 130
            assert "its memory back" in await command.said()
        with trio.fail_after(300):
            # QEMU tells of a change at most once a second: asking is quicker.
            while (await ask(guest, "query-balloon"))["actual"] != GiB:  # noqa: ASYNC110
                await trio.sleep(0.1)


async def test_the_demo_keeps_what_it_promises(tmp_path: Path) -> None:
    chart = tmp_path / "chart.svg"
    result = await run("demo", "--report", chart)
    assert result.returncode == 0, result.stderr
    assert "in QEMU" in result.stdout
    cache, freed = map(int, re.findall(r"by (\d+)%", result.stdout))
    assert cache >= 80
    assert freed >= 80
    assert chart.read_text().startswith("<?xml")


async def test_a_killed_reclaim_is_finished_by_the_next_and_none_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not every user has a folder of their own below /run.
    monkeypatch.setenv("QMPBALLOON_RUNTIME_DIR", str(tmp_path))
    async with lab.boot(memory=GiB, cache=600 * MiB, saved=True) as guest:
        async with start("reclaim", guest.socket, "--keep") as command:
            while (await ask(guest, "query-balloon"))["actual"] > GiB // 2:  # noqa: ASYNC110
                await trio.sleep(0.05)
            # Who reaches the guest by another monitor does not undo that.
            result = await run("status", guest.second_socket, "--json")
            seen = json.loads(result.stdout)
            assert seen["balloon"]["holder"] == command.process.pid
            assert seen["balloon"]["owed"] is None
            result = await run("reclaim", guest.second_socket, "64M", "--json")
            assert result.returncode == 6, result.stderr
            assert f"held by process {command.process.pid}," in result.stderr
            assert (await ask(guest, "query-balloon"))["actual"] < GiB
            command.process.kill()
            await command.process.wait()
        seen = json.loads((await run("status", guest.socket, "--json")).stdout)
        assert seen["balloon"]["owed"] == GiB > seen["balloon"]["actual"]
        result = await run("reclaim", guest.socket, "64M", "--json")
        assert result.returncode == 0, result.stderr
        assert "a run that was interrupted" in json.loads(result.stdout)["reason"]
        assert (await ask(guest, "query-balloon"))["actual"] == GiB
        seen = json.loads((await run("status", guest.socket, "--json")).stdout)
        assert seen["balloon"]["owed"] is None
