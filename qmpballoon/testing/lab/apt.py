"""apt, used without root: its own state, the machine's mirrors and proxies.

apt keeps its package lists, its downloads and its idea of what is installed in
folders that can be named. Given a private set, in which nothing is installed, it
resolves a package to everything that it needs, down to the C library, downloads
that and checks all signatures; and it needs no privilege for any of it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from typing import TYPE_CHECKING, Final

from attrs import frozen

from qmpballoon.testing.lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from qmpballoon.testing.lab.sources import Archive

__all__ = ["Apt", "Package", "parse_uris"]

_CONFIGURATION: Final = """\
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Acquire::Retries "2";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
APT::Install-Recommends "false";
// Everything is this user's own: there is no other user to drop to.
APT::Sandbox::User "root";
// What the machine's administrator hooks on is meant for the machine's own state.
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"""
_URI: Final = re.compile(r"'[^']+' (([^_ ]+)_([^_ ]+)_[^_ ]+\.deb) (\d+)\b")
_UPSTREAM: Final = re.compile(r"(?:\d+:)?(\d+(?:\.\d+)*)")
_STATUS: Final = re.compile(r"dlstatus:\d+:([\d.]+):")
_LAST_LINES: Final = 4


@frozen
class Package:
    """One package of an archive.

    Attributes:
        name: Its name.
        version: Its full version, as in ``"1:10.0.13+ds-0+deb13u1"``.
        size: Bytes to be downloaded.
    """

    name: str
    version: str
    size: int

    @property
    def upstream(self) -> str:
        """The version's digits, as in ``"10.0.13"``."""
        match = _UPSTREAM.match(self.version)
        return match[1] if match else self.version


@frozen
class Apt:
    """apt on some archives, with its state in a folder.

    Every method raises :exc:`LabError` with apt's own words when apt fails. The
    ``progress`` callables are told how much is there, from 0 to 1, at least every
    few seconds, and may raise to stop apt.
    """

    folder: Path

    @classmethod
    def create(cls, folder: Path, archives: Iterable[Archive]) -> Apt:
        """Set the folder up, or set it up anew."""
        for part in ("state/lists/partial", "cache/archives/partial"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        lines = "".join(archive.line() for archive in archives)
        (folder / "sources.list").write_text(lines)
        (folder / "apt.conf").write_text(_CONFIGURATION.format(folder=folder))
        return cls(folder)

    def update(self, progress: Callable[[float], None]) -> None:
        """Bring the package lists up to date."""
        # A list that cannot be fetched is only a warning to apt by default.
        self._run(["-o", "APT::Update::Error-Mode=any", "update"], progress=progress)

    def resolve(self, package: str, suite: str) -> list[Package]:
        """Say what has to be downloaded for a package, and all that it needs."""
        release = ["-t", suite]
        return parse_uris(self._run(["--print-uris", *release, "install", package]))

    def download(
        self,
        packages: Sequence[Package],
        folder: Path,
        progress: Callable[[float], None],
    ) -> None:
        """Download packages to a folder; those that are there already are kept."""
        names = [f"{package.name}={package.version}" for package in packages]
        self._run(["download", *names], progress=progress, folder=folder)

    def _run(
        self,
        arguments: Sequence[str],
        *,
        progress: Callable[[float], None] | None = None,
        folder: Path | None = None,
    ) -> str:
        options = ["-qq", "-c", str(self.folder / "apt.conf")]
        if progress is not None:
            options += ["-o", "APT::Status-Fd=1"]
        lines: list[str] = []
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(
                [shutil.which("apt-get") or "apt-get", *options, *arguments],
                cwd=folder or self.folder,
                env={**os.environ, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            ) as process,
        ):
            try:
                for line in process.stdout or ():
                    lines.append(line)
                    if progress and (status := _STATUS.match(line)):
                        progress(float(status[1]) / 100)
            except BaseException:
                process.kill()
                raise
            if process.wait() == 0:
                return "".join(lines)
            errors.seek(0)
            said = [line for line in errors if not line.startswith("W:")]
        words = " ".join(line.strip() for line in said[-_LAST_LINES:])
        raise LabError(f"apt-get {arguments[-1]} failed: {words or 'no reason given'}")


def parse_uris(text: str) -> list[Package]:
    """Read what ``apt-get --print-uris`` prints."""
    return [
        Package(name, version.replace("%3a", ":"), int(size))
        for _, name, version, size in _URI.findall(text)
    ]


def unpack(folder: Path, tree: Path) -> None:
    """Unpack all packages in a folder into one tree, running none of their scripts."""
    tool = shutil.which("dpkg-deb")
    if tool is None:
        raise LabError("packages cannot be unpacked here: there is no dpkg-deb")
    for package in sorted(folder.glob("*.deb")):
        done = subprocess.run(
            [tool, "-x", package, tree], check=False, capture_output=True, text=True
        )
        if done.returncode:
            raise LabError(f"{package.name} cannot be unpacked: {done.stderr.strip()}")
