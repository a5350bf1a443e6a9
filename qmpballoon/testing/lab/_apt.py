"""apt, used without root: the machine's own package archive, and packages from it.

apt stores its package lists, its downloads and its list of installed packages in
folders that its configuration names. The lab gives it folders of its own, in which
nothing is installed. apt then resolves a package to everything that the package
needs, including the C library, downloads it and checks all signatures. None of that
needs root.

The archive's address comes from apt's own sources files: nothing here names a host.
Only the distribution's own archive counts. It is recognised by its suite's name, its
``main`` component and its keyring. Third parties that offer packages for the same
suite are left out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import frozen

from qmpballoon.testing.lab._report import LabError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = [
    "Apt",
    "Archive",
    "Package",
    "choose_archive",
    "installed_archives",
    "parse_deb822",
    "parse_one_line",
    "parse_uris",
    "unpack",
]

_ONE_LINE: Final = re.compile(r"deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<rest>\S.*)")
_KEYRINGS: Final = re.compile(r"(debian|ubuntu)-archive-[^/]*\.(gpg|pgp|asc)")
# What Debian's sources files may have in place of a release's code name.
_ALIASES: Final = ("stable", "testing", "unstable", "sid")

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
// All of apt's files belong to this user, so apt must not change to another user.
APT::Sandbox::User "root";
// The administrator's hooks are for the machine's own state of apt.
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"""
_URI: Final = re.compile(r"'[^']+' (([^_ ]+)_([^_ ]+)_[^_ ]+\.deb) (\d+)\b")
_UPSTREAM: Final = re.compile(r"(?:\d+:)?(\d+(?:\.\d+)*)")
_STATUS: Final = re.compile(r"dlstatus:\d+:([\d.]+):")
# apt's last lines say why it failed; the lines before them are often about mirrors.
_LAST_LINES: Final = 4


@frozen
class Archive:
    """One suite of one archive.

    Attributes:
        uri: The archive's address.
        suite: The suite's name, for example ``"bookworm"``.
        components: The components, for example ``("main",)``.
        signed_by: The keyring to check its signature with, if one is named.
    """

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str | None = None

    def to_line(self) -> str:
        """Write it for a private sources file, for amd64's package lists only.

        The date up to which an unstable suite is valid is not checked: it may have
        passed on a mirror that lags. The signature is checked.
        """
        keyring = f" signed-by={self.signed_by}" if self.signed_by else ""
        options = f"arch=amd64 target=Packages check-valid-until=no{keyring}"
        return f"deb [{options}] {self.uri} {self.suite} main\n"


def installed_archives(root: Path = Path("/")) -> list[Archive]:
    """Read all sources files of the machine, and leave out those of other formats."""
    folder = root / "etc/apt"
    found: list[Archive] = []
    for path in (folder / "sources.list", *sorted(folder.glob("sources.list.d/*"))):
        parse = {".list": parse_one_line, ".sources": parse_deb822}.get(path.suffix)
        if parse is None or not path.is_file():
            continue
        found += parse(path.read_text(errors="replace"))
    return found


def parse_one_line(text: str) -> Iterator[Archive]:
    """Read the ``sources.list`` format."""
    for line in text.splitlines():
        match = _ONE_LINE.match(line.partition("#")[0].strip())
        words = match["rest"].split() if match else []
        if match is None or len(words) < 2:  # noqa: PLR2004 - at least URI and suite
            continue
        pairs = (pair.partition("=") for pair in (match["options"] or "").split())
        options = {name.lower(): value for name, _, value in pairs}
        yield Archive(words[0], words[1], tuple(words[2:]), options.get("signed-by"))


def parse_deb822(text: str) -> Iterator[Archive]:
    """Read the ``*.sources`` format."""
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        fields = {
            name.strip().lower(): value.strip()
            # A line that begins with a space continues the previous field.
            for name, _, value in (
                field.partition(":") for field in re.split(r"\n(?=\S)", stanza)
            )
        }
        if "deb" not in fields.get("types", "").split():
            continue
        if fields.get("enabled", "yes").lower() in {"no", "false", "0"}:
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                components = tuple(fields.get("components", "").split())
                yield Archive(uri, suite, components, fields.get("signed-by"))


