"""What the tests on a real QEMU have in common.

They need a QEMU and a Linux kernel to boot in it. Where neither is installed nor
can be fetched, they are skipped, with the reason; with ``--require-qemu``, or where
the environment variable ``CI`` is set, that is a failure.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qmpballoon.sizes import GiB
from qmpballoon.testing.lab import LabError, ProgressBar
from qmpballoon.testing.lab._guest import parse_meminfo
from qmpballoon.testing.lab._parts import find_busybox, find_kernel, find_qemu

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

HERE = Path(__file__).parent
# What takes long in these files is done once for all of their tests.
ON_ONE_WORKER = ("test_libvirt.py", "test_tutorial.py")
LONGEST = "test_fleet.py"
# What the guests of one worker have at most at one time, as a rule: one has 2 GiB.
WORKER = 3 * GiB


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Run two workers on each processor, as far as there is memory for their guests.

    A test waits for its guest, and a guest for its timers, about half of the time.
    """
    memory = parse_meminfo(Path("/proc/meminfo").read_text())["MemAvailable"]
    return max(1, min(2 * len(os.sched_getaffinity(0)), memory // WORKER))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(
    config: pytest.Config, log: Producer
) -> LoadScopeScheduling:
    """Send each test to the next worker that is free, and some files to one worker."""
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415 - may not be there

    def scope_of(test: str) -> str:
        file = test.partition("::")[0]
        return file if file.endswith(ON_ONE_WORKER) else test

    scheduling = LoadScopeScheduling(config, log)
    scheduling._split_scope = scope_of  # noqa: SLF001 - what its subclasses override
    return scheduling


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests in this folder, so that none is run where it should not be."""
    # Begun last, the one that takes longest would be waited for by all other workers.
    items.sort(key=lambda item: item.path.name != LONGEST)
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.qemu)


@pytest.fixture(scope="session", autouse=True)
def _qemu_can_be_had(request: pytest.FixtureRequest) -> None:
    """Look for all that a guest is made of, and fetch what is missing."""
    bar = ProgressBar()
    try:
        find_qemu(None, bar)
        find_kernel(None, bar)
        find_busybox(bar)
    except LabError as error:
        reason = f"no QEMU to test on: {error}"
    else:
        return
    if request.config.getoption("require_qemu"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
