"""Fetching what is missing: the distribution's own packages, without root.

Packages are unpacked into the cache folder and run from there; nothing is installed.
A tree gets its final name only once it is complete. So a tree that has its name can
be used, also by a later process and without a network.

Debian's mirrors have all of its releases, so a Debian machine can fetch the QEMU and
the kernel of each release. Other distributions' machines fetch those of their own
release.
"""

from __future__ import annotations

import platform
import re
import shutil
from typing import TYPE_CHECKING, Final

from attrs import evolve, frozen

from qmpballoon.testing.lab._apt import (
    Apt,
    choose_archive,
    installed_archives,
    unpack,
)
from qmpballoon.testing.lab._cache import cache_folder, locked
from qmpballoon.testing.lab._report import FetchProgress, LabError

if TYPE_CHECKING:
    from pathlib import Path

    from qmpballoon.testing.lab._apt import Archive, Package
    from qmpballoon.testing.lab._report import Report

__all__ = [
    "BUSYBOX",
    "KERNEL",
    "QEMU",
    "Kind",
    "fetch",
    "matches_version",
    "qemu_command",
    "version_numbers",
]

_INSTALL: Final = (
    "install what is missing: apt-get install qemu-system-x86 busybox-static and "
    "linux-image-cloud-amd64 (Debian) or linux-image-virtual (Ubuntu), or "
    "dnf install qemu-kvm busybox kernel-core"
)
# The versions in Debian's releases. Any other version is looked for in unstable, and
# then in the backports of the newest stable release.
_RELEASES: Final = {
    "bookworm": {"QEMU": "7.2", "Linux": "6.1"},
    "trixie": {"QEMU": "10.0", "Linux": "6.12"},
}
_NEWER: Final = (("sid",), ("trixie", "trixie-backports"))
_BINARY: Final = "usr/bin/qemu-system-x86_64"
_LOADER: Final = "usr/bin/qemu-loader"
_LIBRARIES: Final = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")


@frozen
class Kind:
    """Something that can be fetched.

    Attributes:
        name: Its name, which its trees' names begin with.
        package: The package's name by distribution; ``""`` stands for all others.
        keep: Of the package and all that it needs, only those packages are
            downloaded whose names begin with one of these. A kernel's package
            needs many tools that only install it.
    """

    name: str
    package: dict[str, str]
    keep: tuple[str, ...] = ("",)


QEMU: Final = Kind("QEMU", {"": "qemu-system-x86"})
KERNEL: Final = Kind(
    "Linux",
    {"debian": "linux-image-cloud-amd64", "ubuntu": "linux-image-virtual"},
    ("linux-image-", "linux-binary-", "linux-modules-"),
)
BUSYBOX: Final = Kind("busybox", {"": "busybox-static"}, ("busybox-static",))


def fetch(kind: Kind, version: str | None, report: Report) -> Path:
    """Return a tree in the cache folder, and fetch it if it is not there.

    Args:
        kind: What to fetch.
        version: Its version, for example ``"10.0"``; ``None`` for the version in the
            machine's own release.
        report: Called with the progress. An exception that it raises stops the
            download; finished packages are not downloaded again later.

    Returns:
        The folder that the packages were unpacked to.

    Raises:
        LabError: It cannot be fetched on this machine. The message says why, and
            what to install.
    """
    trees = cache_folder() / "trees"
    # Otherwise what other versions were fetched would decide which one it is.
    version = version or _own_version(kind)
    if found := _cached(trees, kind, version):
        return found
    wanted = f"{kind.name} {version}" if version else kind.name
    _check_machine(wanted)
    waiting = FetchProgress(f"another process is fetching; waiting for {wanted}", trees)
    with locked(cache_folder() / "lock", lambda: report(waiting)):
        # The process that held the lock may have fetched the same.
        if found := _cached(trees, kind, version):
            return found
        return _fetch(kind, version, wanted, report)


def _own_version(kind: Kind) -> str | None:
    """Return the version in the machine's own release, if that is known."""
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    return _RELEASES.get(codename, {}).get(kind.name)


def _cached(trees: Path, kind: Kind, version: str | None) -> Path | None:
    found = [
        tree
        for tree in trees.glob(f"{kind.name}-*")
        if matches_version(tree.name.removeprefix(f"{kind.name}-"), version)
    ]
    return max(found, key=lambda tree: version_numbers(tree.name), default=None)


def _check_machine(wanted: str) -> None:
    if platform.machine() != "x86_64":
        raise LabError(
            f"{wanted} is not installed, and it can only be fetched on x86-64 "
            f"machines, not on {platform.machine()}; {_INSTALL}"
        )
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise LabError(
                f"{wanted} is not installed, and it cannot be fetched: "
                f"there is no {tool} here; {_INSTALL}"
            )