def choose_archive(archives: Iterable[Archive], codename: str) -> Archive | None:
    """Pick the distribution's own archive.

    Args:
        archives: All archives of the machine.
        codename: The code name of the machine's release, from os-release. It is
            empty on Debian's unstable.

    Returns:
        The archive of that release. Where the sources files have an alias such as
        ``stable`` in place of the code name, the archive of that alias. ``None``
        where there is neither.
    """
    own = [
        archive
        for archive in archives
        if "main" in archive.components and _is_official(archive.signed_by)
    ]
    for suite in (codename, *_ALIASES):
        for archive in own:
            if archive.suite == suite:
                return archive
    return None


def _is_official(signed_by: str | None) -> bool:
    # An archive without a keyring is checked with the keys that the machine trusts.
    return signed_by is None or bool(_KEYRINGS.fullmatch(Path(signed_by).name))


@frozen
class Package:
    """One package of an archive.

    Attributes:
        name: The package's name.
        version: Its full version, for example ``"1:10.0.13+ds-0+deb13u1"``.
        size: Bytes to download.
    """

    name: str
    version: str
    size: int

    @property
    def upstream(self) -> str:
        """The upstream version's numbers, for example ``"10.0.13"``."""
        match = _UPSTREAM.match(self.version)
        return match[1] if match else self.version


@frozen
class Apt:
    """apt with certain archives, and with its state in a folder.

    When apt fails, every method raises :exc:`LabError` with apt's message. A
    ``progress`` callable is called at least every few seconds with the part that is
    complete, from 0 to 1. An exception that it raises stops apt.

    Attributes:
        folder: apt's state, its configuration and its downloads.
    """

    folder: Path

    @classmethod
    def create(cls, folder: Path, archives: Iterable[Archive]) -> Apt:
        """Make the folder and write its configuration, also where it exists."""
        for part in ("state/lists/partial", "cache/archives/partial"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        lines = "".join(archive.to_line() for archive in archives)
        (folder / "sources.list").write_text(lines)
        (folder / "apt.conf").write_text(_CONFIGURATION.format(folder=folder))
        return cls(folder)

    def update(self, progress: Callable[[float], None]) -> None:
        """Bring the package lists up to date."""
        # A list that cannot be fetched is only a warning to apt by default.
        self._run(["-o", "APT::Update::Error-Mode=any", "update"], progress=progress)

    def resolve(self, package: str, suite: str) -> list[Package]:
        """List a package and everything that it needs."""
        release = ["-t", suite]
        return parse_uris(self._run(["--print-uris", *release, "install", package]))

    def download(
        self,
        packages: Sequence[Package],
        folder: Path,
        progress: Callable[[float], None],
    ) -> None:
        """Download packages to a folder, except those that the folder already has."""
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
            printed = [line for line in errors if not line.startswith("W:")]
        reason = " ".join(line.strip() for line in printed[-_LAST_LINES:])
        raise LabError(f"apt-get {arguments[-1]} failed: {reason or 'no reason given'}")


def parse_uris(text: str) -> list[Package]:
    """Read what ``apt-get --print-uris`` prints."""
    return [
        Package(name, version.replace("%3a", ":"), int(size))
        for _, name, version, size in _URI.findall(text)
    ]


def unpack(folder: Path, tree: Path) -> None:
    """Unpack all packages of a folder into one tree, and run none of their scripts."""
    tool = shutil.which("dpkg-deb")
    if tool is None:
        raise LabError("packages cannot be unpacked here: there is no dpkg-deb")
    for package in sorted(folder.glob("*.deb")):
        done = subprocess.run(
            [tool, "-x", package, tree], check=False, capture_output=True, text=True
        )
        if done.returncode:
            raise LabError(f"{package.name} cannot be unpacked: {done.stderr.strip()}")
