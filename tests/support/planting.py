"""Bugs that are planted in functions, and tests that are run with them.

A bug is named by the function that it is in and by what it changes there, as syntax:
formatting, comments and the module that the function stands in do not matter. A name or
a piece of code that is not there, or is there twice, is an error.

Run as a program, this runs tests with bugs that it is told on its standard input. It
imports all that they need once; each bug is planted in a fork of its own.
"""

from __future__ import annotations

import ast
import gc
import importlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
import types
from contextlib import redirect_stdout
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Required, TypedDict

import hypothesis
import pytest

import qmpballoon

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PACKAGE: Final = Path(qmpballoon.__file__).parent
ROOT: Final = Path(__file__).parent.parent.parent

# The status of a fork that has not come to run any tests: none of pytest's.
FAILED: Final = 70
LONGEST: Final = 120  # seconds of a processor's time for one bug, if a job names none
# Seconds for one bug that makes a test wait for something that never comes.
LONGEST_WAIT: Final = 600

# Where hypothesis keeps the settings of a test.
SETTINGS: Final = "_hypothesis_internal_use_settings"

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


class Job(TypedDict, total=False):
    """What is run: tests below tests/, with a bug or without.

    Where there is none, few examples may be enough. The bug is a function and its
    change, or a module and another source of it.
    """

    key: str
    old: str
    new: str
    again: bool
    path: str
    source: str
    tests: Required[Sequence[str]]
    few: bool
    longest: int
    profile: Required[str]


class Misfit(Exception):
    """What a bug is to change is not there, or there more than once."""


def walk_functions(
    node: ast.AST, qualname: tuple[str, ...] = ()
) -> Iterator[tuple[str, FunctionNode]]:
    """Yield the functions of a module and of its classes, with their names."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FunctionNode):
            yield ".".join([*qualname, child.name]), child
        elif isinstance(child, ast.ClassDef):
            yield from walk_functions(child, (*qualname, child.name))
        else:
            yield from walk_functions(child, qualname)


@cache
def read_sources() -> dict[Path, tuple[str, str]]:
    """Return the modules of the package: the file, the dotted name, and the source."""
    return {
        path: (
            ".".join(["", *path.relative_to(PACKAGE).with_suffix("").parts]),
            path.read_text(encoding="utf-8"),
        )
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def find_function(key: str) -> tuple[Path, ast.Module, FunctionNode]:
    """Find a function of the package.

    Args:
        key: ``Class.method`` or ``function``. Where several modules have one of that
            name, the module's, or the end of it, comes first: ``policy:make_plan``.
    """
    module, _, qualname = key.rpartition(":")
    definition = f"def {qualname.rpartition('.')[2]}("
    found: list[tuple[Path, ast.Module, FunctionNode]] = []
    for path, (dotted, source) in read_sources().items():
        if not dotted.endswith(f".{module}" if module else ""):
            continue
        if definition in source:
            tree = ast.parse(source)
            found += [
                (path, tree, function)
                for name, function in walk_functions(tree)
                if name == qualname
            ]
    if len(found) != 1:
        places = [f"{path.name}:{function.lineno}" for path, _, function in found]
        raise Misfit(f"{key}: one function is to have this name, but found {places}")
    return found[0]


def is_ellipsis(body: object) -> bool:
    """Tell whether a block stands for any block."""
    match body:
        case [ast.Expr(value=ast.Constant(value=value))]:
            return value is ...
    return False


class Planter(ast.NodeTransformer):
    """Replaces what looks like a piece of code by another piece.

    A block of code that is only ``...`` stands for any block, and is kept.
    """

    def __init__(self, old: ast.stmt, new: list[ast.stmt]) -> None:
        # An expression goes for an expression; for anything else, it is a statement.
        self.old: ast.AST = old
        self.new = new
        if isinstance(old, ast.Expr) and isinstance(new[0], ast.Expr):
            self.old = old.value
        self.planted = 0
        self.any_block = is_ellipsis(getattr(old, "body", None))

    def visit(self, node: ast.AST) -> object:
        """Replace a node, or what is in it."""
        if type(node) is not type(self.old) or self._show(node) != self._show(self.old):
            return super().visit(node)
        self.planted += 1
        if isinstance(node, ast.expr):
            (new,) = self.new
            assert isinstance(new, ast.Expr)
            return new.value
        for statement in self.new:
            if is_ellipsis(getattr(statement, "body", None)):
                statement.body = node.body  # type: ignore[attr-defined]
        return self.new

    def _show(self, node: ast.AST) -> str:
        fields = dict(ast.iter_fields(node))
        if self.any_block:
            fields["body"] = fields["orelse"] = []
        return ast.dump(type(node)(**fields))


def change(function: FunctionNode, old: str, new: str) -> None:
    """Change a piece of a function or, where `old` is empty, all that it does."""
    if not old:
        function.body = ast.parse(new).body
        return
    (piece,) = ast.parse(old).body
    planter = Planter(piece, ast.parse(new).body)
    planter.generic_visit(function)
    if planter.planted != 1:
        raise Misfit(f"{function.name} has {old!r} {planter.planted} times, not once")


def walk_code(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield all code objects in a compiled module."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from walk_code(constant)


def plant(key: str, old: str, new: str, *, again: bool = False) -> None:
    """Change a function of the running program, wherever it is held already.

    Args:
        key: The function, as :func:`find_function` takes it.
        old: A piece of it; nothing for all that it does.
        new: What stands there instead.
        again: Run its module again, for a function that makes one of its constants.
    """
    path, tree, function = find_function(key)
    change(function, old, new)
    compiled = compile(ast.fix_missing_locations(tree), path, "exec")
    module = importlib.import_module(name_of(path))
    if key.rpartition(":")[2] not in swap_functions(path, compiled):
        raise Misfit(f"{key}: no such function is held by the program")
    if again:
        exec(compiled, vars(module))  # noqa: S102


def plant_source(path: Path, source: str) -> None:
    """Have the functions of a module do what another source of it says."""
    importlib.import_module(name_of(path))
    swap_functions(path, compile(source, path, "exec"))


def name_of(path: Path) -> str:
    """Return the name of a module of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def list_functions() -> list[types.FunctionType]:
    """Return the functions of the package, but for those that were frozen."""
    return [
        each
        for each in gc.get_objects()
        if isinstance(each, types.FunctionType)
        and each.__code__.co_filename.startswith(f"{PACKAGE}{os.sep}")
    ]


