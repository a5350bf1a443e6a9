"""Each example runs on simulated VMs, as it is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from example_runs import EXAMPLES, RUNS, Run

from qmpballoon import GiB, MiB
from qmpballoon.testing import GuestConfig, MachineConfig, serve

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from qmpballoon.testing import ThreadedFake


def test_every_example_is_run() -> None:
    files = {path.stem for path in EXAMPLES.glob("*.py")}
    assert files == {run.name for run in RUNS} | {"_common", "test_make_room"}


@pytest.mark.parametrize(
    "path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name
)
def test_an_example_fits_on_a_screen(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_simulated(run: Run, tmp_path: Path) -> None:
    run.on("--simulated", folder=tmp_path)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_without_a_vm_it_says_what_it_needs(run: Run) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{run.name}.py"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "or --simulated" in done.stderr


def test_where_there_is_no_vm_it_says_so_in_a_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "status.py", tmp_path / "no.qmp"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "no.qmp" in done.stderr


SLOW = MachineConfig(
    guest=GuestConfig(inflate_rate=40 * MiB, reclaim_rate=40 * MiB, stats_delay=0)
)


def start(run: Run, *arguments: str) -> subprocess.Popen[str]:
    """Start an example, as a user would."""
    pipe = subprocess.PIPE
    command = [sys.executable, str(EXAMPLES / f"{run.name}.py"), *arguments]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@contextmanager
def in_the_middle(name: str) -> Generator[tuple[ThreadedFake, subprocess.Popen[str]]]:
    """Run an example on a guest until it has begun to take memory from it."""
    run = next(run for run in RUNS if run.name == name)
    with serve(SLOW) as fake, start(run, fake.socket, *run.options) as process:
        while fake.actual == 2 * GiB:
            assert process.poll() is None
        yield fake, process


@pytest.mark.parametrize(
    "name", ["orchestrator_asyncio", "script", "make_room", "resize"]
)
def test_a_qemu_that_dies_in_the_middle_is_told_as_that(name: str) -> None:
    with in_the_middle(name) as (fake, process):
        fake.kill()
        said = process.communicate(timeout=300)[1]
    assert process.returncode == 1, said
    assert "closed by QEMU" in said.splitlines()[-1]
    assert "EOFError" not in said


def test_one_that_dies_in_the_night_is_reported() -> None:
    with in_the_middle("nightly") as (fake, process):
        fake.kill()
        said = process.communicate(timeout=300)[0]
    assert process.returncode == 0
    assert "closed by QEMU" in said


@pytest.mark.parametrize(
    "name", ["orchestrator_asyncio", "script", "make_room", "take_turns"]
)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_example_gives_back(name: str, signum: signal.Signals) -> None:
    with in_the_middle(name) as (fake, process):
        process.send_signal(signum)
        said = process.communicate(timeout=300)[1]
        assert (process.returncode, said) == (130, "interrupted\n")
        assert fake.target == 2 * GiB


def test_a_script_that_is_ended_while_its_job_runs_gives_back() -> None:
    (run,) = (run for run in RUNS if run.name == "script")
    job = ("--job", "echo begun; exec cat")
    with serve() as fake, start(run, fake.socket, *job) as process:
        assert process.stdout is not None
        while process.stdout.readline() != "begun\n":
            assert process.poll() is None
        assert fake.actual < 2 * GiB
        process.terminate()
        said = process.communicate(timeout=300)[1]
        assert (process.returncode, said) == (130, "interrupted\n")
        assert fake.target == 2 * GiB


GREEDY = """
    before = [await balloon.actual() for balloon in balloons]
    for balloon in balloons:
        await balloon.resize(300 << 20, on_stall="settle")
    return sum(before) - sum([await balloon.actual() for balloon in balloons])
"""


@pytest.mark.parametrize(
    ("body", "passes"),
    [
        ("return 0", False),
        ("return wanted", False),
        (GREEDY, False),
    ],
    ids=["idle", "liar", "greedy"],
)
def test_the_test_of_an_orchestrator_tells_good_from_bad(
    tmp_path: Path, body: str, *, passes: bool
) -> None:
    source = f"SMALLEST = 1 << 20\nasync def make_room(balloons, wanted):\n    {body}\n"
    (tmp_path / "make_room.py").write_text(source, encoding="utf-8")
    test = (EXAMPLES / "test_make_room.py").read_text(encoding="utf-8")
    # Making the failing example small would take a minute, and nobody reads it.
    test = test.replace("max_examples=25", "max_examples=25, phases={Phase.generate}")
    test = test.replace("import given", "import Phase, given")
    assert "import Phase" in test
    assert "phases={Phase.generate}" in test
    (tmp_path / "test_it.py").write_text(test, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    assert (run_pytest(tmp_path) == 0) == passes


def test_the_test_of_our_orchestrator_passes(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text(
        f"[pytest]\npythonpath = {EXAMPLES}\n", encoding="utf-8"
    )
    assert run_pytest(tmp_path, str(EXAMPLES / "test_make_room.py")) == 0


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Copy what pytest looks at in a clone."""
    root = EXAMPLES.parent
    shutil.copy(root / "pyproject.toml", tmp_path)
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    test = tmp_path / "examples/test_make_room.py"
    # A few examples, and none made small: that it runs is what matters here.
    replace(test, "max_examples=25", "max_examples=5, phases={Phase.generate}")
    replace(test, "import given", "import Phase, given")
    return tmp_path


@pytest.mark.parametrize(
    ("folder", "command"),
    [
        (".", ("-m", "pytest", "examples/test_make_room.py")),
        (".", ("-m", "pytest", "examples")),
        ("examples", ("-m", "pytest")),
    ],
    ids=" ".join,
)
def test_the_test_runs_in_a_clone_with_no_other_plugins(
    clone: Path, folder: str, command: Sequence[str]
) -> None:
    done = run_alone(clone / folder, command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert "warning" not in done.stdout
    assert done.stderr == ""


def test_the_test_tells_by_its_status_that_it_failed(clone: Path) -> None:
    program = clone / "examples/make_room.py"
    replace(program, "    plans:", "    return 0\n    plans:")
    done = run_alone(clone, ("-m", "pytest", "examples/test_make_room.py"))
    assert done.returncode == 1
    assert "1 failed" in done.stdout


def run_alone(folder: Path, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run Python as if only the package, pytest and hypothesis were installed."""
    plugins = "qmpballoon.testing.plugin,_hypothesis_pytestplugin"
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": plugins}
    return subprocess.run(
        [sys.executable, *command],
        check=False,
        cwd=folder,
        env=os.environ | {"CI": "1"} | alone,
        capture_output=True,
        text=True,
    )


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1
    file.write_text(text.replace(old, new), encoding="utf-8")


def run_pytest(folder: Path, *arguments: str) -> int:
    """Run pytest in a project of its own, on the same examples each time."""
    options = ("-q", "-c", "pytest.ini", "--rootdir=.", "-p", "no:cacheprovider")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *arguments],
        check=False,
        cwd=folder,
        env=os.environ | {"CI": "1"},  # hypothesis draws the same examples then
        stdout=subprocess.DEVNULL,
    )
    return done.returncode
