"""What hosts and operators of a cluster need from the server between them.

A bus keeps small values under keys, and nothing else: no streams, no subscriptions, no
locks. Once a second, each host reads what concerns it, and publishes its state again.
So a server that was away, was emptied or fell back to an older copy needs no recovery:
a second later it has the states of all hosts again, and they have read what it has for
them. The bus decides nothing.

The keys tell who may write them, so that a server's access rules can name keys:

* ``qb:host:NAME:state`` and ``qb:host:NAME:vms`` are written by the host NAME only. The
  values expire if the host does not publish them again.
* ``qb:policy``, ``qb:job`` and ``qb:quota:NAME`` are written by operators only.

Hosts read ``qb:policy`` and their own quota. Operators and viewers read everything.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "HOSTS_PREFIX",
    "JOB_KEY",
    "LARGEST_VALUE",
    "LONGEST_JOB",
    "MOST_HOSTS",
    "POLICY_KEY",
    "PRESENCE",
    "Bus",
    "find_host",
    "make_quota_key",
    "make_state_key",
    "make_vms_key",
    "require_host_name",
]

LARGEST_VALUE: Final = 1 << 20
"""Bytes of a value at most. A job for 10,000 hosts, or the state of 4,000 VMs, has half
of that. A larger value is not one of ours."""
MOST_HOSTS: Final = 10_000
"""Hosts of a cluster at most: as many as fit into a job."""

PRESENCE: Final = 10.0
"""Seconds for which a host's state is kept. This is longer than a server's restart
usually takes, and short enough that a host that is gone soon vanishes from the view."""

LONGEST_JOB: Final = 7 * 86400.0
"""Seconds. Use a policy for anything longer."""

POLICY_KEY: Final = "qb:policy"
JOB_KEY: Final = "qb:job"
HOSTS_PREFIX: Final = "qb:host:"
_STATE: Final = ":state"
# No colon, so that no host's keys are a prefix of another's; and nothing that has a
# meaning in a glob or in a server's access rules.
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Bus(Protocol):
    """A server that keeps values under keys.

    Every call raises :exc:`~qmpballoon.errors.BusError` if the server cannot be asked,
    does not answer in time, or refuses. A change may or may not have been made then.
    A call that is cancelled leaves the bus usable. Calls may run at the same time.
    """

    async def get(self, keys: Sequence[str], /) -> dict[str, bytes]:
        """Return the values of those keys that exist.

        A value of more than :data:`LARGEST_VALUE` bytes, or of another type than a
        string, is returned as empty (``b""``), which is never a value of ours. There is
        no limit on the number of keys.
        """
        ...

    async def list_keys(self, prefix: str, /) -> list[str]:
        """Return the keys that begin with a prefix, in any order.

        Raises:
            BusError: There are more than four for each of :data:`MOST_HOSTS`, too.
        """
        ...

    async def publish(self, values: Mapping[str, bytes], /, *, expires: float) -> None:
        """Set values that expire.

        Args:
            values: The values by their keys.
            expires: The seconds after which they expire, above 0.
        """
        ...

    async def compare_and_set(
        self,
        key: str,
        expected: bytes | None,
        value: bytes,
        /,
        *,
        expires: float | None = None,
    ) -> bool:
        """Set a value if the present one is as expected, in one step.

        Args:
            key: The key.
            expected: The value that it has to have; ``None``: none. As for :meth:`get`,
                one that is too large counts as empty.
            value: The new value.
            expires: The seconds after which it vanishes; ``None``: it stays.

        Returns:
            Whether it was set.
        """
        ...


def require_host_name(name: str) -> str:
    """Return a host's name if it is one.

    Raises:
        ValueError: It is none.
    """
    if not _HOST_NAME.fullmatch(name):
        raise ValueError(
            f"the host's name is {name!r:.80}: use 1 to 64 letters, digits, '.', '_'"
            " and '-', with a letter or a digit first"
        )
    return name


def make_state_key(host: str) -> str:
    """Return the key under which a host says how it is."""
    return f"{HOSTS_PREFIX}{host}{_STATE}"


def make_vms_key(host: str) -> str:
    """Return the key under which a host says how its VMs are."""
    return f"{HOSTS_PREFIX}{host}:vms"


def make_quota_key(host: str) -> str:
    """Return the key under which a host finds what it is asked to give."""
    return f"qb:quota:{host}"


def find_host(key: str) -> str | None:
    """Return the host whose state is under a key; ``None`` if it is another key."""
    if not (key.startswith(HOSTS_PREFIX) and key.endswith(_STATE)):
        return None
    name = key[len(HOSTS_PREFIX) : -len(_STATE)]
    return name if _HOST_NAME.fullmatch(name) else None
