"""How each example is run, and what it is then seen to say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["EXAMPLES", "RUNS", "Run"]

EXAMPLES: Final = Path(__file__).parents[2] / "examples"


@frozen
class Run:
    """One example.

    Attributes:
        name: Its file, without the suffix.
        options: What it is given, besides the VM.
        says: A pattern for what it prints in the end.
        leaves: A file that it writes.
    """

    name: str
    options: Sequence[str]
    says: str
    leaves: str | None = None

    def on(self, *vm: str, folder: Path) -> None:
        """Run it as a user would, in a folder of its own."""
        program = f"{EXAMPLES / self.name}.py"
        done = subprocess.run(
            [sys.executable, "-W", "error", program, *vm, *self.options],
            check=False,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        assert re.search(self.says, done.stdout, re.MULTILINE), done.stdout
        assert self.leaves is None or (folder / self.leaves).stat().st_size > 0


RUNS: Final = (
    Run("status", (), r"^available +\S+ [MG]iB$"),
    Run("resize", ("--target", "50%"), r"^reached at \S+ [MG]iB in \S+ s$"),
    Run(
        "reclaim_chart",
        ("--chart", "a.png"),
        r"^done: \S+ [MG]iB; see a\.png$",
        "a.png",
    ),
    Run("watch", ("--count", "3", "--interval", "0.05"), r'(^\{"t": .*\}\n){3}\Z'),
    Run("orchestrator_asyncio", (), r"^done: \S+ [MG]iB handed over$"),
    Run("script", ("--job", "exit 3"), r"^borrowed \S+ MiB\nthe job ended with 3$"),
    Run("nightly", (), r"(^\S+: done, \S+ [MG]iB in \d+ s\n)+\S+ [MG]iB from"),
    Run("take_turns", ("--rounds", "1"), r"(^\S+ gave 256 MiB\n)+\Z"),
    Run("make_room", ("--wanted", "300M"), r"^300(\.\d)? MiB of 300 MiB taken$"),
)
