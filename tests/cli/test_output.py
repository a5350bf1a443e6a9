"""Output that cannot be written, and names that it cannot show."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio
from command import PROGRAM, object_of, run, serve

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", ["status", "watch --count 1 --json", "reclaim 1M"])
async def test_output_that_is_closed(
    command: str, closed: str, socket_path: Path
) -> None:
    name, *rest = command.split()
    shell = ["sh", "-c", f'"$@" {closed}', "sh", *PROGRAM]
    async with serve(socket_path):
        done = await trio.run_process(
            [*shell, name, str(socket_path), *rest],
            check=False,
            capture_stderr=True,
        )
    assert (done.returncode, done.stderr) == (0, b"")


async def test_a_socket_whose_name_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"qmp-\xff")
    async with serve(path):
        for command in (["status"], ["reclaim", "--dry-run"], ["reclaim", "1M"]):
            name, *rest = command
            result = await run(name, path, *rest)
            assert (result.returncode, result.stderr) == (0, "")
        seen = object_of(await run("status", path, "--json"))
    # As it is shown everywhere. An escape of half a character is no valid JSON text.
    assert seen["socket"] == str(tmp_path / r"qmp-\xff")


async def test_a_vm_whose_name_the_terminal_cannot_show(socket_path: Path) -> None:
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    async with serve(socket_path, name="Bär"):
        for command in (["status", socket_path], ["fleet", "status", socket_path]):
            done = await trio.run_process(
                [*PROGRAM, *map(str, command)],
                capture_stdout=True,
                capture_stderr=True,
                env=ascii_only,
            )
            assert done.stderr == b""
