"""Fetching packages: versions, what the cache has, and where nothing can be fetched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from qmpballoon.testing import lab
from qmpballoon.testing.lab._packages import KERNEL, QEMU, fetch, matches_version

if TYPE_CHECKING:
    from pathlib import Path


def silent(_progress: lab.FetchProgress) -> None:
    """Take progress and show nothing."""


@pytest.mark.parametrize(
    ("version", "wanted", "expected"),
    [
        ("7.2.22", "7.2", True),
        ("7.2.22", None, True),
        ("7.20.1", "7.2", False),
        ("10.0.13", "1", False),
        ("6.12.107", "6.1", False),
        ("6.1.0-56-cloud-amd64", "6.1", True),
    ],
)
def test_versions_match_by_number(
    version: str, wanted: str | None, *, expected: bool
) -> None:
    assert matches_version(version, wanted) is expected


def test_what_is_in_the_cache_is_taken_without_asking_anybody(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    for name in ("QEMU-10.0.9", "QEMU-10.0.13", "QEMU-11.1.3", "Linux-10.0.99"):
        (cache_folder / "trees" / name).mkdir(parents=True)
    found = fetch(QEMU, "10.0", silent)
    assert found == cache_folder / "trees/QEMU-10.0.13"


@pytest.mark.parametrize(
    ("codename", "own"), [("trixie", "QEMU-10.0.13"), ("unheard-of", "QEMU-11.1.3")]
)
def test_what_other_versions_were_fetched_does_not_matter(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch, codename: str, own: str
) -> None:
    release = {"VERSION_CODENAME": codename}
    monkeypatch.setattr("platform.freedesktop_os_release", lambda: release)
    for name in ("QEMU-7.2.22", "QEMU-10.0.13", "QEMU-11.1.3"):
        (cache_folder / "trees" / name).mkdir(parents=True)
    assert fetch(QEMU, None, silent).name == own


def test_where_nothing_can_be_fetched_it_says_what_to_install(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(lab.LabError, match="no apt-get here; install what is missing"):
        fetch(QEMU, "10.0", silent)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(lab.LabError, match="not on aarch64"):
        fetch(KERNEL, None, silent)
    assert not cache_folder.exists()
