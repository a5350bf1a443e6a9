"""pytest fixtures for the tests of projects that build on qmpballoon.

pytest loads this plugin wherever qmpballoon is installed; nothing has to be imported.
The fixtures import what they need when a test asks for them. The tests of projects that
use none of them do not start more slowly.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from qmpballoon import testing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qmpballoon.testing import MachineConfig, ThreadedFake

__all__ = ["fake_qemu", "fake_qemu_config", "simulated_world", "start_fake_qemu"]


@pytest.fixture
def fake_qemu_config() -> MachineConfig:
    """The VM that ``fake_qemu`` serves; override this fixture for another one."""
    return testing.MachineConfig()


@pytest.fixture
def start_fake_qemu() -> Iterator[Callable[..., ThreadedFake]]:
    """Start simulated VMs, each with a QMP monitor on a unix socket of its own.

    The fixture is a function with the arguments of :func:`qmpballoon.testing.serve`.
    The VMs end with the test.
    """
    with ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(
            testing.serve(*args, **kwargs)
        )


@pytest.fixture
def fake_qemu(
    start_fake_qemu: Callable[..., ThreadedFake], fake_qemu_config: MachineConfig
) -> ThreadedFake:
    """Serve a simulated VM on a unix socket, ``fake_qemu.socket``, for one test.

    The client may run on any event loop, on none, or in another process.
    """
    return start_fake_qemu(fake_qemu_config)


@pytest.fixture(scope="session")
def simulated_world() -> Callable[..., object]:
    """Run a trio function against a simulated VM, on a clock that jumps.

    The fixture is :func:`qmpballoon.testing.simulate`. It keeps nothing between two
    calls, so hypothesis may call it for each example.
    """
    return testing.simulate
