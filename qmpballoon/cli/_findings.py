"""What stands in the way of a reclaim: pure rules, from facts about a VM to findings.

:mod:`qmpballoon.cli._facts` gathers the facts. Each rule examines them and returns a
:class:`Finding`, or ``None``. ``_WEIGHTS`` lists the kinds, the most serious first;
docs/reference/doctor.md, from which a man page is made, has a section for each.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final, Literal

from attrs import field, frozen

from qmpballoon._printable import make_printable
from qmpballoon.balloon.device import describe_small, explain_status, lacks_ram
from qmpballoon.balloon.results import OVERRIDDEN, describe_holder
from qmpballoon.balloon.stats import GuestStats
from qmpballoon.cli.render.summary import describe_owed
from qmpballoon.fleet.vm_view import NO_STATISTICS
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = [
    "KINDS",
    "Backend",
    "Facts",
    "Finding",
    "HostFacts",
    "Severity",
    "find_findings",
    "is_about_monitor",
    "make_finding",
    "sort_findings",
    "went_both_ways",
]

Severity = Literal["error", "warning", "note"]
"""How much a finding weighs: a reclaim gets nothing; it gets less, or is a risk; it is
good to know."""

_WEIGHTS: Final[dict[str, Severity]] = {
    # The monitor
    "monitor-missing": "error",
    "monitor-shared": "error",
    "qemu-stopped": "error",
    "monitor-busy": "error",
    "monitor-unreachable": "error",
    # What only another start of the VM changes
    "no-balloon": "error",
    "balloon-unavailable": "error",
    "vfio": "error",
    "vhost-vdpa": "error",
    "locked-memory": "error",
    "huge-pages": "error",
    # The VM's state, and its guest's
    "preconfig": "error",
    "never-started": "error",
    "waits-for-migration": "error",
    "not-running": "error",
    "no-driver": "error",
    "no-statistics": "error",
    "guest-silent": "error",
    "nonsense": "error",
    # What makes a reclaim smaller, or a risk
    "two-managers": "warning",
    "moved-by-others": "warning",
    "migrating": "warning",
    "held": "warning",
    "owed": "warning",
    "private-file": "warning",
    "cgroup-limit": "warning",
    "no-available": "warning",
    "page-poison": "warning",
    # What is good to know
    "only-monitor": "note",
    "managed": "note",
    "polled-by-others": "note",
    "ballooned": "note",
    "virtio-mem": "note",
    "resident-unknown": "note",
    "few-statistics": "note",
    "shared-memory": "note",
    "vhost-user": "note",
    "deflate-on-oom": "note",
    "free-page-reporting": "note",
}
KINDS: Final = tuple(_WEIGHTS)
"""All kinds of findings, the heaviest first."""

_ABOUT_MONITOR: Final = frozenset(KINDS[: KINDS.index("no-balloon")])
# States of an outgoing migration that is over: MigrationStatus in the QAPI reference.
_MIGRATED: Final = frozenset({"none", "completed", "failed", "cancelled"})
# From this version on QEMU asks for OOM kills and allocation stalls.
_FULL_STATISTICS: Final = (9, 2)
# From this version on it adds monitors while it runs, over one on a unix socket. Where
# it is on another, its process and so the number of its monitors are not known.
_ADDS_MONITORS: Final = (11, 1)


@frozen
class Finding:
    """One thing that stands in the way.

    Attributes:
        kind: What it is, for programs.
        detail: What it is and what to do about it, for people.
    """

    kind: str
    detail: str

    @property
    def severity(self) -> Severity:
        """How much it weighs."""
        return _WEIGHTS[self.kind]

    def to_json(self) -> dict[str, object]:
        """Return it as the command prints it."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "detail": self.detail,
        }


@frozen(kw_only=True)
class Backend:
    """Memory that a VM's RAM is made of.

    Attributes:
        kind: Its QOM type, such as ``memory-backend-memfd``.
        is_shared: Whether other processes can map it.
        is_huge: Whether it is in reserved huge pages (hugetlbfs).
        path: The file or folder that it is in; empty if it is in none.
    """

    kind: str = "memory-backend-ram"
    is_shared: bool = False
    is_huge: bool = False
    path: str = ""


