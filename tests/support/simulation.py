"""A simulated VM under the library's balloon code, on time that nobody waits for.

The machine is the package's own model. Time moves only when the code under test
sleeps or runs a command, so its coroutines never suspend: a plain ``send(None)``
runs them to their end, with no event loop and the same way every time.
"""

from __future__ import annotations

import json
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from qmpballoon.balloon.balloon import Balloon
from qmpballoon.errors import MonitorClosed, make_command_error
from qmpballoon.testing import SECOND, GuestConfig, Machine, MachineConfig, profile

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Mapping

__all__ = ["PATH", "SimulatedMonitor", "make_balloon", "make_machine", "plug", "run"]

T = TypeVar("T")

PATH = "/machine/peripheral/balloon0"
_COMMAND_TIME = SECOND // 10_000  # for a command, there and back
_PATIENCE = 3600  # simulated seconds, after which something waits for ever


class SimulatedMonitor:
    """The way to a simulated machine; a :class:`~qmpballoon.monitor.Monitor`.

    Attributes:
        machine: The machine.
        calls: How often something was awaited.
        commands: What was executed, with its arguments.
        before_call: Called with the number of each call before it is carried out;
            may raise, as a cancellation does, and may do things to the machine.
            Not called under a shield, where no cancellation comes.
        after_call: Likewise, when it was carried out, and the answer can be lost.
        has_clock: Whether it has a wall clock.
        skew: Seconds by which that is ahead of the machine's.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.calls = 0
        self.commands: list[tuple[str, Mapping[str, object]]] = []
        self.before_call: Callable[[int], None] = lambda _: None
        self.after_call: Callable[[int], None] = lambda _: None
        self.has_clock = True
        self.skew = 0.0
        self._shields = 0
        self._session = machine.connect()
        self._session.receive(b'{"execute": "qmp_capabilities"}')
        self._session.take_output()

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None
    ) -> object:
        self._begin_call()
        self._pass(_COMMAND_TIME)
        self.commands.append((command, arguments or {}))
        if self.machine.ended:
            raise MonitorClosed("QEMU went away", (command,))
        request = {"execute": command, "arguments": arguments or {}, "id": 1}
        self._session.receive(json.dumps(request).encode())
        reply = self._reply(command)
        self._end_call()
        return reply

    async def sleep(self, seconds: float) -> None:
        self._begin_call()
        self._pass(max(1, round(seconds * SECOND)))
        self._end_call()

    def now(self) -> float:
        return self.machine.now / SECOND

    def resident(self) -> int:
        return self.machine.resident

    def wall_clock(self) -> float | None:
        """Return seconds since the epoch by the host's clock, if it is to have one."""
        return self.machine_clock() + self.skew if self.has_clock else None

    def machine_clock(self) -> float:
        """Return the machine's seconds since the epoch."""
        return (self.machine.config.epoch + self.machine.now) / SECOND

    @contextmanager
    def shield(self, seconds: float) -> Generator[None, None, None]:
        assert 0 < seconds < _PATIENCE
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1

    def targets(self) -> list[int]:
        """Return the targets that were set, in order."""
        values = [args["value"] for name, args in self.commands if name == "balloon"]
        return [value for value in values if isinstance(value, int)]

    def _begin_call(self) -> None:
        self.calls += 1
        assert self.now() < _PATIENCE, "this goes on for ever"
        if not self._shields:
            self.before_call(self.calls)

    def _end_call(self) -> None:
        if not self._shields:
            self.after_call(self.calls)

    def _pass(self, nanoseconds: int) -> None:
        self.machine.advance(self.machine.now + nanoseconds)

    def _reply(self, command: str) -> object:
        for line in self._session.take_output().decode("ascii").splitlines():
            message: dict[str, Any] = json.loads(line)
            if "error" in message:
                error = message["error"]
                raise make_command_error(command, error["class"], error["desc"])
            if "return" in message:
                result: object = message["return"]
                return result
        raise MonitorClosed("QEMU went away", (command,))


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, and return what it returns."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    coroutine.close()
    raise AssertionError("something was awaited that is no monitor's")


def make_machine(
    guest: GuestConfig | None = None,
    *,
    version: str = "10.0",
    seed: int = 0,
    **config: Any,  # noqa: ANN401 - what a MachineConfig takes
) -> Machine:
    """Make a machine that has been up for a minute."""
    machine = Machine(
        MachineConfig(guest=guest or GuestConfig(), **config),
        profile(version),
        random.Random(seed),
    )
    machine.advance(60 * SECOND)
    return machine


def make_balloon(machine: Machine, *, clock: bool = True) -> Balloon:
    """Return the balloon of a machine; its monitor is a :class:`SimulatedMonitor`."""
    monitor = SimulatedMonitor(machine)
    monitor.has_clock = clock
    return Balloon(monitor, PATH, machine.config.balloon or "")


def plug(machine: Machine, size: int) -> None:
    """Plug memory into a machine that has a slot for it, over another monitor."""
    session = machine.connect()
    session.receive(
        b'{"execute": "qmp_capabilities"}'
        b'{"execute": "object-add", "arguments":'
        b'{"qom-type": "memory-backend-ram", "id": "m", "size": %d}}'
        b'{"execute": "device_add", "arguments":'
        b'{"driver": "pc-dimm", "id": "d", "memdev": "m"}}' % size
    )
    assert b"error" not in session.take_output()
    machine.disconnect(session)
