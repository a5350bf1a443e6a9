"""What each QEMU version says, word for word.

A profile is data. Most of it was asked of a running QEMU and lies in ``data/``:
the greeting, the commands, the objects with their properties, values and refusals.
What follows here is what cannot be asked for: the words and habits that differ.

=======  ==============================================================
7.2      measured on 7.2.22
8.2      measured on 8.2.2
9.2      not measured: 10.0's objects, commands and words, with the
         difference that QEMU's change log names
10.0     measured on 10.0.13
11.1     measured on 11.1.3
=======  ==============================================================
"""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from attrs import evolve, field, frozen

from qmpballoon.testing.model.parser import Grammar

if TYPE_CHECKING:
    from qmpballoon.testing.model.qobject import Value

__all__ = ["PROFILES", "Profile", "profile"]

_STATS: Final = (
    "swap-in",
    "swap-out",
    "major-faults",
    "minor-faults",
    "free-memory",
    "total-memory",
    "available-memory",
    "disk-caches",
    "htlb-pgalloc",
    "htlb-pgfail",
)
_STATS_9_2: Final = (
    *_STATS,
    "oom-kills",
    "alloc-stalls",
    "async-scans",
    "direct-scans",
    "async-reclaims",
    "direct-reclaims",
)

_GRAMMAR: Final = Grammar(
    eager=False,
    key=None,
    key_type="key is not a string in object",
    colon="missing : in object pair",
    in_object="expected separator in dict",
    in_array="expected separator in list",
)
_GRAMMAR_11: Final = Grammar(
    eager=True,
    key="expecting key",
    key_type="expecting key",
    colon="expecting ':'",
    in_object="expected ',' or '}'",
    in_array="expected ',' or ']'",
)


@frozen
class Profile:
    """One QEMU version.

    Attributes:
        version: As in ``"7.2"``.
        grammar: How it reads JSON.
        size_parameter: What it calls the argument of ``balloon`` when it refuses
            one that is not positive.
        element_name: What it calls the enabled capability that it does not know.
        stat_names: The statistics it knows, without ``stat-``.
        singlestep: ``query-status`` has a member of that name.
        reset_clears_stats: A machine reset forgets the last statistics.
        busy_memory: How ``object-del`` refuses memory that a DIMM is made of.
        devices_are_options: ``device_add`` turns values into options, which are text.
        bad_device_id: How ``device_add`` refuses an id that is none; empty: it takes
            any, or refuses it as an option.
        not_a_device: How ``device_del`` refuses another object.
        full_bus_is_found: ``device_add`` tells a bus that is full from none at all.
        binary_numbers: The human monitor reads numbers such as 0b101.
        cpu_type_shown: ``query-cpus-fast`` has a member ``qom-type``.
        no_virtio_is_an_error: ``x-query-virtio`` fails where there is no device.
        virtio_device_words: What ``x-query-virtio-status`` misses at a wrong path.
        virtio_status_aborts: ``x-query-virtio-status`` ends QEMU by a failed
            assertion, as it does on 11.1.3.
        names_ring_reset: It knows the feature of that name by its name.
        unknown_virtio_features: The offered features that it has no names for.
        greeting: The ``QMP`` member of its greeting.
        commands: Every command it has, in its own order.
        types: What ``qom-list-types`` says of the types that ballooning is about.
        properties: What the two commands that list properties say of a type.
        objects: The properties of its objects, by the object's type or path.
    """

    version: str
    grammar: Grammar
    size_parameter: str
    element_name: str
    stat_names: tuple[str, ...]
    singlestep: bool
    reset_clears_stats: bool
    busy_memory: str
    devices_are_options: bool
    bad_device_id: str
    not_a_device: str
    full_bus_is_found: bool
    binary_numbers: bool
    cpu_type_shown: bool
    no_virtio_is_an_error: bool
    virtio_device_words: str
    virtio_status_aborts: bool
    names_ring_reset: bool
    unknown_virtio_features: int
    greeting: dict[str, Value] = field(repr=False)
    commands: tuple[str, ...] = field(repr=False)
    types: tuple[dict[str, Value], ...] = field(repr=False)
    properties: dict[str, dict[str, list[dict[str, Value]]]] = field(repr=False)
    objects: dict[str, list[dict[str, Value]]] = field(repr=False)


