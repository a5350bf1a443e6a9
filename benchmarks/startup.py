"""The CPU time that the command needs to start, above Python itself.

The command asks a fake VM on a socket for its status, in turns with ``python -c pass``.
Imports alone are measured, too.

    python benchmarks/startup.py [--rounds N]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from statistics import median

from monitor import compare

from qmpballoon.testing import MachineConfig, serve

COMMAND = "from qmpballoon.cli import main; main()"


def measure_cpu(*arguments: str) -> float:
    """Return the CPU time of a Python program, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    with serve(MachineConfig()) as fake:
        programs = {
            "python -c pass": ("-c", "pass"),
            "import qmpballoon": ("-c", "import qmpballoon"),
            "import trio": ("-c", "import trio"),
            "import click": ("-c", "import click"),
            "import qmpballoon.trio": ("-c", "import qmpballoon.trio"),
            "qmpballoon --version": ("-c", COMMAND, "--version"),
            "qmpballoon status --json": (
                *("-c", COMMAND, "status", fake.socket, "--json"),
            ),
        }
        times: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(rounds):
            for name, arguments in programs.items():
                times[name].append(measure_cpu(*arguments))
    base = median(times["python -c pass"])
    print("CPU, beyond Python's own, and of that of `--version` in the same round")
    for name, seen in times.items():
        middle, ratio = median(seen), compare(seen, times["qmpballoon --version"])
        more = (middle - base) * 1000
        print(f"{name:26} {middle * 1000:6.0f} ms, {more:+5.0f} ms, {ratio}")


if __name__ == "__main__":
    main()
