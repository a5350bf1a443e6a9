"""Run the benchmarks that need no guest, and print what docs/performance.md tells.

The benchmarks run one after the other. Each prints ratios to a peer that it measures in
turn with itself, with the middle half of the rounds. ``--busy 2`` runs
them beside that many processes that only count, to show what holds on a busy machine.

    python benchmarks/tables.py [--busy N] [--quick] [NAME...]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Final

# Name: arguments for a run that takes minutes, and for one that takes seconds.
BENCHMARKS: Final[dict[str, tuple[list[str], list[str]]]] = {
    "monitor": ([], ["--rounds", "6", "--commands", "100"]),
    "many": (["1000"], ["50", "--sweeps", "3"]),
    "flood": ([], ["--events", "4000", "--rounds", "3"]),
    "decoder": ([], ["--rounds", "20"]),
    "import_time": ([], ["--rounds", "3"]),
    "startup": ([], ["--rounds", "3"]),
    "fast_guests": ([], ["--memory", "4G", "--rate", "2G", "20G"]),
    "fleet_size": ([], ["10", "--seconds", "2"]),
    "worlds": ([], ["1"]),
}
_COUNT: Final = "while True: pass"


def main() -> int:
    """Print the output of each benchmark below its name; return how many failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--busy", type=int, default=0, metavar="N")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    unknown = set(options.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    failures = 0
    with ExitStack() as busy:
        for _ in range(options.busy):
            process = busy.enter_context(
                subprocess.Popen([sys.executable, "-c", _COUNT])
            )
            busy.callback(process.kill)
        for name in options.names or BENCHMARKS:
            arguments = BENCHMARKS[name][options.quick]
            print(f"\n## {' '.join([name, *arguments])}\n", flush=True)
            program = Path(__file__).with_name(f"{name}.py")
            done = subprocess.run([sys.executable, program, *arguments], check=False)
            failures += done.returncode != 0
    return failures


if __name__ == "__main__":
    raise SystemExit(main())
