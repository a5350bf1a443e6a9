"""Which package archive this machine uses; read from apt's own sources files.

Nothing here names a host: what the machine's administrator chose as mirror is what
is asked. Only the distribution's own archive counts, told by its suite's name, its
``main`` component and its keyring: what a third party offers for the same suite is
none of the lab's business.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Archive", "choose", "installed_sources", "parse_deb822", "parse_one_line"]

_ONE_LINE: Final = re.compile(r"deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<rest>\S.*)")
_KEYRINGS: Final = re.compile(r"(debian|ubuntu)-archive-[^/]*\.(gpg|pgp|asc)")
# By what a Debian machine may call its suite, when it is not by its code name.
_ALIASES: Final = ("stable", "testing", "unstable", "sid")


@frozen
class Archive:
    """One suite of one archive.

    Attributes:
        uri: Where it is.
        suite: As in ``"bookworm"``.
        components: As in ``("main",)``.
        signed_by: The keyring that its signature is checked with, if one is named.
    """

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str | None = None

    def line(self) -> str:
        """Write it for a private sources file, for amd64's package lists only.

        An unstable suite's date may have passed on a mirror that lags; what is
        fetched is for throwaway guests, and its signature is checked all the same.
        """
        keyring = f" signed-by={self.signed_by}" if self.signed_by else ""
        options = f"arch=amd64 target=Packages check-valid-until=no{keyring}"
        return f"deb [{options}] {self.uri} {self.suite} main\n"


def installed_sources(root: Path = Path("/")) -> list[Archive]:
    """Read all sources files of the machine; those that cannot be read are left out."""
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
            # A line that begins with a space continues the field before it.
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


def choose(archives: Iterable[Archive], codename: str) -> Archive | None:
    """Pick the distribution's own archive.

    Args:
        archives: All of the machine's.
        codename: The release that the machine runs, as os-release has it; may be
            empty, as on Debian's unstable.

    Returns:
        The archive of that release or, where the sources only speak of ``stable``
        and the like, of that; ``None`` where there is none.
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
    # Without a keyring of its own, it is checked with the machine's trusted keys.
    return signed_by is None or bool(_KEYRINGS.fullmatch(Path(signed_by).name))
