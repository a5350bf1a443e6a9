"""Fetching what is missing: the distribution's own packages, without root.

Packages are unpacked into the cache folder and run from there; nothing is installed.
A tree is moved to its name only once it is complete, so that whatever is found under
a name can be used: by a process that comes later, without any network.

Debian's mirrors carry all of its releases, and so a Debian machine can have the QEMU
and the kernel of each. Other distributions' machines get those of their own release.
"""

from __future__ import annotations

import platform
import shutil
from typing import TYPE_CHECKING, Final

from attrs import evolve, frozen

from qmpballoon.testing.lab import apt, bundle, sources
from qmpballoon.testing.lab.apt import Apt
from qmpballoon.testing.lab.cache import cache_folder, locked
from qmpballoon.testing.lab.errors import LabError
from qmpballoon.testing.lab.progress import Progress
from qmpballoon.testing.lab.versions import matches, numbers

if TYPE_CHECKING:
    from pathlib import Path

    from qmpballoon.testing.lab.apt import Package
    from qmpballoon.testing.lab.progress import Report
    from qmpballoon.testing.lab.sources import Archive

__all__ = ["Kind", "busybox", "fetch", "kernel", "qemu"]

_INSTALL: Final = (
    "install what is missing: apt-get install qemu-system-x86 busybox-static and "
    "linux-image-cloud-amd64 (Debian) or linux-image-virtual (Ubuntu), or "
    "dnf install qemu-kvm busybox kernel-core"
)
# Which of Debian's releases has what. A version that is not here is looked for in
# unstable, and then among the newest stable release's backports.
_RELEASES: Final = {
    "bookworm": {"QEMU": "7.2", "Linux": "6.1"},
    "trixie": {"QEMU": "10.0", "Linux": "6.12"},
}
_NEWER: Final = (("sid",), ("trixie", "trixie-backports"))


@frozen
class Kind:
    """Something that can be fetched.

    Attributes:
        name: What it is called, and its trees with it.
        package: The package to ask for, by distribution; ``""`` for all others.
        keep: Beginnings of the names of those packages that are wanted out of all
            that it needs: a kernel's closure is full of tools to install it.
    """

    name: str
    package: dict[str, str]
    keep: tuple[str, ...] = ("",)


qemu: Final = Kind("QEMU", {"": "qemu-system-x86"})
kernel: Final = Kind(
    "Linux",
    {"debian": "linux-image-cloud-amd64", "ubuntu": "linux-image-virtual"},
    ("linux-image-", "linux-binary-", "linux-modules-"),
)
busybox: Final = Kind("busybox", {"": "busybox-static"}, ("busybox-static",))


def fetch(kind: Kind, version: str | None, report: Report) -> Path:
    """Have something in the cache folder.

    Args:
        kind: What.
        version: As in ``"10.0"``; ``None`` for that of the machine's own release.
        report: Told what is going on; may raise to stop it, and what was downloaded
            until then is not downloaded again.

    Returns:
        The folder that its packages were unpacked to.

    Raises:
        LabError: It cannot be fetched here; says why, and what to install.
    """
    trees = cache_folder() / "trees"
    if found := _cached(trees, kind, version):
        return found
    wanted = f"{kind.name} {version}" if version else kind.name
    _check_machine(wanted)
    waiting = Progress(f"another process is fetching; waiting for {wanted}", trees)
    with locked(cache_folder() / "lock", lambda: report(waiting)):
        # The process that was waited for may have fetched the same.
        if found := _cached(trees, kind, version):
            return found
        return _fetch(kind, version, wanted, report)


def _cached(trees: Path, kind: Kind, version: str | None) -> Path | None:
    found = [
        tree
        for tree in trees.glob(f"{kind.name}-*")
        if matches(tree.name.removeprefix(f"{kind.name}-"), version)
    ]
    return max(found, key=lambda tree: numbers(tree.name), default=None)


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
    archive = sources.choose(sources.installed_sources(), codename)
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
    """Say in which suites to look for a version, likeliest first."""
    if version is None or distribution != "debian":
        return [(own,)]
    for release, versions in _RELEASES.items():
        if matches(versions.get(kind.name, ""), version):
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
    looking = Progress(f"looking for {kind.name} in {suite}", cache)
    tool.update(lambda share: report(evolve(looking, share=share)))
    closure = tool.resolve(package, suite)
    chosen = _version(closure, package)
    if not matches(chosen, version):
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
    """Download and unpack packages, and make the tree appear in one step."""
    cache = cache_folder()
    name = f"{kind.name}-{version}"
    downloads, unfinished = cache / "downloads" / name, cache / "unfinished"
    downloads.mkdir(parents=True, exist_ok=True)
    doing = Progress(
        f"fetching {kind.name} {version} ({len(kept)} packages)",
        cache / "trees" / name,
        sum(item.size for item in kept),
    )
    report(doing)
    tool.download(kept, downloads, lambda share: report(evolve(doing, share=share)))
    # Left behind by a process that was killed in the middle; the lock is ours.
    shutil.rmtree(unfinished, ignore_errors=True)
    apt.unpack(downloads, unfinished)
    if kind is qemu:
        bundle.prepare(unfinished)
    doing.folder.parent.mkdir(exist_ok=True)
    unfinished.rename(doing.folder)
    shutil.rmtree(downloads)
    report(evolve(doing, share=1.0))
    return doing.folder
