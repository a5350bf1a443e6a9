"""Every exception keeps what it says: pickled, copied, and told to several tasks."""

from __future__ import annotations

import copy
import pickle

import pytest

from qmpballoon import errors
from qmpballoon._transport import error_messages, sockets
from qmpballoon.address import TcpAddress
from qmpballoon.balloon import Diagnosis, ResizeResult
from qmpballoon.errors import (
    BalloonBusy,
    BalloonError,
    BalloonStalled,
    BalloonTimeout,
    BalloonUnavailable,
    BusError,
    ClusterBusy,
    ClusterError,
    CommandError,
    MonitorBusy,
    MonitorError,
    MonitorTimeout,
    MonitorUnreachable,
    NoBalloonDevice,
    OwnMonitorUnavailable,
    ProtocolError,
    QmpBalloonError,
    StatsTimeout,
    StatsUnavailable,
    UnsafeTarget,
    UntrustedMonitor,
    make_command_error,
)

RESULT = ResizeResult(
    outcome="stalled",
    requested=1 << 30,
    before=4 << 30,
    actual=2 << 30,
    target=2 << 30,
    seconds=5.0,
    diagnosis=Diagnosis("slow", "it is slow"),
)
TCP = TcpAddress("host", 4444)

# Made as the library makes them.
MADE = [
    make_command_error("balloon", "GenericError", "no", "the monitor on /run/vm.qmp"),
    make_command_error("x", "CommandNotFound", "no"),
    make_command_error("qom-get", "DeviceNotFound", "no"),
    error_messages.make_no_greeting("the monitor", 123),
    error_messages.copy_error(error_messages.make_no_greeting("the monitor", 123)),
    error_messages.make_negotiation_timeout("the monitor", 0),
    error_messages.make_command_timeout("the monitor", "balloon", 1.0),
    error_messages.copy_error(
        error_messages.make_command_timeout("the monitor", "balloon", 1.0), ("balloon",)
    ),
    error_messages.make_closed_by_qemu("the monitor"),
    error_messages.make_closed_by_us("the monitor"),
    sockets.make_tcp_error(TCP, OSError(111, "refused")),
    sockets.make_tcp_timeout(TCP),
    sockets.make_tls_error("the monitor", OSError("no")),
    sockets.make_tls_timeout("the monitor"),
    ProtocolError("the monitor: nonsense"),
    MonitorUnreachable("there is no socket at /run/vm.qmp"),
    UntrustedMonitor("process 7 listens there"),
    OwnMonitorUnavailable("QEMU is too old"),
    BalloonStalled("it stalled", RESULT),
    BalloonTimeout("it took too long", RESULT),
    NoBalloonDevice("the VM has none"),
    BalloonUnavailable("no synchronous MMU"),
    UnsafeTarget("too small"),
    BalloonBusy("resize: reclaim moves this balloon now"),
    StatsUnavailable("the guest says nothing"),
    StatsTimeout("the guest did not answer within 3 s"),
    ClusterError("something"),
    ClusterBusy("another job goes on"),
    BusError("the server does not answer"),
    QmpBalloonError("something"),
    MonitorError("something"),
    BalloonError("something"),
]


def fields(error: BaseException) -> dict[str, object]:
    return {"type": type(error), "args": error.args, "str": str(error), **vars(error)}


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_error_has_all_its_fields(
    error: QmpBalloonError, protocol: int
) -> None:
    assert fields(pickle.loads(pickle.dumps(error, protocol))) == fields(error)  # noqa: S301 - our own


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
def test_a_copied_error_has_all_its_fields(error: QmpBalloonError) -> None:
    noted = copy.copy(error)
    noted.add_note("the guest was last asked for 1 GiB")
    assert fields(copy.copy(noted)) == fields(noted)
    assert fields(copy.deepcopy(error)) == fields(error)


def test_every_exception_is_among_them() -> None:
    public = {getattr(errors, name) for name in errors.__all__}
    kinds = {kind for kind in public if isinstance(kind, type)}
    assert kinds - {CommandError} <= {type(error) for error in MADE}
    assert CommandError in {type(error) for error in MADE}


def test_who_is_told_later_is_told_as_much() -> None:
    first = error_messages.make_no_greeting("the monitor", 123)
    later = error_messages.copy_error(first, ("balloon",))
    assert isinstance(later, MonitorBusy)
    assert later is not first
    assert later.pid == 123
    assert later.unknown_outcome == ("balloon",)
    assert first.unknown_outcome == ()
    assert "balloon" in str(later)


@pytest.mark.parametrize(
    "error",
    [
        error_messages.make_no_greeting("the monitor", None),
        error_messages.make_negotiation_timeout("the monitor", 0),
        error_messages.make_command_timeout("the monitor", "balloon", 1.0),
        sockets.make_tcp_timeout(TCP),
        sockets.make_tls_timeout("the monitor"),
        BalloonTimeout("it took too long", RESULT),
        StatsTimeout("the guest did not answer within 3 s"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_timeout_that_passed_is_a_timeout_error(error: QmpBalloonError) -> None:
    assert isinstance(error, TimeoutError)


def test_what_is_no_timeout_is_no_os_error() -> None:
    timeouts = (MonitorTimeout, MonitorBusy, BalloonTimeout, StatsTimeout)
    for error in MADE:
        assert isinstance(error, OSError) == isinstance(error, timeouts)