def _fetch(kind: Kind, version: str | None, wanted: str, report: Report) -> Path:
    system = platform.freedesktop_os_release()
    codename = system.get("VERSION_CODENAME", "")
    archive = choose_archive(installed_archives(), codename)
    if archive is None:
        raise LabError(
            f"{wanted} is not installed, and it cannot be fetched: apt's sources "
            f"have no archive of {system['ID']} {codename} itself; {_INSTALL}"
        )
    package = kind.package.get(system["ID"], kind.package.get(""))
    if package is None:
        raise LabError(f"{wanted} is not installed, and not fetched here; {_INSTALL}")
    failures: list[str] = []
    for suites in _candidates(kind, version, system["ID"], archive.suite):
        archives = [evolve(archive, suite=suite) for suite in suites]
        try:
            return _fetch_from(archives, kind, package, version, report)
        except LabError as error:
            failures.append(f"{suites[-1]}: {error}")
    raise LabError(
        f"{wanted} is not installed, and it cannot be fetched "
        f"({'; '.join(failures)}); {_INSTALL}"
    )


def _candidates(
    kind: Kind, version: str | None, distribution: str, own: str
) -> list[tuple[str, ...]]:
    """List the suites to look for a version in, the most likely ones first."""
    if version is None or distribution != "debian":
        return [(own,)]
    for release, versions in _RELEASES.items():
        if matches_version(versions.get(kind.name, ""), version):
            return [(release,), (own, f"{own}-backports")]
    return [*_NEWER, (own,)]


def _fetch_from(
    archives: list[Archive],
    kind: Kind,
    package: str,
    version: str | None,
    report: Report,
) -> Path:
    cache = cache_folder()
    suite = archives[-1].suite
    tool = Apt.create(cache / "apt" / suite, archives)
    looking = FetchProgress(f"looking for {kind.name} in {suite}", cache)
    tool.update(lambda share: report(evolve(looking, share=share)))
    closure = tool.resolve(package, suite)
    chosen = _version(closure, package)
    if not matches_version(chosen, version):
        raise LabError(f"it has {kind.name} {chosen}")
    kept = [item for item in closure if item.name.startswith(kind.keep)]
    return _unpacked(tool, kind, chosen, kept, report)


def _version(closure: list[Package], package: str) -> str:
    for item in closure:
        if item.name == package:
            return item.upstream
    raise LabError(f"it has no {package}")


def _unpacked(
    tool: Apt, kind: Kind, version: str, kept: list[Package], report: Report
) -> Path:
    """Download and unpack packages, and give the complete tree its name."""
    cache = cache_folder()
    name = f"{kind.name}-{version}"
    downloads, unfinished = cache / "downloads" / name, cache / "unfinished"
    downloads.mkdir(parents=True, exist_ok=True)
    doing = FetchProgress(
        f"fetching {kind.name} {version} ({len(kept)} packages)",
        cache / "trees" / name,
        sum(item.size for item in kept),
    )
    report(doing)
    tool.download(kept, downloads, lambda share: report(evolve(doing, share=share)))
    # A process that was killed may have left this behind. This process has the lock.
    shutil.rmtree(unfinished, ignore_errors=True)
    unpack(downloads, unfinished)
    if kind is QEMU:
        _prepare_qemu(unfinished)
    doing.folder.parent.mkdir(exist_ok=True)
    unfinished.rename(doing.folder)
    shutil.rmtree(downloads)
    report(evolve(doing, share=1.0))
    return doing.folder


def _prepare_qemu(tree: Path) -> None:
    """Let a QEMU that was only unpacked find its own libraries and modules.

    QEMU is started through the dynamic loader of its own tree, with the libraries of
    that tree, so it needs nothing of the machine. QEMU looks for its firmware and its
    modules first in ``qemu-bundle``, in the folder of the running program. The
    running program is the loader, so the loader is copied to QEMU's folder.
    Otherwise QEMU would load the modules of another version that is installed, and
    abort.

    Raises:
        LabError: The tree has no loader.
    """
    for folder in _LIBRARIES:
        loader = tree / folder / "ld-linux-x86-64.so.2"
        if loader.exists() and not loader.is_symlink():
            shutil.copy2(loader, tree / _LOADER)
            break
    else:
        raise LabError(f"there is no dynamic loader for QEMU in {tree}")
    (tree / _LOADER).with_name("qemu-bundle").symlink_to("../..")


def qemu_command(tree: Path) -> tuple[str, ...]:
    """Return the beginning of the command line for a QEMU in a tree."""
    libraries = ":".join(str(tree / folder) for folder in _LIBRARIES)
    return (str(tree / _LOADER), "--library-path", libraries, str(tree / _BINARY))


def version_numbers(version: str) -> tuple[int, ...]:
    """Split a version into its numbers: ``"6.1.0-56-cloud"`` gives 6, 1, 0, 56."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


def matches_version(version: str, wanted: str | None) -> bool:
    """Tell whether a version is the wanted one: ``"7.2.22"`` is a ``"7.2"``.

    Every version matches ``None``.
    """
    prefix = version_numbers(wanted) if wanted else ()
    return version_numbers(version)[: len(prefix)] == prefix
