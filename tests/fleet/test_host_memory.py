"""What the host has left, by meminfo, by a limit, by a control group."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from qmpballoon.fleet.host_memory import GroupLimit, HostMemory, find_limit
from qmpballoon.sizes import GiB, MiB

if TYPE_CHECKING:
    from pathlib import Path

MEMINFO = "MemTotal:  16777216 kB\nMemFree: 1 kB\nMemAvailable:   4194304 kB\nHuge: 0\n"
CALM = "some avg10=0.00 avg60=90.00 avg300=0.00 total=0\nfull avg10=0.00 total=0\n"
PRESSED = CALM.replace("avg10=0.00", "avg10=12.50", 1)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "pressure").mkdir()
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "pressure" / "memory").write_text(CALM)
    return tmp_path


def group(folder: Path, limit: str) -> Path:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{3 * GiB}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {100 * MiB}\n")
    (folder / "memory.pressure").write_text(PRESSED)
    return folder


def test_the_host(proc: Path) -> None:
    host = HostMemory(proc=proc).read(promised=5)
    assert (host.total, host.available) == (16 * GiB, 4 * GiB)
    assert (host.promised, host.pressed) == (5, False)


def test_a_limit_counts_what_the_vms_hold(proc: Path) -> None:
    host = HostMemory(limit=3 * GiB, proc=proc).read(held=2 * GiB)
    assert (host.total, host.available) == (3 * GiB, GiB)
    # One plan is to free it all: how far they are beyond the limit is told, too.
    assert HostMemory(limit=3 * GiB, proc=proc).read(held=4 * GiB).available == -GiB
    assert HostMemory(limit=12 * GiB, proc=proc).read(held=GiB).available == 4 * GiB


def test_a_control_group_has_its_own_limit_and_pressure(proc: Path) -> None:
    host = HostMemory(cgroup=group(proc, str(4 * GiB)), proc=proc).read()
    assert (host.total, host.available) == (4 * GiB, GiB + 100 * MiB)
    assert host.pressed
    assert HostMemory(cgroup=group(proc, "max"), proc=proc).read().available == 4 * GiB


def test_the_lower_of_the_two_limits_of_a_group_counts(proc: Path) -> None:
    folder = group(proc, str(8 * GiB))
    (folder / "memory.high").write_text(f"{5 * GiB}\n")
    host = HostMemory(cgroup=folder, proc=proc).read()
    assert (host.total, host.available) == (5 * GiB, 2 * GiB + 100 * MiB)
    (folder / "memory.high").write_text("max\n")
    assert HostMemory(cgroup=folder, proc=proc).read().total == 8 * GiB


def test_the_limit_of_a_group_around_it_counts(proc: Path) -> None:
    inner = proc / "machine.slice" / "vm.scope"
    inner.mkdir(parents=True)
    group(proc / "machine.slice", str(4 * GiB))
    for limit in ("max", str(12 * GiB)):
        host = HostMemory(cgroup=group(inner, limit), proc=proc).read()
        assert (host.total, host.available) == (4 * GiB, GiB + 100 * MiB)


def test_what_is_around_all_groups_limits_nothing(proc: Path) -> None:
    inner = proc / "cg" / "vm.scope"
    inner.mkdir(parents=True)
    group(proc, "1")
    host = HostMemory(cgroup=group(inner, str(12 * GiB)), proc=proc).read()
    assert (host.total, host.available) == (12 * GiB, 4 * GiB)


def test_a_group_that_vanishes_does_not_count_until_it_is_back(proc: Path) -> None:
    folder = proc / "machine.slice"
    folder.mkdir()
    memory = HostMemory(cgroup=group(folder, str(4 * GiB)), proc=proc)
    assert memory.read().notes == ()
    for name in ("memory.current", "memory.max"):
        (folder / name).unlink()
        host = memory.read()
        assert (host.total, host.available) == (16 * GiB, 4 * GiB)
        assert not host.pressed
        (note,) = host.notes
        assert str(folder) in note
    group(folder, str(4 * GiB))
    assert memory.read().total == 4 * GiB
    (folder / "memory.max").write_text("")
    assert memory.read().total == 16 * GiB


def test_pressure(proc: Path) -> None:
    (proc / "pressure" / "memory").write_text(PRESSED)
    assert HostMemory(proc=proc).read().pressed
    (proc / "pressure" / "memory").write_text(PRESSED.replace("12.50", "10.00"))
    assert not HostMemory(proc=proc).read().pressed
    (proc / "pressure" / "memory").unlink()
    assert not HostMemory(proc=proc).read().pressed
    (proc / "pressure" / "memory").write_text("")
    assert not HostMemory(proc=proc).read().pressed


def test_this_host_tells() -> None:
    host = HostMemory().read()
    assert 0 < host.available < host.total


# The limit of one process


def write_groups(proc: Path, groups: str, kind: str, options: str = "rw") -> Path:
    """Have process 42 be in control groups, which are mounted in a folder."""
    (proc / "42").mkdir()
    (proc / "42" / "cgroup").write_bytes(os.fsencode(groups))
    (proc / "self").mkdir()
    root = proc / "cg"
    (root / "vms" / "vm1").mkdir(parents=True)
    (proc / "self" / "mountinfo").write_text(
        "21 1 0:20 / / rw - ext4 /dev/vda rw\n"
        f"24 21 0:23 / {root} rw shared:9 - {kind} none {options}\n"
    )
    return root


def test_a_process_has_the_lowest_limit_of_its_groups(proc: Path) -> None:
    root = write_groups(proc, "0::/vms/vm1\n", "cgroup2")
    inner, outer = root / "vms" / "vm1", root / "vms"
    assert find_limit(42, proc) is None
    (inner / "memory.max").write_text("max\n")
    (outer / "memory.max").write_text(f"{8 * GiB}\n")
    (proc / "memory.max").write_text("1\n")  # is around where groups are mounted
    assert find_limit(42, proc) == GroupLimit(8 * GiB, outer)
    (inner / "memory.max").write_text(f"{8 * GiB}\n")
    assert find_limit(42, proc) == GroupLimit(8 * GiB, inner)
    (inner / "memory.high").write_text(f"{3 * GiB}\n")
    assert find_limit(42, proc) == GroupLimit(3 * GiB, inner)


def test_groups_and_mounts_with_any_name(proc: Path) -> None:
    # Whoever runs containers names them, in bytes; Linux escapes blanks and newlines.
    root = write_groups(proc, "0::/vms/vm\udcff\x0b\x85\n", "cgroup2")
    file = proc / "self" / "mountinfo"
    line = b"25 21 0:24 / /mnt/\xff\x0b\xc2\x85 rw - tmpfs none rw\n"
    file.write_bytes(line + file.read_bytes())
    inner = root / "vms" / "vm\udcff\x0b\x85"
    inner.mkdir()
    (inner / "memory.max").write_text(f"{GiB}\n")
    assert find_limit(42, proc) == GroupLimit(GiB, inner)


def test_a_process_in_groups_of_version_1(proc: Path) -> None:
    groups = "5:devices:/\n4:memory:/vms/vm1\n0::/\n"
    root = write_groups(proc, groups, "cgroup", "rw,memory")
    (root / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert find_limit(42, proc) is None
    (root / "vms" / "vm1" / "memory.limit_in_bytes").write_text(f"{GiB}\n")
    assert find_limit(42, proc) == GroupLimit(GiB, root / "vms" / "vm1")


@pytest.mark.parametrize(
    ("groups", "kind", "options"),
    [
        ("4:cpu:/vms\n", "cgroup", "rw,memory"),
        ("4:memory:/vms\n", "cgroup", "rw,cpu"),
        ("4:memory:/vms\n", "cgroup2", "rw"),
    ],
)
def test_groups_without_the_memory_controller_limit_nothing(
    groups: str, kind: str, options: str, proc: Path
) -> None:
    root = write_groups(proc, groups, kind, options)
    for folder in (root, root / "vms"):
        (folder / "memory.max").write_text("1\n")
    assert find_limit(42, proc) is None


def test_a_process_that_has_ended_has_no_limit(proc: Path) -> None:
    write_groups(proc, "0::/\n", "cgroup2")
    assert find_limit(43, proc) is None
