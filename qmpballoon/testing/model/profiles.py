"""What each QEMU version answers, word for word.

A profile is data. Most of it was read from a running QEMU and is in ``data/``: the
greeting, the commands, the objects with their properties, values and errors. This
module adds what cannot be read from QEMU: the differences in words and behaviour.

=======  ==============================================================
7.2      measured on 7.2.22
8.2      measured on 8.2.2, except for ``answers``: those that 7.2 and 10.0
         have in common
9.2      not measured: 10.0's objects, commands and words, with the
         differences that QEMU's change log names, and ``answers`` as 8.2's
10.0     measured on 10.0.13
11.1     measured on 11.1.3
=======  ==============================================================
"""

from __future__ import annotations

import functools
import gzip
import json
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from attrs import evolve, field, frozen

from qmpballoon.testing.model.parser import Grammar

if TYPE_CHECKING:
    from qmpballoon.testing.model.qobject import Value

__all__ = ["LONG_ANSWERS_OF", "PROFILES", "Profile", "load_long_answers", "profile"]

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
        grammar: The JSON parser's errors, and when it reports them.
        size_parameter: The name of ``balloon``'s argument in the error that refuses a
            size that is not positive.
        element_name: The name of an unknown capability's place in the error that
            refuses it.
        stat_names: The statistics that it knows, without ``stat-``.
        singlestep: ``query-status`` has a member of that name.
        zones: ``query-blockstats`` counts what is appended to zones of disks.
        reset_clears_stats: A machine reset clears the last statistics.
        busy_memory: The error of ``object-del`` for memory that a DIMM is made of.
        devices_are_options: ``device_add`` turns values into options, which are text.
        bad_device_id: The error of ``device_add`` for a malformed id; empty: it takes
            any id, or refuses it as an option.
        not_a_device: The error of ``device_del`` for an object that is no device.
        full_bus_is_found: ``device_add`` has different errors for a bus that is full
            and for one that does not exist.
        binary_numbers: The human monitor reads numbers such as ``0b101``.
        cpu_type_shown: ``query-cpus-fast`` has a member ``qom-type``.
        no_virtio_is_an_error: ``x-query-virtio`` fails if there is no device.
        virtio_device_words: What ``x-query-virtio-status`` calls the device that it
            does not find.
        virtio_status_aborts: ``x-query-virtio-status`` ends QEMU by a failed assertion,
            as on 11.1.3.
        names_ring_reset: It has a name for the feature ``VIRTIO_F_RING_RESET``.
        unknown_virtio_features: The offered features that it has no names for, as bits.
        has_monitor_objects: Monitors are objects, and can be added while it runs.
        greeting: The ``QMP`` member of its greeting.
        commands: All its commands, in its own order.
        types: The answer of ``qom-list-types`` for the types of balloons and DIMMs.
        properties: The answers of ``qom-list-properties`` and
            ``device-list-properties``, by type.
        objects: The properties of its objects, by the object's type or path.
        answers: What it answers to queries that have nothing to do with ballooning, by
            command: an object with ``return`` or with ``error``.
    """

    version: str
    grammar: Grammar
    size_parameter: str
    element_name: str
    stat_names: tuple[str, ...]
    singlestep: bool
    zones: bool
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
    has_monitor_objects: bool
    greeting: dict[str, Value] = field(repr=False)
    commands: tuple[str, ...] = field(repr=False)
    types: tuple[dict[str, Value], ...] = field(repr=False)
    properties: dict[str, dict[str, list[dict[str, Value]]]] = field(repr=False)
    objects: dict[str, list[dict[str, Value]]] = field(repr=False)
    answers: dict[str, dict[str, Any]] = field(repr=False)


def _load_measured(version: str) -> dict[str, Any]:
    """Return what was read from a QEMU of a version."""
    file = resources.files("qmpballoon.testing.model") / "data" / f"qemu-{version}.json"
    data = _read_measured(file.read_bytes())
    return {**data, "commands": tuple(data["commands"]), "types": tuple(data["types"])}


def _read_measured(content: bytes) -> dict[str, Any]:
    # QEMU writes members that share a bucket newest first. Reversed, they are in the
    # order of insertion again.
    data: dict[str, Any] = json.loads(
        content, object_pairs_hook=lambda pairs: dict(reversed(pairs))
    )
    return data


LONG_ANSWERS_OF: Final = frozenset({"7.2", "10.0", "11.1"})
"""The versions that were run, so that their long answers are known."""


@functools.cache
def load_long_answers(version: str) -> dict[str, dict[str, Any]]:
    """Return what a version answers to the queries with long answers.

    They are some hundred kilobytes: read only when one of them is asked for.

    Args:
        version: One of :data:`LONG_ANSWERS_OF`.

    Returns:
        The answers as :attr:`Profile.answers` has them.
    """
    data = resources.files("qmpballoon.testing.model") / "data"
    content = (data / f"qemu-{version}-long.json.gz").read_bytes()
    return _read_measured(gzip.decompress(content))


def _infer_answers() -> dict[str, dict[str, Any]]:
    """Return the answers of a version between 7.2 and 10.0 that was not recorded.

    They are those that these two have in common.
    """
    before, after = profile("7.2").answers, profile("10.0").answers
    return {name: each for name, each in before.items() if after.get(name) == each}


def _make_7_2() -> Profile:
    return Profile(
        version="7.2",
        grammar=_GRAMMAR,
        size_parameter="target",
        element_name="null",
        stat_names=_STATS,
        singlestep=True,
        zones=False,
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
        has_monitor_objects=False,
        **_load_measured("7.2"),
    )


def _make_8_2() -> Profile:
    return evolve(
        profile("10.0"),
        version="8.2",
        stat_names=_STATS,
        singlestep=True,
        devices_are_options=True,
        not_a_device="{} is not a hotpluggable device",
        binary_numbers=False,
        reset_clears_stats=False,
        answers=_infer_answers(),
        **_load_measured("8.2"),
    )


def _make_9_2() -> Profile:
    return evolve(
        profile("10.0"),
        version="9.2",
        reset_clears_stats=False,
        answers=_infer_answers(),
        greeting={
            "version": {"qemu": {"micro": 0, "minor": 2, "major": 9}, "package": ""},
            "capabilities": ["oob"],
        },
    )


def _make_10_0() -> Profile:
    return Profile(
        version="10.0",
        grammar=_GRAMMAR,
        size_parameter="value",
        element_name="null",
        stat_names=_STATS_9_2,
        singlestep=False,
        zones=True,
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
        has_monitor_objects=False,
        **_load_measured("10.0"),
    )


def _make_11_1() -> Profile:
    return evolve(
        profile("10.0"),
        version="11.1",
        grammar=_GRAMMAR_11,
        busy_memory="Cannot delete host memory backend '{}' which is mapped",
        bad_device_id="Invalid qdev ID '{}'",
        full_bus_is_found=True,
        cpu_type_shown=True,
        virtio_status_aborts=True,
        has_monitor_objects=True,
        **_load_measured("11.1"),
    )


_MAKERS: Final = {
    "7.2": _make_7_2,
    "8.2": _make_8_2,
    "9.2": _make_9_2,
    "10.0": _make_10_0,
    "11.1": _make_11_1,
}

PROFILES: Final = tuple(_MAKERS)
"""The versions that have a profile, oldest first."""


@functools.cache
def profile(version: str) -> Profile:
    """Return a version's profile. Callers share it and must not change it.

    Args:
        version: One of :data:`PROFILES`.

    Raises:
        ValueError: There is no profile of that version.
    """
    if version not in _MAKERS:
        raise ValueError(
            f"no profile of QEMU {version!r}; there are {', '.join(PROFILES)}"
        )
    return _MAKERS[version]()