def swap_functions(path: Path, compiled: types.CodeType) -> set[str]:
    """Give all functions of a module the code that they have in another one.

    The functions themselves stay, so it does not matter who holds them, and under
    what name.

    Returns:
        The names of those that were changed.
    """
    codes = {(c.co_qualname, c.co_firstlineno): c for c in walk_code(compiled)}
    changed = set[str]()
    for each in (*PRELOADED_FUNCTIONS, *list_functions()):
        code = each.__code__
        new = codes.get((code.co_qualname, code.co_firstlineno))
        if new is not None and Path(code.co_filename) == path and new != code:
            each.__code__ = new
            changed.add(code.co_qualname)
    return changed


class FewExamples:
    """A plugin for pytest, which has property-based tests try few examples.

    Without a bug all examples pass, as other runs of the tests show. Few are enough to
    see that nothing fails here for being run like this.
    """

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Change what tests say themselves, which goes before any profile."""
        for item in items:
            test = item.obj  # type: ignore[attr-defined]
            if not hypothesis.is_hypothesis_test(test):
                continue
            if hasattr(item.cls, "settings"):  # type: ignore[attr-defined]
                machine = item.cls  # type: ignore[attr-defined]
                machine.settings = hypothesis.settings(machine.settings, max_examples=5)
            else:
                # There is no public way to change what a test was decorated with.
                used = getattr(test, SETTINGS)
                setattr(test, SETTINGS, hypothesis.settings(used, max_examples=5))


def run_tests(tests: Sequence[str], profile: str, *, few: bool = False) -> int:
    """Run tests in this process, and return pytest's exit status."""
    os.environ["HYPOTHESIS_PROFILE"] = profile
    return pytest.main(
        [
            *("-q", "-x", "-p", "no:cacheprovider"),
            # It would read the metadata of all that is installed.
            "--disable-plugin-autoload",
            # pytest's own way reads and parses all files that a failure went through.
            "--tb=native",
            *("-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)),
            *(f"{ROOT}/tests/{test}" for test in tests),
        ],
        plugins=[*PLUGINS, FewExamples()] if few else PLUGINS,
    )


def plant_job(job: Job) -> None:
    """Plant the bug of a job, if there is one."""
    if "key" in job:
        plant(job["key"], job["old"], job["new"], again=job["again"])
    if "source" in job:
        plant_source(Path(job["path"]), job["source"])


def run_forked(job: Job) -> tuple[int, str]:
    """Plant a bug in a fork, run its tests there, and return status and output."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if not child:
            status = FAILED
            # A bug may make a loop endless, or have a test wait forever.
            longest = job.get("longest", LONGEST)
            resource.setrlimit(resource.RLIMIT_CPU, (longest, longest))
            signal.alarm(LONGEST_WAIT)
            try:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                plant_job(job)
                gc.freeze()  # so that tests collect their own garbage only
                status = run_tests(
                    job["tests"], job["profile"], few=job.get("few", False)
                )
            except BaseException:  # noqa: BLE001 - shown, and told by the status
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, waited = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(waited), output.read().decode()


class Nursery:
    """A program that runs tests with bugs, started when it is first needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, job: Job) -> tuple[int, str]:
        """Run tests with a bug, and return pytest's exit status and its output."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                cwd=ROOT,
                # Nothing of those who run it: so that hypothesis finds the bug in the
                # same example each time.
                env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(job)}\n")
        self._process.stdin.flush()
        status, output = json.loads(self._process.stdout.readline())
        return status, output

    def close(self) -> None:
        """End the program."""
        if self._process is not None:
            self._process.communicate()


def preload() -> None:
    """Import and read what most forks need, and find the functions in it once."""
    for name in PRELOADED:
        importlib.import_module(name)
    with redirect_stdout(io.StringIO()):  # imports the plugins that pytest brings along
        pytest.main(["--version", "--noconftest", "-c", os.devnull])
    for plugin in entry_points(group="pytest11"):
        if not plugin.module.startswith("xdist"):
            PLUGINS.append(plugin.load())
    read_sources()
    PRELOADED_FUNCTIONS.extend(list_functions())
    gc.freeze()  # forks neither look through it nor collect it


def main(jobs: IO[str], results: IO[str]) -> None:
    """Run what is told, line by line, until there is no more."""
    preload()
    for line in jobs:
        results.write(f"{json.dumps(run_forked(json.loads(line)))}\n")
        results.flush()


# What pytest and most tests import: what a fork has, it need not import itself.
PRELOADED: Final = (
    *("asyncio", "hypothesis.stateful", "pytest", "trio.testing", "rich.live", "click"),
    *("qmpballoon.trio", "qmpballoon.testing.server", "qmpballoon.fleet.supervisor"),
    # Takes long, as its client does.
    "qmpballoon.cluster.valkey",
)
# The functions of the package that are in it, and pytest's plugins.
PRELOADED_FUNCTIONS: Final[list[types.FunctionType]] = []
PLUGINS: Final[list[object]] = []


if __name__ == "__main__":
    main(sys.stdin, sys.stdout)
