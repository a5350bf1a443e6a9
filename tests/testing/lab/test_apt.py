"""apt: which archive a machine uses, and what apt says has to be fetched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from qmpballoon.testing.lab._apt import (
    Archive,
    Package,
    choose_archive,
    installed_archives,
    parse_deb822,
    parse_one_line,
    parse_uris,
)

if TYPE_CHECKING:
    from pathlib import Path

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

DEB822 = f"""\
# a comment
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm
 bookworm-updates
Components: main contrib
Signed-By: {KEYRING}

Types: deb-src
URIs: http://mirror.example/source
Suites: bookworm
Components: main

Enabled: no
Types: deb
URIs: http://mirror.example/disabled
Suites: bookworm
Components: main
"""

ONE_LINE = f"""\
# deb http://mirror.example/commented bookworm main
deb http://mirror.example/debian bookworm main contrib # the mirror
deb-src http://mirror.example/debian bookworm main
deb [ arch=amd64 signed-by={KEYRING} ] https://mirror.example/other trixie main
deb broken
"""


def test_deb822() -> None:
    assert list(parse_deb822(DEB822)) == [
        Archive("http://mirror.example/debian", suite, ("main", "contrib"), KEYRING)
        for suite in ("bookworm", "bookworm-updates")
    ]


def test_one_line() -> None:
    assert list(parse_one_line(ONE_LINE)) == [
        Archive("http://mirror.example/debian", "bookworm", ("main", "contrib")),
        Archive("https://mirror.example/other", "trixie", ("main",), KEYRING),
    ]


def test_all_files_are_read_and_disabled_ones_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "etc/apt/sources.list.d"
    folder.mkdir(parents=True)
    (folder.parent / "sources.list").write_text("deb http://a.example x main\n")
    (folder / "b.list").write_text("deb http://b.example x main\n")
    (folder / "c.sources").write_text(
        "Types: deb\nURIs: http://c.example\nSuites: x\nComponents: main\n"
    )
    (folder / "d.list.disabled").write_text("deb http://d.example x main\n")
    uris = [archive.uri for archive in installed_archives(tmp_path)]
    assert uris == ["http://a.example", "http://b.example", "http://c.example"]


def test_a_machine_without_sources_has_none(tmp_path: Path) -> None:
    assert installed_archives(tmp_path) == []


THIRD = Archive("http://third.example", "bookworm", ("main",), "/etc/keys/third.gpg")
STABLE = Archive("http://stable.example", "bookworm", ("stable",))
OWN = Archive("http://own.example", "bookworm", ("main",), KEYRING)
TRUSTED = Archive("http://own.example", "bookworm", ("main",))
SID = Archive("http://own.example", "sid", ("main",), KEYRING)


@pytest.mark.parametrize(
    ("archives", "codename", "expected"),
    [
        ([THIRD, STABLE, OWN], "bookworm", OWN),
        ([TRUSTED], "bookworm", TRUSTED),
        ([SID], "", SID),
        ([SID, OWN], "bookworm", OWN),
        ([THIRD, STABLE], "bookworm", None),
        ([OWN], "trixie", None),
        ([], "bookworm", None),
    ],
)
def test_only_the_distributions_own_archive_counts(
    archives: list[Archive], codename: str, expected: Archive | None
) -> None:
    assert choose_archive(archives, codename) == expected


def test_a_line_reads_back() -> None:
    (again,) = parse_one_line(OWN.to_line())
    assert again == OWN


def test_apt_says_what_is_to_be_fetched() -> None:
    text = (
        "'http://mirror.example/q/qemu_10.0%2bds-1_amd64.deb' "
        "qemu-system-x86_1%3a10.0.13+ds-0+deb13u1_amd64.deb 10278596 SHA256:0a\n"
        "'http://mirror.example/p/seabios_1.16.3-2_all.deb' "
        "seabios_1.16.3-2_all.deb 163272 \n"
        "Reading package lists...\n"
    )
    qemu, seabios = parse_uris(text)
    assert qemu == Package("qemu-system-x86", "1:10.0.13+ds-0+deb13u1", 10278596)
    assert qemu.upstream == "10.0.13"
    assert seabios.upstream == "1.16.3"
