"""Mutation testing: how many small changes of what decides do its tests notice?

Run as a program; ``tox -e mutation`` does. Cosmic Ray's operators change one thing at a
time inside a function: a comparison, a sum, ``and`` or ``or``, a condition; and ``min``
becomes ``max``. Numbers are left alone: they are sizes and times, and one byte more is
no other behaviour. The tests of the module and of its folder are run with each change,
until one fails. A change that makes no difference is listed in equivalent.toml,
with the reason.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

import parso
from attrs import define, field, frozen
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from planting import PACKAGE, ROOT, Nursery, walk_functions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from planting import Job

ENOUGH: Final = 0.95  # of the changes of a module that make a difference
# What decides, by folder or file below the package.
MODULES: Final = (
    "balloon",
    "cluster/_fields.py",
    "cluster/agent.py",
    "cluster/documents.py",
    "cluster/job_report.py",
    "cluster/jobs.py",
    "cluster/policy_change.py",
    "cluster/room.py",
    "cluster/spreading.py",
    "cluster/view.py",
    "cluster/wishes.py",
    "fleet/control_loop.py",
    "fleet/guests.py",
    "fleet/host_memory.py",
    "fleet/hot_cache.py",
    "fleet/movement.py",
    "fleet/policy.py",
    "fleet/poll_turns.py",
    "fleet/supervisor.py",
    "fleet/usage.py",
    "fleet/vm.py",
    "fleet/vm_spec.py",
    "fleet/vm_task.py",
    "fleet/water_filling.py",
    "qmp",
    "trio/_reactor.py",
)
# One or two changes of each thing. More of them, such as a sum that becomes a shift,
# are noticed by whoever notices these.
OPERATORS: Final = (
    *(
        "BinaryOperator_Add_Sub",
        "BinaryOperator_Sub_Add",
        "BinaryOperator_Mul_FloorDiv",
    ),
    *("BinaryOperator_Div_Mul", "BinaryOperator_FloorDiv_Mul"),
    *("BinaryOperator_Mod_FloorDiv",),
    *("ComparisonOperator_Eq_NotEq", "ComparisonOperator_NotEq_Eq"),
    *("ComparisonOperator_Lt_LtE", "ComparisonOperator_LtE_Lt"),
    *("ComparisonOperator_Gt_GtE", "ComparisonOperator_GtE_Gt"),
    *("ComparisonOperator_Lt_GtE", "ComparisonOperator_GtE_Lt"),
    *("ComparisonOperator_Gt_LtE", "ComparisonOperator_LtE_Gt"),
    *("ComparisonOperator_Is_IsNot", "ComparisonOperator_IsNot_Is"),
    *("UnaryOperator_USub_UAdd", "UnaryOperator_Delete_Not"),
    *("AndWithOr", "OrWithAnd", "TrueWithFalse", "FalseWithTrue"),
    *("BreakWithContinue", "ContinueWithBreak"),
)


class SwapMinAndMax(Operator):  # type: ignore[misc]  # it has no types
    """``min`` for ``max``, and the other way round."""

    SWAPPED: Final = {"min": "max", "max": "min"}

    def mutation_positions(self, node: Any) -> Iterator[tuple[object, object]]:  # noqa: ANN401
        """Yield where it changes a node, as all operators do."""
        if node.type == "name" and node.value in self.SWAPPED:
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> object:  # noqa: ANN401, ARG002
        """Return what stands there instead."""
        new = self.SWAPPED[node.value]
        return parso.python.tree.Name(new, node.start_pos, node.prefix)

    @classmethod
    def examples(cls) -> Iterable[object]:
        """Return none."""
        return ()


def operators() -> list[Operator]:
    """Return all that change something."""
    named = [get_operator(f"core/{'Replace' + name}")() for name in OPERATORS]
    return [*named, get_operator("core/AddNot")(), SwapMinAndMax()]


@frozen
class Mutant:
    """One change of one function.

    Attributes:
        path: The module's file.
        function: The function's name, with its class's.
        old: The line as it is.
        new: The line as it is changed.
        line: Its number.
        source: The module's source with the change.
    """

    path: Path
    function: str
    old: str
    new: str
    line: int
    source: str = field(repr=False)

    @property
    def key(self) -> tuple[str, str, str]:
        """What the list of those that make no difference knows it by."""
        return self.function, self.old, self.new


def make_mutants(path: Path, sample: int | None, seed: int) -> list[Mutant]:
    """Return changes of a module's functions that are Python, each once.

    Args:
        path: The module's file.
        sample: At most so many of them, drawn at random; all if it is None.
        seed: What they are drawn by, together with the name of the module.
    """
    source = path.read_text(encoding="utf-8")
    nodes = list(ast_nodes(get_ast(source)))
    places = [
        (operator, occurrence)
        for operator in operators()
        for occurrence in range(
            sum(len(list(operator.mutation_positions(node))) for node in nodes)
        )
    ]
    if sample is not None:
        random.Random(f"{seed} {path.relative_to(PACKAGE)}").shuffle(places)
    mutants: dict[str, Mutant] = {}
    for operator, occurrence in places:
        changed = mutate_code(source, operator, occurrence)
        mutant = changed and describe(path, source, changed)
        if mutant:
            mutants.setdefault(changed, mutant)
        if len(mutants) == sample:
            break
    return list(mutants.values())


def describe(path: Path, source: str, changed: str) -> Mutant | None:
    """Say what a change is; None if it is in no function, or is no Python."""
    try:
        after = dict(walk_functions(ast.parse(changed)))
    except SyntaxError:
        return None
    for name, function in walk_functions(ast.parse(source)):
        # What it does, without its arguments' defaults and types.
        if [*map(ast.dump, function.body)] != [*map(ast.dump, after[name].body)]:
            break
    else:
        return None
    lines = [*zip(source.splitlines(), changed.splitlines(), strict=False)]
    number = next(i for i, (old, new) in enumerate(lines, 1) if old != new)
    old, new = (" ".join(line.split()) for line in lines[number - 1])
    return Mutant(path, name, old, new, number, changed)


def tests_of(path: Path, *, quick: bool) -> list[str]:
    """Return the tests of a module: its own first, then all of its folder."""
    folder = path.relative_to(PACKAGE).parent
    own = folder / f"test_{path.stem.lstrip('_')}.py"
    if not (ROOT / "tests" / own).exists():
        return [str(folder)]
    return [str(own)] if quick else [str(own), str(folder)]


@define
class Score:
    """What came of a module's changes."""

    killed: int = 0
    equivalent: int = 0
    survivors: list[Mutant] = field(factory=list)

    @property
    def share(self) -> float:
        """How many of those that make a difference were noticed."""
        return self.killed / max(1, self.killed + len(self.survivors))