@frozen(kw_only=True)
class HostFacts:
    """What the host knows of a VM's QEMU.

    Attributes:
        resident: Bytes of its resident memory; ``None`` if that is not known.
        why_unknown: Why it is not, and what to do.
        locked: Bytes of its memory that are locked.
        huge_pages: Bytes of it in reserved huge pages.
        limit: Bytes that its control groups allow it; ``None``: no limit is known.
        group: The control group with that limit.
        monitors: How many QMP monitors it has; ``None`` if that is not known.
        manager: Whose a monitor of it is that a manager of VMs needs for itself;
            empty if there is none.
        networks: The types of its ``-netdev``.
    """

    resident: int | None = None
    why_unknown: str = ""
    locked: int = 0
    huge_pages: int = 0
    limit: int | None = None
    group: str = ""
    monitors: int | None = None
    manager: str = ""
    networks: tuple[str, ...] = ()


@frozen(kw_only=True)
class Facts:
    """What is known of a VM whose monitor answers. Sizes in bytes.

    Attributes:
        status: Its state, as ``query-status`` names it.
        is_preconfig: Whether QEMU waits for its machine to be configured.
        version: QEMU's version; empty if it is not known.
        migration: The state of a migration to another QEMU; empty if there was none.
        missing: Why there is no balloon, and what to do; empty if there is one.
        unavailable: Why the balloon cannot work on this host; empty if it can.
        actual: The guest's size.
        total: The VM's RAM, as far as a balloon can take it.
        capacity: All memory that the guest can have.
        sizes: The guest's sizes, one after the other, while nothing of ours moved it.
        seconds: How long those sizes were watched.
        interval: Seconds at which somebody has the guest report; 0: nobody has.
        owed: The size that a run that was interrupted owes the guest.
        holder: The process of a run that goes on, and holds memory of the guest.
        features: The balloon's features that this QEMU knows, and whether they are on.
        stats: The guest's last answer.
        silence: Why the guest did not answer, and what to do; empty if it did.
        devices: The QOM types of the VM's devices that a balloon may suffer from. VFIO
            devices with which a balloon is allowed are left out.
        virtio_mem: Bytes plugged in by virtio-mem devices; ``None``: it has none.
        backends: What the VM's RAM is made of.
        host: What the host knows.
    """

    status: str = "running"
    is_preconfig: bool = False
    version: str = ""
    migration: str = ""
    missing: str = ""
    unavailable: str = ""
    actual: int | None = None
    total: int | None = None
    capacity: int | None = None
    sizes: tuple[int, ...] = ()
    seconds: float = 0.0
    interval: int = 0
    owed: int | None = None
    holder: int | None = None
    features: dict[str, bool] = field(factory=dict[str, bool], hash=False)
    stats: GuestStats = field(factory=GuestStats)
    silence: str = ""
    devices: tuple[str, ...] = ()
    virtio_mem: int | None = None
    backends: tuple[Backend, ...] = ()
    host: HostFacts = HostFacts()

    @property
    def can_ask_guest(self) -> bool:
        """Whether there is a guest that could answer, and a balloon to ask it by."""
        return self.status == "running" and not self.missing and not self.unavailable


def make_finding(kind: str, detail: str) -> Finding:
    """Make a finding of a kind that has a weight.

    Args:
        kind: One of :data:`KINDS`.
        detail: As of :class:`Finding`. What others have chosen may be in it.

    Raises:
        KeyError: There is no such kind.
    """
    _ = _WEIGHTS[kind]
    return Finding(kind, make_printable(detail))


