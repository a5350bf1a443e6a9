"""The messages of QMP as frozen values.

:func:`parse` reads what a server sends, :func:`parse_request` what a client sends.
Unknown members are ignored, as QMP asks of its clients: newer QEMUs add some.

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
    "parse_request",
    "parse_version",
]

Id: TypeAlias = int | str
"""A command's id. QEMU accepts any JSON value and writes it again in its reply, so a
float or a huge integer may not come back as it was sent."""

_END_OF_TIME: Final = 253_402_300_799  # seconds; the year 10000, where datetime ends
_MICROS: Final = 1_000_000  # in a second


@frozen(order=True)
class Version:
    """A QEMU version. Versions are compared by their numbers.

    Attributes:
        major: The first number.
        minor: The second number.
        micro: The third number.
        package: The distribution's addition, often empty.
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
    """The server's first message.

    Attributes:
        version: The server's version; ``None`` if it gives none that can be read.
        capabilities: The capabilities that ``qmp_capabilities`` can enable.
    """

    version: Version | None
    capabilities: tuple[str, ...] = ()


@frozen
class Return:
    """The reply to a command that succeeded.

    Attributes:
        value: Its result.
        id: The command's id.
    """

    value: object = field(hash=False)
    id: object = field(default=None, hash=False)


@frozen
class Failure:
    """The reply to a command that failed.

    Attributes:
        error_class: QEMU's error class.
        desc: QEMU's description, for people.
        id: The command's id; ``None`` if QEMU could not read one.
    """

    error_class: str
    desc: str
    id: object = field(default=None, hash=False)


@frozen
class Event:
    """An event in QEMU.

    Attributes:
        name: The name in the QMP reference, such as ``"BALLOON_CHANGE"``.
        data: The event's data.
        timestamp: When QEMU made it, in seconds since the epoch on the host's clock;
            ``None`` if QEMU could not read the clock.
    """

    name: str
    data: Mapping[str, object] = field(factory=dict[str, object], hash=False)
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
        id: The id for the reply: any JSON value, ``None`` if absent.
        oob: Whether to run it out of band (``exec-oob``).
    """

    command: str
    # Not shown: arguments can be secrets.
    arguments: Mapping[str, object] = field(
        factory=dict[str, object], hash=False, repr=False
    )
    id: object = field(default=None, hash=False)
    oob: bool = False


Message: TypeAlias = Greeting | Return | Failure | Event | Request
"""Any message of either side."""


def parse(value: object) -> Greeting | Return | Failure | Event:
    """Read a message that a server sent from its decoded value.

    Raises:
        ProtocolError: It is no QMP message. Any other exception is a bug.
    """
    if not isinstance(value, dict):
        raise _make_error("a message that is no object", value)
    message = cast("dict[str, object]", value)
    # The most frequent kinds first.
    if "return" in message:
        return Return(message["return"], message.get("id"))
    if "event" in message:
        return _parse_event(message)
    if "error" in message:
        return _parse_failure(message)
    if "QMP" in message:
        return _parse_greeting(message)
    raise _make_error("a message of no known kind", message)


def parse_request(value: object) -> Request:
    """Read a command that a client sent from its decoded value.

    Raises:
        ProtocolError: It is not a command. Any other exception is a bug.
    """
    message = _require_object(value, "a command that is no object")
    oob = "exec-oob" in message
    command = message.get("exec-oob" if oob else "execute")
    if not isinstance(command, str):
        raise _make_error("a command without a name", value)
    given = message.get("arguments", {})
    arguments = _require_object(given, "arguments that are no object")
    return Request(command, arguments, message.get("id"), oob)


def _parse_event(message: Mapping[str, object]) -> Event:
    name = message["event"]
    if not isinstance(name, str):
        raise _make_error("an event without a name", message)
    data = _require_object(message.get("data", {}), "an event whose data is no object")
    return Event(name, data, _parse_timestamp(message.get("timestamp")))


def _parse_timestamp(value: object) -> float | None:
    # QEMU sends -1 for both where it cannot read the clock.
    match value:
        case {"seconds": int(seconds), "microseconds": int(micros)} if (
            0 <= seconds < _END_OF_TIME and 0 <= micros < _MICROS
        ):
            return (seconds * _MICROS + micros) / _MICROS  # rounded only once
        case _:
            return None


def _parse_failure(message: Mapping[str, object]) -> Failure:
    match message["error"]:
        case {"class": str(error_class), "desc": str(desc)}:
            return Failure(error_class, desc, message.get("id"))
        case _:
            raise _make_error("an error without class and desc", message)


def _parse_greeting(message: Mapping[str, object]) -> Greeting:
    body = _require_object(message["QMP"], "a greeting that is no object")
    offered = body.get("capabilities", [])
    if not isinstance(offered, list):
        raise _make_error("capabilities that are no array", message)
    # Only names can be enabled. Capabilities of old versions could be objects.
    names = [
        name for name in cast("Sequence[object]", offered) if isinstance(name, str)
    ]
    return Greeting(parse_version(body.get("version")), tuple(names))


def parse_version(value: object) -> Version | None:
    """Return the version in a greeting, or in what ``query-version`` returns.

    Args:
        value: The decoded JSON.

    Returns:
        The version; ``None`` if there is none that can be read.
    """
    match value:
        case {"qemu": {"major": int(major), "minor": int(minor), "micro": int(micro)}}:
            package = cast("Mapping[str, object]", value).get("package", "")
            return Version(major, minor, micro, str(package))
        case _:
            return None


def _require_object(value: object, problem: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise _make_error(problem, value)
    return cast("Mapping[str, object]", value)


def _make_error(problem: str, value: object) -> ProtocolError:
    return ProtocolError(f"the peer does not speak QMP: {problem}: {value!r:.80}")
