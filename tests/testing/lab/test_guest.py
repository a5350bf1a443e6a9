"""What is asked of a guest, without a guest."""

from __future__ import annotations

from qmpballoon.testing.lab._guest import parse_meminfo


def test_meminfo_is_in_bytes_but_for_counts() -> None:
    text = "MemTotal:  973 kB\nHugePages_Total:    4\nActive(anon):  1 kB\n"
    expected = {"MemTotal": 973 * 1024, "HugePages_Total": 4, "Active(anon)": 1024}
    assert parse_meminfo(text) == expected
