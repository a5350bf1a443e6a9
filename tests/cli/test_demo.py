"""``qmpballoon demo`` with a simulated guest."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

from command import run, start

if TYPE_CHECKING:
    from pathlib import Path


async def test_the_demo_with_a_simulated_guest(tmp_path: Path) -> None:
    chart = tmp_path / "chart.png"
    result = await run("demo", "--simulated", "--report", chart)
    assert result.returncode == 0
    assert result.stderr == ""
    assert "a simulated guest" in result.stdout
    cache, resident = map(int, re.findall(r"by (\d+)%", result.stdout))
    assert cache >= 80
    assert resident >= 80
    assert chart.read_bytes().startswith(b"\x89PNG")


async def test_a_demo_ends_with_whoever_reads_it() -> None:
    async with start(
        "demo", "--simulated", "--memory", "512M", "--cache", "64M"
    ) as demo:
        await demo.stdout.receive_some()
        await demo.stdout.aclose()
        assert await demo.process.wait() == 128 + signal.SIGPIPE
        assert await demo.said() == ""
