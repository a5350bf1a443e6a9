"""Fixtures for the tests of those who build on qmpballoon.

pytest finds them where qmpballoon is installed; nothing has to be imported. They
load what they need when a test asks for them, so that all other tests' start is not
slowed down.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qmpballoon.testing.background import BackgroundFake
    from qmpballoon.testing.model.machine import MachineConfig

__all__ = ["fake_qemu", "fake_qemu_config", "simulated_world", "start_fake_qemu"]


@pytest.fixture
def fake_qemu_config() -> MachineConfig:
    """The VM that ``fake_qemu`` serves; override it to have another one."""
    from qmpballoon.testing.model.machine import MachineConfig  # noqa: PLC0415 - see above

    return MachineConfig()


@pytest.fixture
def start_fake_qemu() -> Iterator[Callable[..., BackgroundFake]]:
    """Start simulated VMs, each with a QMP monitor on a unix socket of its own.

    A function with the arguments of :func:`qmpballoon.testing.background.serve`. The
    VMs end with the test.
    """
    from qmpballoon.testing.background import serve  # noqa: PLC0415 - see above

    with ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(serve(*args, **kwargs))


@pytest.fixture
def fake_qemu(
    start_fake_qemu: Callable[..., BackgroundFake], fake_qemu_config: MachineConfig
) -> BackgroundFake:
    """Serve a simulated VM on a unix socket, ``fake_qemu.socket``, for one test.

    What runs against it may run on any event loop, on none, or in another process.
    """
    return start_fake_qemu(fake_qemu_config)


@pytest.fixture(scope="session")
def simulated_world() -> Callable[..., object]:
    """Run a trio function against a simulated VM, on a clock that jumps.

    This is :func:`qmpballoon.testing.simulated.simulate`. It keeps nothing between
    two calls, so hypothesis may call it for each example.
    """
    from qmpballoon.testing.simulated import simulate  # noqa: PLC0415 - see above

    return simulate
