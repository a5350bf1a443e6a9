"""The messages of QMP as frozen values.

:func:`parse` is what a client understands, :class:`Request` is what a server is
sent. Members that nobody knows yet are ignored, as QMP asks of its clients:
newer versions of QEMU add some.

Source: "QEMU Machine Protocol Specification", docs/interop/qmp-spec in QEMU.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from attrs import field, frozen

from qmpballoon.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Event",
    "Failure",
    "Greeting",
    "Id",
    "Message",
    "Request",
    "Return",
    "Version",
    "parse",
]

Id: TypeAlias = int | str
"""What a client may call its commands. QEMU takes any JSON value and writes it
out anew, so floats and huge integers do not come back as they were."""

_END_OF_TIME: Final = 253_402_300_799  # seconds; what datetime can hold
_MICROS: Final = 1_000_000  # in a second


@frozen(order=True)
class Version:
    """A QEMU version; two compare by their numbers.

    Attributes:
        major: The first number.
        minor: The second.
        micro: The third.
        package: What the distribution adds, often empty.
    """

    major: int
    minor: int
    micro: int
    package: str = field(default="", eq=False, order=False)

    def __str__(self) -> str:
        """Return the numbers alone: ``"10.0.2"``."""
        return f"{self.major}.{self.minor}.{self.micro}"


@frozen
class Greeting:
    """What a server says first.

    Attributes:
        version: The server's version, ``None`` where it does not give one that
            can be read.
        capabilities: What can be asked for in ``qmp_capabilities``.
    """

    version: Version | None
    capabilities: tuple[str, ...] = ()


@frozen
class Return:
    """A command succeeded.

    Attributes:
        value: What it returns.
        id: The command's id.
    """

    value: object
    id: object = None


@frozen
class Failure:
    """A command failed.

    Attributes:
        error_class: QEMU's error class.
        desc: The description, for people.
        id: The command's id; ``None`` where QEMU could not even find one.
    """

    error_class: str
    desc: str
    id: object = None


@frozen
class Event:
    """Something happened in QEMU.

    Attributes:
        name: As in the QMP reference, such as ``"BALLOON_CHANGE"``.
        data: What the event carries.
        timestamp: When it was generated, in seconds since the epoch by the
            host's clock; ``None`` where QEMU could not read that.
    """

    name: str
    data: Mapping[str, object] = field(factory=dict[str, object])
    timestamp: float | None = None

    @property
    def time(self) -> datetime | None:
        """The timestamp as a date and time in UTC."""
        if self.timestamp is None:
            return None
        return datetime.fromtimestamp(self.timestamp, UTC)


@frozen
class Request:
    """A command, as a server receives it.

    Attributes:
        command: Its name.
        arguments: Its arguments.
        id: What the answer is to carry; any JSON value, ``None`` if absent.
        oob: Whether it is to be run out of band (``exec-oob``).
    """

    command: str
    arguments: Mapping[str, object] = field(factory=dict[str, object])
    id: object = None
    oob: bool = False


Message: TypeAlias = Greeting | Return | Failure | Event | Request


def parse(value: object) -> Greeting | Return | Failure | Event:
    """Make a message of a decoded value that a server sent.

    Raises:
        ProtocolError: It is none. Any other exception is a bug.
    """
    if not isinstance(value, dict):
        raise _malformed("a message that is no object", value)
    message = cast("dict[str, object]", value)
    # In the order of how often they come.
    if "return" in message:
        return Return(message["return"], message.get("id"))
    if "event" in message:
        return _event(message)
    if "error" in message:
        return _failure(message)
    if "QMP" in message:
        return _greeting(message)
    raise _malformed("a message of no known kind", message)


def parse_request(value: object) -> Request:
    """Make a command of a decoded value that a client sent.

    Raises:
        ProtocolError: It is none. Any other exception is a bug.
    """
    message = _object(value, "a command that is no object")
    oob = "exec-oob" in message
    command = message.get("exec-oob" if oob else "execute")
    if not isinstance(command, str):
        raise _malformed("a command without a name", value)
    arguments = _object(message.get("arguments", {}), "arguments that are no object")
    return Request(command, arguments, message.get("id"), oob)


def _event(message: Mapping[str, object]) -> Event:
    name = message["event"]
    if not isinstance(name, str):
        raise _malformed("an event without a name", message)
    data = _object(message.get("data", {}), "an event whose data is no object")
    return Event(name, data, _timestamp(message.get("timestamp")))


def _timestamp(value: object) -> float | None:
    # QEMU sends -1 for both where it cannot read the clock.
    match value:
        case {"seconds": int(seconds), "microseconds": int(micros)} if (
            0 <= seconds < _END_OF_TIME and 0 <= micros < _MICROS
        ):
            return (seconds * _MICROS + micros) / _MICROS  # rounded once
        case _:
            return None


def _failure(message: Mapping[str, object]) -> Failure:
    match message["error"]:
        case {"class": str(error_class), "desc": str(desc)}:
            return Failure(error_class, desc, message.get("id"))
        case _:
            raise _malformed("an error without class and desc", message)


def _greeting(message: Mapping[str, object]) -> Greeting:
    body = _object(message["QMP"], "a greeting that is no object")
    offered = body.get("capabilities", [])
    if not isinstance(offered, list):
        raise _malformed("capabilities that are no array", message)
    # Old capabilities could be objects; only names can be asked for.
    names = [
        name for name in cast("Sequence[object]", offered) if isinstance(name, str)
    ]
    return Greeting(_version(body.get("version")), tuple(names))


def _version(value: object) -> Version | None:
    match value:
        case {"qemu": {"major": int(major), "minor": int(minor), "micro": int(micro)}}:
            package = cast("Mapping[str, object]", value).get("package", "")
            return Version(major, minor, micro, str(package))
        case _:
            return None


def _object(value: object, problem: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise _malformed(problem, value)
    return cast("Mapping[str, object]", value)


def _malformed(problem: str, value: object) -> ProtocolError:
    return ProtocolError(f"the peer does not speak QMP: {problem}: {value!r:.80}")
