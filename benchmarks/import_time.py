"""The CPU time of importing qmpballoon, above the start of the interpreter.

Python is started with and without each import, in turns, so that other load on the
machine affects all of them alike. The CPU times of the processes are compared. The
first round is not counted: after it all files are compiled and in the page cache.

::

    python benchmarks/import_time.py --rounds 40
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
from collections import Counter

NOTHING = "pass"
STATEMENTS = (
    NOTHING,
    "import typing",
    "import qmpballoon",
    "import qmpballoon.blocking",
    "import qmpballoon.asyncio",
    "import qmpballoon.trio",
)


def measure_cpu(statement: str) -> float:
    """Run a statement in a new Python; return its CPU time in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", statement], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def list_modules(statement: str) -> set[str]:
    """Return the names of the modules that are loaded after a statement."""
    program = f"{statement}; import sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    return set(done.stdout.split())


def measure(rounds: int) -> None:
    """Print the CPU time of each statement, and what it loads."""
    times = [
        [measure_cpu(statement) for statement in STATEMENTS] for _ in range(rounds + 1)
    ]
    at_start = list_modules(NOTHING)
    base = statistics.median(row[0] for row in times[1:])
    print(f"python -c pass: {base * 1e3:.1f} ms of CPU, median of {rounds}\n")
    print("above that         median  middle half  modules")
    for index, statement in enumerate(STATEMENTS[1:], start=1):
        above = [(row[index] - row[0]) * 1e3 for row in times[1:]]
        modules = list_modules(statement) - at_start
        parts = Counter(name.partition(".")[0] for name in modules)
        most = ", ".join(f"{name} {count}" for name, count in parts.most_common(5))
        print(f"{statement.removeprefix('import '):20}", end="")
        low, middle, high = statistics.quantiles(above, n=4)
        print(f"{middle:5.1f}  {low:4.1f} to {high:4.1f}", end="")
        print(f"  {len(modules):3} ({most})")


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    measure(parser.parse_args().rounds)


if __name__ == "__main__":
    main()
