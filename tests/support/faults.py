"""What may go wrong at any moment of something that drives a balloon.

:func:`at_every_call` runs an operation once to count what it awaits, and then once
for each of these calls, which fails; so every await is the one it is cancelled at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import frozen
from hypothesis import settings
from simulation import SimulatedMonitor, make_balloon, run

from qmpballoon.balloon.device import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.testing import Machine

__all__ = ["Aftermath", "Cancelled", "at_every_call", "monitor_of"]


_ENDS = 15
_STRIDE = 7


class Cancelled(BaseException):
    """As an event loop raises it, at an await and for no error."""


@frozen
class Aftermath:
    """What a failure left behind.

    Attributes:
        machine: The machine.
        raised: What came out of the operation; ``None`` if it ended well, the
            failure having come too late.
        actual: Bytes the guest had at that moment.
        target: Bytes it is told to have.
        interval: Seconds between two of its statistics.
    """

    machine: Machine
    raised: BaseException | None
    actual: int
    target: int
    interval: int


def monitor_of(balloon: Balloon) -> SimulatedMonitor:
    """Return the monitor behind a simulated balloon."""
    assert isinstance(balloon.monitor, SimulatedMonitor)
    return balloon.monitor


def at_every_call(
    make: Callable[[], Machine],
    operation: Callable[[Balloon], Coroutine[Any, Any, object]],
    failure: Callable[[Machine], BaseException | None],
    *,
    after: bool = False,
) -> Iterator[Aftermath]:
    """Let an operation fail at each of its calls in turn; yield what is left.

    Args:
        make: Makes the machine, the same every time.
        operation: What is done to its balloon.
        failure: Does something to the machine; returns what the call raises.
        after: Whether the call is carried out first and its answer lost.
    """
    balloon = make_balloon(make())
    attempt(balloon, operation)
    calls = monitor_of(balloon).calls
    assert calls > 5, "the operation does nothing worth failing"
    for number in which(calls):
        balloon = make_balloon(make())
        monitor = monitor_of(balloon)

        struck: list[int] = []

        def fail(
            call: int,
            number: int = number,
            machine: Machine = monitor.machine,
            struck: list[int] = struck,
        ) -> None:
            if call == number:
                struck.append(call)
                error = failure(machine)
                if error is not None:
                    raise error

        if after:
            monitor.after_call = fail
        else:
            monitor.before_call = fail
        raised = attempt(balloon, operation)
        if struck:  # the others are shielded
            yield aftermath(monitor.machine, raised)


def which(calls: int) -> Iterator[int]:
    """Return which calls to let fail: all of them, where time does not matter.

    Else all at the beginning and at the end, and every so many in the loop between,
    by a number that falls on each kind of call in turn.
    """
    thorough = settings.get_profile("nightly").max_examples <= settings().max_examples
    for number in range(1, calls + 1):
        if (
            thorough
            or number <= _ENDS
            or number > calls - _ENDS
            or not number % _STRIDE
        ):
            yield number


def attempt(
    balloon: Balloon, operation: Callable[[Balloon], Coroutine[Any, Any, object]]
) -> BaseException | None:
    """Do it; return what it raises."""
    try:
        run(operation(balloon))
    except AssertionError:
        raise
    except BaseException as error:  # noqa: BLE001 - a cancellation is one
        return error
    return None


def aftermath(machine: Machine, raised: BaseException | None) -> Aftermath:
    device, ram = machine.device, machine.guest.memory.ram
    assert device is not None
    return Aftermath(
        machine=machine,
        raised=raised,
        actual=device.compute_actual(ram),
        target=ram - device.asked * PAGE,
        interval=device.interval,
    )
