"""What stands in the way of a reclaim, from facts: each rule, and the order."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import pytest
from attrs import evolve, fields_dict
from docblocks import DOCS

from qmpballoon.balloon.stats import GuestStats
from qmpballoon.cli._findings import (
    KINDS,
    Backend,
    Facts,
    HostFacts,
    find_findings,
    is_about_monitor,
    make_finding,
    sort_findings,
)
from qmpballoon.sizes import GiB, KiB, MiB

STATS = GuestStats(
    last_update=datetime(2026, 1, 1, tzinfo=UTC),
    total=2 * GiB,
    free=GiB,
    available=GiB,
    disk_caches=GiB // 2,
    oom_kills=0,
    alloc_stalls=0,
)
WELL = Facts(
    version="10.0.2",
    actual=2 * GiB,
    total=2 * GiB,
    capacity=2 * GiB,
    sizes=(2 * GiB, 2 * GiB, 2 * GiB),
    seconds=1.0,
    features={
        "deflate-on-oom": False,
        "free-page-reporting": True,
        "page-poison": True,
    },
    stats=STATS,
    backends=(Backend(),),
    host=HostFacts(resident=GiB, monitors=2),
)
MEMFD = "memory-backend-memfd"
FILE = "memory-backend-file"

# Kind, what is changed in a VM that is well, and words of the finding.
CASES: list[tuple[str, dict[str, Any], str]] = [
    (
        "no-balloon",
        {"missing": "this VM has no balloon: start it with one"},
        "start it",
    ),
    (
        "balloon-unavailable",
        {"unavailable": "no sync MMU: use another host"},
        "sync MMU",
    ),
    ("vfio", {"devices": ("vfio-pci",)}, "vfio-pci pins all of the guest's memory"),
    ("vhost-vdpa", {"devices": ("vhost-vdpa-device-pci",)}, "another network or disk"),
    ("vhost-vdpa", {"networks": ("vhost-vdpa",)}, "nothing back"),
    ("locked-memory", {"locked": 2 * GiB}, "without -overcommit mem-lock"),
    ("huge-pages", {"huge_pages": GiB}, "use transparent huge pages"),
    ("huge-pages", {"backends": (Backend(kind=MEMFD, is_huge=True),)}, "whole ones"),
    ("preconfig", {"is_preconfig": True, "status": "prelaunch"}, "x-exit-preconfig"),
    ("never-started", {"status": "prelaunch"}, "start it (cont)"),
    ("waits-for-migration", {"status": "inmigrate"}, "wait until its migration"),
    ("not-running", {"status": "paused"}, "resume it (cont)"),
    ("not-running", {"status": "guest-panicked"}, "system_reset"),
    (
        "no-driver",
        {"silence": "it never did: load virtio_balloon", "stats": GuestStats()},
        "load virtio_balloon",
    ),
    (
        "no-statistics",
        {"silence": "start the Service", "stats": GuestStats(), "actual": GiB},
        "start the Service",
    ),
    (
        "no-statistics",
        {"stats": GuestStats(last_update=STATS.last_update)},
        "start the Balloon Service (Windows)",
    ),
    ("guest-silent", {"silence": "it did before: the guest hangs"}, "hangs"),
    (
        "nonsense",
        {"stats": evolve(STATS, free=3 * GiB)},
        "3 GiB are free, and it can have 2 GiB at most; restart its balloon driver",
    ),
    ("two-managers", {"sizes": (4, 2, 2, 3)}, "turn ballooning off in all but one"),
    (
        "two-managers",
        {"sizes": (4, 2, 3), "features": {"deflate-on-oom": True}},
        "or the guest takes pages back (deflate-on-oom)",
    ),
    ("moved-by-others", {"sizes": (4 * MiB, 2 * MiB, MiB)}, "shrank by 3 MiB in 1.0 s"),
    ("moved-by-others", {"sizes": (MiB, MiB, 2 * MiB)}, "grew by 1 MiB"),
    ("migrating", {"migration": "active"}, "wait until that is done"),
    ("held", {"holder": 42, "actual": GiB}, "its memory is held by process 42, which"),
    ("owed", {"owed": 2 * GiB, "actual": GiB}, "`resize 2GiB`"),
    # Rounded, it would leave the guest with less, and nothing would be owed any more.
    ("owed", {"owed": 2 * GiB + KiB, "actual": GiB}, "`resize 2097153KiB`"),
    (
        "private-file",
        {"backends": (Backend(kind=FILE, path="/run/vm.ram"),)},
        "(/run/vm.ram)",
    ),
    (
        "cgroup-limit",
        {"limit": GiB, "group": "/sys/fs/cgroup/vm"},
        "/sys/fs/cgroup/vm is limited to 1 GiB, and the VM has 2 GiB",
    ),
    (
        "no-available",
        {"stats": evolve(STATS, available=None)},
        "so free memory and page cache counts",
    ),
    (
        "no-available",
        {"stats": evolve(STATS, available=None, disk_caches=None)},
        "so free memory alone counts",
    ),
    (
        "page-poison",
        {"features": {"free-page-reporting": True, "page-poison": False}},
        "leave page-poison=on",
    ),
    ("only-monitor", {"monitors": 1}, "later need none (--own-monitor)"),
    ("only-monitor", {"monitors": 1, "version": "10.2.0"}, "a second -qmp"),
    (
        "managed",
        {"manager": "Proxmox VE's own"},
        "another monitor of this VM is Proxmox VE's own: that manager",
    ),
    ("polled-by-others", {"interval": 2}, "every 2 s"),
    ("ballooned", {"actual": GiB}, "`resize 100%` gives it all"),
    ("virtio-mem", {"virtio_mem": GiB}, "requested-size"),
    (
        "resident-unknown",
        {"resident": None, "why_unknown": "over TCP nobody tells: use a unix socket"},
        "use a unix socket",
    ),
    (
        "few-statistics",
        {"stats": evolve(STATS, oom_kills=None)},
        "Linux does from 6.12",
    ),
    (
        "few-statistics",
        {"stats": evolve(STATS, oom_kills=None), "version": "7.2.22"},
        "QEMU 7.2.22: 9.2 and later do",
    ),
    (
        "shared-memory",
        {"backends": (Backend(kind=MEMFD, is_shared=True),)},
        "gets it back all the same",
    ),
    ("vhost-user", {"devices": ("vhost-user-fs-pci",)}, "does not pin"),
    ("vhost-user", {"networks": ("user", "vhost-user")}, "does not pin"),
    ("deflate-on-oom", {"features": {"deflate-on-oom": True}}, "is on: a guest that"),
    ("deflate-on-oom", {}, "start the VM with deflate-on-oom=on"),
    ("free-page-reporting", {}, "is on: the host gets"),
    (
        "free-page-reporting",
        {"features": {"free-page-reporting": False}},
        "start the VM with free-page-reporting=on",
    ),
    ("free-page-reporting", {"features": {"deflate-on-oom": True}}, "QEMU 5.1 has it"),
]


def change(facts: Facts, changes: dict[str, Any]) -> Facts:
    """Return facts with some of them changed, those of the host too."""
    of_host = {
        name: changes[name] for name in changes if name in fields_dict(HostFacts)
    }
    others = {name: changes[name] for name in changes if name not in of_host}
    return evolve(facts, **others, host=evolve(facts.host, **of_host))


@pytest.mark.parametrize(("kind", "changes", "words"), CASES)
def test_a_planted_fault_is_the_first_finding(
    kind: str, changes: dict[str, Any], words: str
) -> None:
    usual = {finding.kind for finding in find_findings(WELL)}
    found = find_findings(change(WELL, changes))
    first = next(each for each in found if each.kind == kind or each.kind not in usual)
    assert first.kind == kind
    assert words in first.detail


def test_a_vm_that_is_well_has_notes_on_its_features_only() -> None:
    assert [finding.kind for finding in find_findings(WELL)] == [
        "deflate-on-oom",
        "free-page-reporting",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"locked": 64 * MiB},
        {"limit": 2 * GiB},
        {"migration": "completed"},
        {"owed": 2 * GiB},
        {"stats": evolve(STATS, free=None, available=None), "status": "paused"},
        {"features": {"free-page-reporting": False, "page-poison": False}},
        {"backends": (Backend(kind=FILE, path="/run/vm.ram", is_shared=True),)},
    ],
)
def test_what_is_as_it_should_be_is_no_error_and_no_warning(
    changes: dict[str, Any],
) -> None:
    found = find_findings(change(WELL, changes))
    assert {each.severity for each in found if each.kind != "not-running"} <= {"note"}


def test_one_monitor_is_enough_where_qemu_adds_others() -> None:
    found = find_findings(change(WELL, {"monitors": 1, "version": "11.1.3"}))
    assert "only-monitor" not in {each.kind for each in found}


def test_memory_that_vfio_locks_is_one_finding() -> None:
    found = find_findings(change(WELL, {"devices": ("vfio-pci",), "locked": 2 * GiB}))
    assert [each.kind for each in found if each.severity == "error"] == ["vfio"]


def test_a_vm_without_a_machine_is_not_told_of_its_balloon() -> None:
    (finding,) = find_findings(
        Facts(status="prelaunch", is_preconfig=True, missing="no balloon")
    )
    assert finding.kind == "preconfig"


def test_findings_are_sorted_by_weight() -> None:
    found = sort_findings(make_finding(kind, "") for kind in reversed(KINDS))
    assert [finding.kind for finding in found] == list(KINDS)
    weights = [finding.severity for finding in found]
    assert weights == sorted(weights, key=["error", "warning", "note"].index)
    about = [is_about_monitor(finding) for finding in found]
    assert about == sorted(about, reverse=True)


def test_a_finding_that_has_no_weight_is_refused() -> None:
    with pytest.raises(KeyError):
        make_finding("nope", "")


def test_every_kind_has_its_section_and_its_weight_on_the_page() -> None:
    page = (DOCS / "reference" / "doctor.md").read_text(encoding="utf-8")
    assert re.findall(r"^### (\S+)$", page, re.MULTILINE) == list(KINDS)
    for kind in KINDS:
        heading = page.index(f"\n### {kind}\n")
        above = re.findall(r"^## (\w+)s$", page[:heading], re.MULTILINE)
        assert above[-1].lower() == make_finding(kind, "").severity


def test_every_rule_has_a_case() -> None:
    about_monitor = {kind for kind in KINDS if is_about_monitor(make_finding(kind, ""))}
    assert {kind for kind, _, _ in CASES} == {*KINDS} - about_monitor


@pytest.mark.parametrize(("kind", "changes", "words"), CASES)
def test_every_finding_says_what_to_do(
    kind: str, changes: dict[str, Any], words: str
) -> None:
    found = find_findings(change(WELL, changes))
    details = [each.detail for each in found if each.kind == kind]
    assert details
    if kind not in {"no-statistics", "guest-silent"}:  # words of others
        assert all(re.search("[:;,] ", detail) for detail in details)
    assert words
