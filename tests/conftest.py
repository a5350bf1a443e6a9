"""What holds for every test: options, hypothesis' profiles, and some fixtures.

The environment variable ``HYPOTHESIS_PROFILE`` chooses one: ``ci`` draws the same
examples on every run, so that what fails there fails here; ``nightly`` looks for
what nobody thought of; ``planted`` and ``shrunk`` are for tests/mutations. Without it,
``ci`` is used where ``CI`` is set.
"""

from __future__ import annotations

import fcntl
import gc
import itertools
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import HealthCheck, Phase, settings

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from qmpballoon.testing import ThreadedFake

# How long an example takes, and how long it takes to draw, say more of the machine than
# of the code: no deadline.
_any_speed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("default", _any_speed)
settings.register_profile("ci", _any_speed, derandomize=True, print_blob=True)
settings.register_profile("nightly", _any_speed, max_examples=5000, print_blob=True)
# That a planted bug is found is all that is asked (tests/mutations); the least example
# of it takes many times as long, and is asked for only of those that have steps.
_planted = settings(settings.get_profile("ci"), report_multiple_bugs=False)
_looking = (Phase.explicit, Phase.generate)
settings.register_profile("planted", _planted, phases=_looking)
settings.register_profile(
    "shrunk", _planted, phases=(*_looking, Phase.shrink), stateful_step_count=12
)
PROFILE = os.environ.get(
    "HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"
)
settings.load_profile(PROFILE)

TESTS = Path(__file__).parent
# What takes long: it starts processes, waits in real time, or tries very much. While
# one works, `pytest -m "not slow"` leaves it out.
SLOW = (
    *("browser", "cli", "cluster/test_real_cluster.py"),
    "conformance/test_conformance.py",
    *("conformance/test_survival.py", "fleet/test_day.py"),
    *("libvirt", "mutations", "package", "qemu", "test_cancellation.py"),
    *("test_determinism.py", "test_docs.py", "test_examples.py", "test_hostile.py"),
    *("test_readme.py", "test_soak.py", "testing/test_interop.py"),
    *("testing/test_plugin.py", "testing/test_world.py"),
)


@pytest.hookimpl(tryfirst=True)  # before some are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow."""
    for path, of_file in itertools.groupby(items, lambda item: item.path):
        if any(path.is_relative_to(TESTS / name) for name in SLOW):
            for item in of_file:
                item.add_marker("slow")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Let one worker look for the tests before the others do: it compiles them.

    In a new checkout pytest does that in its own way, for the asserts, and it takes
    twice as long as all else that a worker does before its first test.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None:
        return (yield)
    with Path(__file__).open(encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX if worker == "gw0" else fcntl.LOCK_SH)
        return (yield)


def pytest_collection_finish() -> None:
    """Have garbage collected from what tests make, not from all that was imported.

    Looking through the latter takes a tenth of the time of simulations.
    """
    gc.collect()
    gc.freeze()
    # Simulations make many objects that live for a moment, and few cycles: looking for
    # those after each 700 objects takes a twentieth of the time.
    gc.set_threshold(20_000)


@pytest.fixture
def slow_places() -> list[Path]:
    """The files and folders whose tests are marked as slow."""
    return [TESTS / name for name in SLOW]


@pytest.fixture
def processes() -> int:
    """In how many processes to look whether the order of sets and the like decides.

    If it decides between two things, all of so many agree in one of 2,048 runs; the
    nightly profile leaves no doubt.
    """
    return 100 if PROFILE == "nightly" else 12


@pytest.hookimpl(optionalhook=True)  # planted bugs run without pytest-xdist
def pytest_xdist_auto_num_workers() -> int:
    """Run twice as many workers as there are processors: tests wait half of the time.

    They wait for what happens in real time, such as a command that is to time out.
    """
    return 2 * len(os.sched_getaffinity(0))


def pytest_configure(config: pytest.Config) -> None:
    """Let tests and what they start behave alike, however pytest is run."""
    # What runs tests is measured, be it a worker of pytest-xdist; programs that they
    # start are not, as some are to keep pace with signals.
    if config.getoption("dist", "no") == "no":
        os.environ.pop("COVERAGE_PROCESS_CONFIG", None)
    # Ctrl-C strikes: a shell that starts pytest in the background prevents it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # What nohup has ignored stays so in all that is started, and what has a handler
    # does not: commands are to meet the signal, and the tests to outlive it.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Generator[None, object, object]:
    """Say why a test is skipped: pytest-trio skips anew what skips itself, without."""
    try:
        return (yield)
    except pytest.skip.Exception as skipped:
        reason = skipped.__context__
        while isinstance(reason, BaseExceptionGroup):
            reason = cast("BaseExceptionGroup[BaseException]", reason).exceptions[0]
        if isinstance(reason, pytest.skip.Exception):
            raise reason from None
        raise


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that folders act on; pytest looks for them only here."""
    parser.addoption(
        "--require-qemu",
        action="store_true",
        default=bool(os.environ.get("CI")),
        help="fail, not skip, where no QEMU can be had (default where CI is set)",
    )


@pytest.fixture
def fake() -> Iterator[ThreadedFake]:
    """Serve a default VM on a unix socket."""
    from qmpballoon.testing import serve  # noqa: PLC0415 - for those who ask for it

    with serve() as fake:
        yield fake


@pytest.fixture
def no_descriptor_leaks() -> Generator[None]:
    """Let no test leave a descriptor open: neither by success nor by failure."""
    before = descriptors()
    yield
    assert descriptors() == before


def descriptors() -> dict[str, str]:
    """Return what is open: descriptor, and what it is to."""
    seen: dict[str, str] = {}
    for link in Path("/proc/self/fd").iterdir():
        try:
            seen[link.name] = str(link.readlink())
        except FileNotFoundError:  # the one that listed the folder
            continue
    return seen