def _measured(version: str) -> dict[str, Any]:
    """Return what was asked of a QEMU of that version."""
    file = resources.files("qmpballoon.testing.model") / "data" / f"qemu-{version}.json"
    # Members that share a bucket come out youngest first, so they were put in the
    # other way round.
    data: dict[str, Any] = json.loads(
        file.read_text(encoding="utf-8"),
        object_pairs_hook=lambda pairs: dict(reversed(pairs)),
    )
    return {**data, "commands": tuple(data["commands"]), "types": tuple(data["types"])}


def _qemu_7_2() -> Profile:
    return Profile(
        version="7.2",
        grammar=_GRAMMAR,
        size_parameter="target",
        element_name="null",
        stat_names=_STATS,
        singlestep=True,
        reset_clears_stats=False,
        busy_memory="object '{}' is in use, can not be deleted",
        devices_are_options=True,
        bad_device_id="",
        not_a_device="{} is not a hotpluggable device",
        full_bus_is_found=False,
        binary_numbers=False,
        cpu_type_shown=False,
        no_virtio_is_an_error=False,
        virtio_device_words="VirtIODevice",
        virtio_status_aborts=False,
        names_ring_reset=False,
        unknown_virtio_features=1 << 40 | 1 << 30,
        **_measured("7.2"),
    )


def _qemu_8_2() -> Profile:
    return evolve(
        profile("10.0"),
        version="8.2",
        stat_names=_STATS,
        singlestep=True,
        devices_are_options=True,
        not_a_device="{} is not a hotpluggable device",
        binary_numbers=False,
        reset_clears_stats=False,
        **_measured("8.2"),
    )


def _qemu_9_2() -> Profile:
    return evolve(
        profile("10.0"),
        version="9.2",
        reset_clears_stats=False,
        greeting={
            "version": {"qemu": {"micro": 0, "minor": 2, "major": 9}, "package": ""},
            "capabilities": ["oob"],
        },
    )


def _qemu_10_0() -> Profile:
    return Profile(
        version="10.0",
        grammar=_GRAMMAR,
        size_parameter="value",
        element_name="null",
        stat_names=_STATS_9_2,
        singlestep=False,
        reset_clears_stats=True,
        busy_memory="object '{}' is in use, can not be deleted",
        devices_are_options=False,
        bad_device_id="",
        not_a_device="{} is not a device",
        full_bus_is_found=False,
        binary_numbers=True,
        cpu_type_shown=False,
        no_virtio_is_an_error=True,
        virtio_device_words="realized VirtIODevice",
        virtio_status_aborts=False,
        names_ring_reset=True,
        unknown_virtio_features=1 << 30,
        **_measured("10.0"),
    )


def _qemu_11_1() -> Profile:
    return evolve(
        profile("10.0"),
        version="11.1",
        grammar=_GRAMMAR_11,
        busy_memory="Cannot delete host memory backend '{}' which is mapped",
        bad_device_id="Invalid qdev ID '{}'",
        full_bus_is_found=True,
        cpu_type_shown=True,
        virtio_status_aborts=True,
        **_measured("11.1"),
    )


_MAKERS: Final = {
    "7.2": _qemu_7_2,
    "8.2": _qemu_8_2,
    "9.2": _qemu_9_2,
    "10.0": _qemu_10_0,
    "11.1": _qemu_11_1,
}

PROFILES: Final = tuple(_MAKERS)
"""The versions that there are profiles of, oldest first."""


@functools.cache
def profile(version: str) -> Profile:
    """Return a version's profile; it is shared, and not to be changed.

    Args:
        version: One of :data:`PROFILES`.

    Raises:
        ValueError: There is none.
    """
    if version not in _MAKERS:
        raise ValueError(
            f"no profile of QEMU {version!r}; there are {', '.join(PROFILES)}"
        )
    return _MAKERS[version]()
