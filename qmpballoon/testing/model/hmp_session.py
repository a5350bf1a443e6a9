"""A client of a human monitor that was added on a character device.

It is greeted as by QEMU. Nothing that it types is echoed or carried out: each line is
answered by one that says so. QMP's ``human-monitor-command`` carries out what is
simulated of the human monitor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import define, field

from qmpballoon.testing.model.hmp import format_version

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qmpballoon.testing.model.chardevs import Descriptor, HmpMonitor
    from qmpballoon.testing.model.profiles import Profile
    from qmpballoon.testing.model.qobject import Value

__all__ = ["HmpSession"]

_PROMPT: Final = b"(qemu) "
_REFUSAL: Final = (
    b"The simulated QEMU carries out no commands here; use human-monitor-command\r\n"
)
_CORRUPTED: Final = b"corrupted command\r\n"


@define(eq=False)
class HmpSession:
    """A client's connection, as QEMU sees it.

    Attributes:
        monitor: The monitor that it is on.
        closed: QEMU has closed the connection. The output may still be read.
        reading: QEMU reads on.
        due: When it next has output by itself, which is never.
    """

    monitor: HmpMonitor
    _profile: Profile
    closed: bool = field(init=False, default=False)
    reading: bool = field(init=False, default=True)
    due: None = field(init=False, default=None)
    _typed: bool = field(init=False, default=False)
    _output: bytearray = field(init=False, factory=bytearray)

    def __attrs_post_init__(self) -> None:
        version = format_version(self._profile)
        greeting = f"QEMU {version} monitor - type 'help' for more information\r\n"
        self._output += greeting.encode("ascii")
        if self.monitor.readline:
            self._output += _PROMPT

    def receive(self, data: bytes, descriptors: Sequence[Descriptor] = ()) -> None:
        """Take bytes from the client.

        Args:
            data: The bytes.
            descriptors: The file descriptors that came with them.
        """
        if descriptors:
            self.monitor.receive(descriptors)
        if self.closed:
            return
        if self.monitor.readline:
            for byte in data:
                self._type(byte)
        else:
            # QEMU reads single bytes, and takes each for a command without its end.
            self._output += _CORRUPTED * (len(data) - data.count(b"\0"))

    def _type(self, byte: int) -> None:
        """Take one byte of a line. A line ends with either of CR and LF."""
        if byte not in b"\r\n":
            self._typed = True
            return
        self._output += b"\r\n" + (_REFUSAL if self._typed else b"") + _PROMPT
        self._typed = False

    def take_output(self) -> bytes:
        """Return the bytes for the client since the last call."""
        data = bytes(self._output)
        self._output.clear()
        return data

    def send_event(self, event: dict[str, Value]) -> None:
        """Do nothing: events are QMP's."""

    def run(self) -> None:
        """Do nothing: all that came was answered at once."""
