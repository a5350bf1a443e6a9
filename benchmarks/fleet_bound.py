"""The least memory that has to be moved on the hosts of ``fleet_policies.py``.

A linear programme knows beforehand what every guest will need. In its solution no
guest is ever below its headroom, all guests together never have more than the host may
give, and as little memory as possible is moved. A policy that keeps both conditions
cannot move less, because it does not know the future. Where all needs together are more
than the host has, the host may go below its reserve, at a high cost.

Needs are averaged over ten seconds, which can only lower the bound. Page cache is
assumed to fill all memory that a guest has, as it does within minutes on these hosts.

::

    pip install scipy
    python benchmarks/fleet_bound.py --seeds 5 --first-seed 50
"""

from __future__ import annotations

import argparse
from importlib import import_module
from statistics import mean
from typing import Any, Final

from fleet_policies import HOST, LOADS, RESERVE, SIZES, Load, make_vms

from qmpballoon.sizes import GiB
from qmpballoon.testing import SECOND

STEP: Final = 10  # seconds
GRACE: Final = 6  # first steps, in which the host may be below its reserve
VIOLATION: Final = 1e4  # what a GiB of the reserve costs, in GiB moved


def simulate_needs(load: Load, seed: int, minutes: int) -> list[list[float]]:
    """Return the smallest size that each guest needs, in GiB, for each step."""
    vms = make_vms(load, seed, minutes * 60)
    steps: list[list[float]] = []
    for step in range(minutes * 60 // STEP):
        seen: list[list[int]] = [[] for _ in vms]
        for second in range(STEP):
            for vm, figures in zip(vms, seen, strict=True):
                vm.machine.advance((step * STEP + second + 1) * SECOND)
                figures.append(vm.actual - vm.available + vm.headroom)
        steps.append([mean(figures) / GiB for figures in seen])
    return steps


def find_bound(needed: list[list[float]]) -> float:
    """Return the GiB that have to be moved.

    The variables are the size of each guest in each step, the change of that size, and
    how far the host is below its reserve in each step.
    """
    # scipy has no types of its own, and is not among the project's dependencies.
    sparse: Any = import_module("scipy.sparse")
    optimize: Any = import_module("scipy.optimize")
    count, steps = len(SIZES), len(needed)
    cells = steps * count
    rows = sparse.lil_matrix((2 * cells + steps - GRACE, 2 * cells + steps))
    limits: list[float] = []
    for cell in range(cells):
        for sign in (1, -1):  # sign * (size - size before) <= change
            row = len(limits)
            rows[row, cell], rows[row, cells + cell] = sign, -1
            if cell >= count:
                rows[row, cell - count] = -sign
            limits.append(0 if cell >= count else sign * SIZES[cell])
    for step in range(GRACE, steps):
        row = len(limits)
        rows[row, step * count : (step + 1) * count] = 1
        rows[row, 2 * cells + step] = -1
        limits.append((HOST - RESERVE) / GiB)
    sizes = [
        (min(need, size), size)
        for step in needed
        for need, size in zip(step, SIZES, strict=True)
    ]
    solved = optimize.linprog(
        [0] * cells + [1] * cells + [VIOLATION] * steps,
        A_ub=rows.tocsr(),
        b_ub=limits,
        bounds=sizes + [(0, None)] * (cells + steps),
        method="highs",
    )
    return float(solved.x[cells : 2 * cells].sum())


def main() -> None:
    """Print the bound for each workload, averaged over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--minutes", type=int, default=30)
    arguments = parser.parse_args()
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    for name, load in LOADS.items():
        least = mean(
            find_bound(simulate_needs(load, seed, arguments.minutes)) for seed in seeds
        )
        print(f"{name:<14}{least:>10.1f} GiB", flush=True)


if __name__ == "__main__":
    main()