def read_equivalents() -> set[tuple[str, str, str]]:
    """Return the changes that are known to make no difference."""
    text = (Path(__file__).parent / "equivalent.toml").read_text(encoding="utf-8")
    listed = tomllib.loads(text).get("equivalent", [])
    return {(each["in"], each["old"], each["new"]) for each in listed}


def run(
    mutants: list[Mutant], workers: int, *, quick: bool
) -> Iterator[tuple[Mutant, int]]:
    """Run the tests with each change; yield pytest's status.

    Raises:
        SystemExit: They fail without any, too.
    """
    idle: SimpleQueue[Nursery] = SimpleQueue()
    nurseries = [Nursery() for _ in range(workers)]
    for nursery in nurseries:
        idle.put(nursery)

    longest = dict[Path, int]()

    def one(mutant: Mutant) -> tuple[Mutant, int]:
        nursery = idle.get()
        try:
            status, _ = nursery.run(
                {
                    "path": str(mutant.path),
                    "source": mutant.source,
                    "tests": tests_of(mutant.path, quick=quick),
                    "longest": longest[mutant.path],
                    "profile": "planted",
                }
            )
            return mutant, status
        finally:
            idle.put(nursery)

    try:
        for path in {mutant.path for mutant in mutants}:
            job: Job = {"tests": tests_of(path, quick=quick), "profile": "planted"}
            began = time.monotonic()
            status, output = nurseries[0].run(job)
            if status:
                sys.exit(output)
            # Of the processor's time, a change that takes so long is in a loop.
            longest[path] = 10 + 2 * int(time.monotonic() - began)
        with ThreadPoolExecutor(workers) as pool:
            yield from pool.map(one, mutants)
    finally:
        for nursery in nurseries:
            nursery.close()


def main() -> int:
    """Do what the command line says; 1 where a module's tests notice too little."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", default=MODULES, help=f"of {MODULES}")
    parser.add_argument("--sample", type=int, help="at most so many of a module")
    parser.add_argument(
        "--quick", action="store_true", help="a module's own tests only"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sample [0]")
    workers = len(os.sched_getaffinity(0))
    parser.add_argument("-n", type=int, default=workers, help="at a time")
    options = parser.parse_args()
    equivalents, scores = read_equivalents(), dict[str, Score]()
    for module in options.modules:
        place = PACKAGE / module
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            mutants = make_mutants(path, options.sample, options.seed)
            score = Score()
            for mutant, status in run(mutants, options.n, quick=options.quick):
                if mutant.key in equivalents:
                    score.equivalent += 1
                elif status:
                    score.killed += 1
                else:
                    score.survivors.append(mutant)
                    print(f"{path}:{mutant.line}: in {mutant.function}", flush=True)
                    print(f"  - {mutant.old}\n  + {mutant.new}", flush=True)
            if mutants:
                scores[str(path.relative_to(PACKAGE))] = score
                show(str(path.relative_to(PACKAGE)), score)
    print()
    for name, score in scores.items():
        show(name, score)
    return any(score.share < ENOUGH for score in scores.values())


def show(name: str, score: Score) -> None:
    """Print a module's line of the table."""
    print(
        f"{name:28} {score.killed:4} killed {len(score.survivors):4} survived"
        f" {score.equivalent:4} equivalent {score.share:7.1%}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
