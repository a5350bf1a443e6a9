"""Character devices, and the monitors that QEMU has on them.

A client can hand QEMU one end of a connection as a file descriptor: the command
``getfd`` names it, ``chardev-add`` makes a character device of it, and from 11.1 on
``object-add`` puts a further monitor on that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["SHARED", "Chardev", "Descriptor", "HmpMonitor", "Monitor", "QmpMonitor"]

SHARED: Final = "compat_monitor0"
"""The name that QEMU gives to the monitor of ``-qmp``, and to its character device."""


class Descriptor(Protocol):
    """A file descriptor that a client has handed over."""

    @property
    def is_socket(self) -> bool:
        """Whether it is that of a socket."""
        ...

    @property
    def is_connected(self) -> bool:
        """Whether the other end of the connection is open."""
        ...

    def close(self) -> None:
        """Close it. Later calls do nothing."""
        ...


@define(eq=False)
class Chardev:
    """A character device.

    Attributes:
        name: Its id.
        type: Its object's type, ``chardev-socket`` or ``chardev-null``.
        file: The name that its descriptor had.
        descriptor: The descriptor that it is made of; ``None``: it has none, as that
            of the shared monitor.
        is_busy: Whether a monitor is on it.
        is_served: Whether that monitor has a client, as far as QEMU has noticed.
    """

    name: str
    type: str
    file: str = ""
    descriptor: Descriptor | None = None
    is_busy: bool = False
    is_served: bool = False

    def close(self) -> None:
        """Close its descriptor."""
        if self.descriptor is not None:
            self.descriptor.close()


@define(eq=False)
class Monitor:
    """One monitor of QEMU. Several clients may use it, one after the other.

    Attributes:
        name: The name of its object.
        chardev: The name of its character device.
        files: The descriptors that clients have named. They outlive the client.
    """

    name: str
    chardev: str
    files: dict[str, Descriptor] = field(init=False, factory=dict[str, Descriptor])
    _received: list[Descriptor] = field(init=False, factory=list[Descriptor])

    def receive(self, descriptors: Iterable[Descriptor]) -> None:
        """Take descriptors that came with a client's bytes, in place of older ones."""
        self.drop_received()
        self._received = list(descriptors)

    def take_received(self) -> Descriptor | None:
        """Return the first descriptor that came, and close the others."""
        if not self._received:
            return None
        first = self._received.pop(0)
        self.drop_received()
        return first

    def drop_received(self) -> None:
        """Close the descriptors that no command has taken."""
        for each in self._received:
            each.close()
        self._received.clear()

    def name_file(self, name: str, descriptor: Descriptor) -> None:
        """Keep a descriptor under a name, in place of an older one of that name."""
        self.close_file(name)
        self.files[name] = descriptor

    def close_file(self, name: str) -> bool:
        """Close the descriptor of a name; return whether there is one."""
        found = self.files.pop(name, None)
        if found is not None:
            found.close()
        return found is not None

    def close(self) -> None:
        """Close all its descriptors."""
        self.drop_received()
        for name in list(self.files):
            self.close_file(name)


@define(eq=False)
class QmpMonitor(Monitor):
    """A monitor whose clients speak QMP.

    Attributes:
        close_action: What becomes of it when its client leaves: ``none``, or
            ``delete``, and its character device goes with it.
    """

    close_action: str = "none"


@define(eq=False)
class HmpMonitor(Monitor):
    """A human monitor. QEMU never removes one.

    Attributes:
        readline: Whether a line can be edited before it is carried out. Without that,
            a client has to send commands in a way that no character device can.
    """

    readline: bool = True
