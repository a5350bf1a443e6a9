"""What a simulated VM is like: its command line, its guest, its processes.

Sizes are in bytes and times in nanoseconds. Times that a guest is concerned with are on
the guest's clock, which stands still while the VM is paused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from attrs import field, frozen
from attrs.validators import and_, ge, gt, in_, lt, optional

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "SECOND",
    "FileReads",
    "GuestConfig",
    "MachineConfig",
    "WorkloadStep",
    "ramp",
]

SECOND: Final = 1_000_000_000
"""Nanoseconds in a second."""

_BALLOONS: Final = (
    "virtio-balloon-pci",
    "virtio-balloon-pci-transitional",
    "virtio-balloon-pci-non-transitional",
    "virtio-balloon-device",
)


@frozen
class WorkloadStep:
    """One change in what a guest's processes use.

    Attributes:
        at: When, in nanoseconds of the guest's clock since the machine started.
        delta: Bytes that they ask for or, if negative, give up. They never give up
            more than they asked for before.
        kind: ``"anonymous"`` for memory of their own; ``"cache"`` for files that they
            read or, if ``delta`` is negative, delete.
    """

    at: int = field(validator=ge(0))
    delta: int
    kind: Literal["anonymous", "cache"] = field(
        default="anonymous", validator=in_(("anonymous", "cache"))
    )


def ramp(start: int, stop: int, size: int, steps: int = 16) -> tuple[WorkloadStep, ...]:
    """Return steps that ask for memory evenly between two times.

    Args:
        start: Time of the first step, in nanoseconds of the guest's clock.
        stop: All steps come before this time.
        size: Bytes in all; negative to give them up.
        steps: Number of steps.
    """
    return tuple(
        WorkloadStep(
            start + (stop - start) * i // steps,
            size * (i + 1) // steps - size * i // steps,
        )
        for i in range(steps)
    )


@frozen
class FileReads:
    """Files that a guest's processes read, from a time on.

    What is in the page cache is read from there, and the rest from the VM's first disk.

    Attributes:
        kind: ``"loop"``: all of them from beginning to end, again and again.
            ``"zipf"``: pages at random, the second most wanted half as often as the
            first, the third a third as often, and so on. ``"stream"``: each page once,
            as a backup does.
        size: Bytes of the files; a stream has no end.
        rate: Bytes a second that the processes read.
        begin: Nanoseconds of the guest's clock. Files that are read from 0 on are in
            the cache at the start, as far as it is large enough.
        end: From then on they are not read; ``None``: it goes on.
    """

    kind: Literal["loop", "zipf", "stream"] = field(
        validator=in_(("loop", "zipf", "stream"))
    )
    size: int = field(validator=gt(0))
    rate: int = field(validator=gt(0))
    begin: int = field(default=0, validator=ge(0))
    end: int | None = field(default=None, validator=optional(ge(0)))


@frozen
class GuestConfig:
    """What runs in a VM. Sizes in bytes, times in nanoseconds of the guest's clock.

    Attributes:
        used: Memory in use by processes and the kernel, beyond the 2 % of RAM that the
            kernel takes for itself.
        cache: Page cache at the start.
        pinned: The part of the cache that cannot be dropped.
        driver: Whether the guest has a balloon driver.
        boot_time: From reset until the driver is ready.
        inflate_rate: Bytes a second while there are free pages.
        reclaim_rate: Bytes a second while cache has to be dropped.
        deflate_rate: Bytes a second.
        swap: Bytes of swap space. A guest with swap space continues to inflate when its
            cache is gone.
        swap_rate: Bytes a second while processes' memory is swapped out, and while it
            is read back.
        refaults: Percent of what is swapped out that its processes read back at once:
            0 for idle processes.
        stats_delay: How long it takes to answer a request for statistics; ``None``: it
            never answers.
        silent_after: From then on it answers no request for statistics; ``None``: it
            always does.
        frozen_after: From then on it repeats the statistics of that time; ``None``: it
            always tells the current ones.
        claims: Statistics that it tells instead of the true ones, by their QEMU names
            without ``stat-``. It leaves out those that are ``None``.
        extended_stats: It tells the statistics that Linux 6.12 added.
        panic_after: It panics after so long without memory, with a balloon that wants
            more and may not deflate, as Linux 6.1 does; ``None``: it does not panic.
        workload: What its processes do, in order of time.
        files: Files that they read.
        disk_rate: Bytes a second that are read from its disks at most.
    """

    used: int = field(default=123 << 20, validator=ge(0))
    cache: int = field(default=1 << 30, validator=ge(0))
    pinned: int = field(default=24 << 20, validator=ge(0))
    driver: bool = True
    boot_time: int = field(default=5 * SECOND // 2, validator=ge(0))
    inflate_rate: int = field(default=1 << 30, validator=gt(0))
    reclaim_rate: int = field(default=1 << 29, validator=gt(0))
    deflate_rate: int = field(default=2 << 30, validator=gt(0))
    swap: int = field(default=0, validator=ge(0))
    swap_rate: int = field(default=100 << 20, validator=gt(0))
    refaults: int = field(default=0, validator=and_(ge(0), lt(100)))
    stats_delay: int | None = 1_000_000
    silent_after: int | None = field(default=None, validator=optional(ge(0)))
    frozen_after: int | None = field(default=None, validator=optional(ge(0)))
    claims: Mapping[str, int | None] = field(
        factory=dict[str, "int | None"], hash=False
    )
    extended_stats: bool = True
    panic_after: int | None = field(default=None, validator=optional(ge(0)))
    workload: tuple[WorkloadStep, ...] = ()
    files: tuple[FileReads, ...] = ()
    disk_rate: int = field(default=400 << 20, validator=gt(0))


def _check_balloon(_: object, __: object, value: str | None) -> None:
    if value is not None and value not in _BALLOONS:
        raise ValueError(f"balloon is {value!r}: there are {', '.join(_BALLOONS)}")


@frozen
class MachineConfig:
    """A VM's command line, and its guest. Sizes in bytes, times in nanoseconds.

    Attributes:
        memory: RAM at the start.
        slots: Slots for DIMMs that are plugged in later.
        max_memory: RAM with all DIMMs; 0: none can be plugged in.
        balloon: The balloon device's type: virtio-balloon-device, as on a microvm, or
            virtio-balloon-pci, -pci-transitional or -pci-non-transitional. ``None``:
            there is no balloon.
        balloon_id: The balloon device's id; ``None``: it has none.
        deflate_on_oom: The device's property of that name.
        free_page_reporting: The device's property of that name.
        page_poison: The device's property of that name.
        disks: Disks of the VM, all with a medium. They show in block statistics
            only. The guest reads from the first.
        paused: Started with ``-S``: the guest waits for ``cont``.
        name: The VM's name.
        uuid: The VM's UUID.
        pid: QEMU's process id. Its first CPU's thread has the next number.
        epoch: The wall clock's time at the start, in nanoseconds since 1970.
        reply_delay: How long QEMU takes to answer a request.
        shows: Statistics that QEMU shows instead of what the guest told, by their QEMU
            names without ``stat-``: any JSON values, as of a QEMU that is broken or
            hostile. It does so in every other second.
        guest: What runs in the VM.
    """

    memory: int = field(default=2 << 30, validator=gt(0))
    slots: int = field(default=0, validator=ge(0))
    max_memory: int = field(default=0, validator=ge(0))
    balloon: str | None = field(default="virtio-balloon-pci", validator=_check_balloon)
    balloon_id: str | None = "balloon0"
    deflate_on_oom: bool = False
    free_page_reporting: bool = False
    page_poison: bool = True
    disks: int = field(default=0, validator=ge(0))
    paused: bool = False
    name: str | None = None
    uuid: str = "00000000-0000-0000-0000-000000000000"
    pid: int = field(default=4000, validator=gt(0))
    epoch: int = field(default=1_750_000_000 * SECOND, validator=ge(0))
    reply_delay: int = field(default=0, validator=ge(0))
    shows: Mapping[str, object] = field(factory=dict[str, object], hash=False)
    guest: GuestConfig = field(factory=GuestConfig)
