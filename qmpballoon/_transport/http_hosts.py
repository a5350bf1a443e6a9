"""Which requests our HTTP servers answer, by the host name in them.

Otherwise a web page in a browser could read a server on the browser's own machine,
through a name of the page's that points to this machine (DNS rebinding).
"""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

__all__ = ["KnownHosts", "is_loopback"]


@frozen
class KnownHosts:
    """The hosts that requests may be for.

    Attributes:
        names: The names, in lower case and without a final dot.
        is_local: Whether only this machine can connect. Then an address is known only
            if it is a loopback address.
    """

    names: frozenset[str]
    is_local: bool

    @classmethod
    def of(cls, listens_on: str, others: Iterable[str] = ()) -> Self:
        """Return the hosts that a server which listens on an address should know.

        Args:
            listens_on: The address, or a name of it.
            others: Names under which the server can be reached besides ``localhost``
                and the machine's name.
        """
        known = (listens_on, "localhost", socket.gethostname(), *others)
        names = frozenset(name.lower().rstrip(".") for name in known)
        return cls(names, is_loopback(listens_on))

    def has(self, host: str) -> bool:
        """Tell whether a request is for one of them.

        Args:
            host: The request's header ``Host``: a name or an address, and maybe a port.
        """
        name = host.lower()
        bare = name[1:].partition("]")[0] if name[:1] == "[" else name.partition(":")[0]
        if bare.rstrip(".") in self.names:
            return True
        try:
            address = ip_address(bare)
        except ValueError:
            return False
        # No name that somebody else controls is an address.
        return address.is_loopback or not self.is_local


def is_loopback(host: str) -> bool:
    """Tell whether an address or a name is that of the loopback interface."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
