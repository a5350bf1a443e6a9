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

__all__ = [
    "fake_qemu",
    "fake_qemu_config",
    "pytest_configure",
    "simulated_asyncio_world",
    "simulated_world",
    "start_fake_qemu",
]


@pytest.hookimpl(tryfirst=True)  # before hypothesis' own plugin loads the profile
def pytest_configure(config: pytest.Config) -> None:
    """Register hypothesis' profile ``qmpballoon``, if it is asked for."""
    if config.getoption("--hypothesis-profile", None) == "qmpballoon":
        from qmpballoon.testing import strategies  # noqa: PLC0415 - loads hypothesis

        strategies.register_profile()


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
def simulated_asyncio_world() -> Callable[..., object]:
    """Run a function on asyncio against a simulated VM, on a clock that jumps.

    The fixture is :func:`qmpballoon.testing.simulate_asyncio`. It keeps nothing between
    two calls, so hypothesis may call it for each example.
    """
    return testing.simulate_asyncio


@pytest.fixture(scope="session")
def simulated_world() -> Callable[..., object]:
    """Run a trio function against a simulated VM, on a clock that jumps.

    The fixture is :func:`qmpballoon.testing.simulate`. It keeps nothing between two
    calls, so hypothesis may call it for each example.
    """
    return testing.simulate