def sort_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings with the heaviest first."""
    return sorted(findings, key=lambda finding: KINDS.index(finding.kind))


def is_about_monitor(finding: Finding) -> bool:
    """Tell whether a finding is that the VM cannot be asked anything."""
    return finding.kind in _ABOUT_MONITOR


def find_findings(facts: Facts) -> list[Finding]:
    """Return what stands in the way of a reclaim, the heaviest first."""
    found = (rule(facts) for rule in _RULES)
    return sort_findings(finding for finding in found if finding is not None)


# The VM


def _check_state(facts: Facts) -> Finding | None:
    if facts.is_preconfig:
        return make_finding(
            "preconfig",
            "QEMU was started with --preconfig and waits for its machine to be"
            " configured: end that with x-exit-preconfig",
        )
    if facts.status == "running":
        return None
    kinds = {"prelaunch": "never-started", "inmigrate": "waits-for-migration"}
    kind = kinds.get(facts.status, "not-running")
    return make_finding(kind, explain_status(facts.status))


def _check_migration(facts: Facts) -> Finding | None:
    if not facts.migration or facts.migration in _MIGRATED:
        return None
    return make_finding(
        "migrating",
        f"the VM is being migrated ({facts.migration}), and its target goes with it:"
        " wait until that is done, and reclaim where it runs then",
    )


# The balloon and its driver


def _check_balloon(facts: Facts) -> Finding | None:
    if facts.is_preconfig:
        return None  # devices come later
    if facts.missing:
        return make_finding("no-balloon", facts.missing)
    if facts.unavailable:
        return make_finding("balloon-unavailable", facts.unavailable)
    return None


def _check_guest(facts: Facts) -> Finding | None:
    stats = facts.stats
    if not facts.can_ask_guest:
        return None
    if not facts.silence:
        return _check_figures(facts)
    if stats.last_update is not None:
        return make_finding("guest-silent", facts.silence)
    ballooned = _measure_ballooned(facts)
    return make_finding("no-statistics" if ballooned else "no-driver", facts.silence)


def _check_figures(facts: Facts) -> Finding | None:
    """Look at what a guest that answers says."""
    nonsense = facts.stats.find_nonsense(facts.capacity)
    if nonsense is not None:
        return make_finding(
            "nonsense",
            f"the guest says nonsense: {nonsense}; restart its balloon driver",
        )
    if facts.stats.reclaimable is None:
        return make_finding("no-statistics", NO_STATISTICS)
    if facts.stats.available is None:
        counted = "free memory and page cache"
        if facts.stats.disk_caches is None:
            counted = "free memory alone"
        return make_finding(
            "no-available",
            f"the guest does not report what it has available, so {counted} counts:"
            " QEMU 2.6 and Linux 4.6 do, and so does a newer Balloon Service (Windows)",
        )
    return None


def _check_counters(facts: Facts) -> Finding | None:
    stats = facts.stats
    if not facts.can_ask_guest or facts.silence or stats.reclaimable is None:
        return None
    if None not in (stats.oom_kills, stats.alloc_stalls):
        return None
    who = "the guest: Linux does from 6.12 on"
    if facts.version and _parse_version(facts.version) < _FULL_STATISTICS:
        who = f"QEMU {facts.version}: 9.2 and later do, with Linux 6.12 in the guest"
    return make_finding(
        "few-statistics",
        f"OOM kills and allocation stalls are not reported by {who}; until then leave"
        " the guest more headroom (--headroom)",
    )


def _parse_version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


# What the host gets


def _check_vfio(facts: Facts) -> Finding | None:
    found = [kind for kind in facts.devices if kind.startswith("vfio")]
    if not found:
        return None
    return make_finding(
        "vfio",
        f"the host device {found[0]} pins all of the guest's memory: the host gets"
        " nothing back while it is plugged in; use virtio-mem for this VM",
    )


def _check_vdpa(facts: Facts) -> Finding | None:
    if not any("vhost-vdpa" in name for name in (*facts.devices, *facts.host.networks)):
        return None
    return make_finding(
        "vhost-vdpa",
        "a vhost-vdpa device pins all of the guest's memory: the host gets nothing"
        " back; use another network or disk device for this VM",
    )


def _check_locked(facts: Facts) -> Finding | None:
    # Both pin memory as well, and the kernel counts that as locked.
    is_pinned = _check_vfio(facts) or _check_vdpa(facts)
    locked = facts.host.locked
    if is_pinned or not locked or locked < (facts.total or 0) // 2:
        return None
    return make_finding(
        "locked-memory",
        f"{format_size(locked)} of QEMU are locked in memory: the host gets nothing"
        " back; start the VM without -overcommit mem-lock (libvirt: <locked/>)",
    )


def _check_huge_pages(facts: Facts) -> Finding | None:
    if not facts.host.huge_pages and not any(each.is_huge for each in facts.backends):
        return None
    return make_finding(
        "huge-pages",
        "the guest's memory is in reserved huge pages: the host gets back whole ones"
        " only, and a balloon takes single pages of 4 KiB; use transparent huge pages",
    )


def _check_private_file(facts: Facts) -> Finding | None:
    paths = [
        each.path
        for each in facts.backends
        if each.path and not each.is_shared and not each.is_huge
    ]
    if not paths:
        return None
    return make_finding(
        "private-file",
        f"the guest's memory is a private mapping of a file ({paths[0]}): what the"
        " balloon takes is cut out of that file, for others who use it, too; let no"
        " other VM use it, or start the VM with share=on",
    )


def _check_shared(facts: Facts) -> Finding | None:
    if not any(each.is_shared and not each.is_huge for each in facts.backends):
        return None
    return make_finding(
        "shared-memory",
        "the guest's memory is shared: the host gets it back all the same, and counts"
        " it as shared; add up proportional set sizes (PSS) where others map it",
    )


def _check_vhost_user(facts: Facts) -> Finding | None:
    names = (*facts.devices, *facts.host.networks)
    if not any("vhost-user" in name for name in names):
        return None
    return make_finding(
        "vhost-user",
        "a vhost-user process maps the guest's memory: the host gets back what that"
        " process does not pin; look at its locked memory (VmLck, VmPin) if QEMU's"
        " resident memory does not fall",
    )


def _check_group(facts: Facts) -> Finding | None:
    limit = facts.host.limit
    if limit is None or facts.total is None or limit >= facts.total:
        return None
    return make_finding(
        "cgroup-limit",
        f"the control group {facts.host.group} is limited to {format_size(limit)}, and"
        f" the VM has {format_size(facts.total)} of RAM: beyond that limit the kernel"
        " swaps, or kills QEMU; raise it, or hold the guest below it",
    )


def _check_resident(facts: Facts) -> Finding | None:
    if facts.host.resident is not None or not facts.host.why_unknown:
        return None
    return make_finding(
        "resident-unknown",
        "QEMU's resident memory is not known, so it cannot be seen what the host gets"
        f" back: {facts.host.why_unknown}",
    )


# Who else is there


def went_both_ways(sizes: Sequence[int]) -> bool:
    """Tell whether a guest has grown and shrunk, by its sizes one after the other."""
    return {after > size for size, after in pairwise(sizes) if after != size} == {
        True,
        False,
    }


def _check_movement(facts: Facts) -> Finding | None:
    sizes = facts.sizes
    if len({*sizes}) < 2:  # noqa: PLR2004 - it has not moved
        return None
    if not went_both_ways(sizes):
        way = "grew" if sizes[-1] > sizes[0] else "shrank"
        return make_finding(
            "moved-by-others",
            f"the guest {way} by {format_size(abs(sizes[-1] - sizes[0]))} in"
            f" {facts.seconds:.1f} s, and not by us: wait until that is done; if it"
            f" goes on, {OVERRIDDEN}",
        )
    low, high = format_size(min(sizes)), format_size(max(sizes))
    itself = ""
    if facts.features.get("deflate-on-oom"):
        itself = ", or the guest takes pages back (deflate-on-oom)"
    return make_finding(
        "two-managers",
        f"the guest went up and down between {low} and {high} in {facts.seconds:.1f} s:"
        f" two clients set targets{itself}; turn ballooning off in all but one",
    )


def _check_manager(facts: Facts) -> Finding | None:
    if not facts.host.manager:
        return None
    return make_finding(
        "managed",
        f"another monitor of this VM is {facts.host.manager}: that manager may set"
        " targets, too; turn its ballooning off for this VM",
    )


def _check_polling(facts: Facts) -> Finding | None:
    if not facts.interval:
        return None
    return make_finding(
        "polled-by-others",
        f"somebody has the guest report its memory every {facts.interval} s: a manager"
        " that may set targets, too; let only one set them",
    )


def _check_monitors(facts: Facts) -> Finding | None:
    version = _parse_version(facts.version or "")
    if facts.host.monitors != 1 or version >= _ADDS_MONITORS:
        return None
    return make_finding(
        "only-monitor",
        "this is the VM's only monitor, and a monitor serves one client: give the VM a"
        " second -qmp for what stays connected; QEMU 11.1 and later need none"
        " (--own-monitor)",
    )


def _check_held(facts: Facts) -> Finding | None:
    if facts.holder is None:
        return None
    return make_finding("held", f"its memory is {describe_holder(facts.holder)}")


def _check_owed(facts: Facts) -> Finding | None:
    if facts.owed is None or facts.actual is None or facts.owed <= facts.actual:
        return None
    return make_finding("owed", f"the guest is owed {describe_owed(facts.owed)}")


def _check_ballooned(facts: Facts) -> Finding | None:
    if not _measure_ballooned(facts) or _check_held(facts) or _check_owed(facts):
        return None
    small = describe_small(
        facts.actual or 0, facts.total or 0, "by some client's last target"
    )
    return make_finding("ballooned", f"the guest {small}, unless that client holds it")


def _measure_ballooned(facts: Facts) -> int:
    """Return the bytes in the balloon; 0 if that is not known."""
    if facts.actual is None or not lacks_ram(facts.actual, facts.total):
        return 0
    return (facts.total or 0) - facts.actual


def _check_virtio_mem(facts: Facts) -> Finding | None:
    if facts.virtio_mem is None:
        return None
    total = "its RAM" if facts.total is None else format_size(facts.total)
    return make_finding(
        "virtio-mem",
        f"a virtio-mem device has plugged in {format_size(facts.virtio_mem)}, which a"
        f" balloon cannot take, beside {total}, which it can: lower the device's"
        " requested-size to take the former",
    )


# Features of the balloon


def _check_deflate(facts: Facts) -> Finding | None:
    is_on = facts.features.get("deflate-on-oom")
    if is_on is None:
        return None
    detail = (
        "deflate-on-oom is off: a guest that is sent too low by any client kills"
        " processes or panics; start the VM with deflate-on-oom=on"
    )
    if is_on:
        detail = (
            "deflate-on-oom is on: a guest that is short of memory takes it back from"
            " the balloon by itself; do not count on a held size"
        )
    return make_finding("deflate-on-oom", detail)


def _check_reporting(facts: Facts) -> Finding | None:
    is_on = facts.features.get("free-page-reporting")
    if facts.missing or facts.is_preconfig or not facts.features:
        return None
    if is_on is None:
        detail = (
            "this QEMU has no free-page-reporting: memory that the guest frees stays"
            " with it until a reclaim; QEMU 5.1 has it"
        )
    elif is_on:
        detail = (
            "free-page-reporting is on: the host gets what the guest frees without a"
            " reclaim; page cache still takes one"
        )
    else:
        detail = (
            "free-page-reporting is off: memory that the guest frees stays with it"
            " until a reclaim; start the VM with free-page-reporting=on"
        )
    return make_finding("free-page-reporting", detail)


def _check_poison(facts: Facts) -> Finding | None:
    on = facts.features.get
    if not on("free-page-reporting") or on("page-poison") is not False:
        return None
    return make_finding(
        "page-poison",
        "page-poison is off: a guest that poisons or clears pages as it frees them"
        " reports none, although free-page-reporting is on; leave page-poison=on, the"
        " default",
    )


_RULES: Final[tuple[Callable[[Facts], Finding | None], ...]] = (
    _check_state,
    _check_migration,
    _check_balloon,
    _check_guest,
    _check_counters,
    _check_vfio,
    _check_vdpa,
    _check_locked,
    _check_huge_pages,
    _check_private_file,
    _check_shared,
    _check_vhost_user,
    _check_group,
    _check_resident,
    _check_movement,
    _check_manager,
    _check_polling,
    _check_monitors,
    _check_held,
    _check_owed,
    _check_ballooned,
    _check_virtio_mem,
    _check_deflate,
    _check_reporting,
    _check_poison,
)
