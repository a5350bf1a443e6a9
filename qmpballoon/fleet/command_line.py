r"""Reads from a QEMU's command line which QMP monitors it has, and its VM's name.

Pure: nothing is opened. The caller reads the files that ``-readconfig`` names.

All of these are the same monitor::

    -qmp unix:/run/vm.qmp,server=on,wait=off
    -chardev socket,id=c,path=/run/vm.qmp,server=yes,wait=no -qmp chardev:c
    -chardev socket,id=c,path=/run/vm.qmp,server -mon c,mode=control
    -chardev socket,id=c,path=/run/vm.qmp,server=on -object monitor-qmp,id=m,chardev=c

Sources: ``-qmp``, ``-mon``, ``-chardev``, ``-object``, ``-name`` and ``-readconfig`` in
QEMU's manual; ``qemu_chr_parse_compat`` and ``qemu_config_parse`` in its source.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from attrs import frozen

from qmpballoon.address import AbstractAddress, TcpAddress, UnixAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from qmpballoon.address import Address

__all__ = ["CommandLine", "MonitorOption", "parse_command_line"]

_Members: TypeAlias = dict[str, str]

# What QEMU reads as yes: qapi_bool_parse in its source.
_YES: Final = frozenset({"on", "yes", "true", "y"})
_BOOLS: Final = frozenset({"server", "wait", "telnet", "tn3270", "websocket"})
# Options that are read, and the member of each whose name may be left out.
_GROUPS: Final = {
    "chardev": "backend",
    "mon": "chardev",
    "name": "guest",
    "object": "qom-type",
}
_HEADING: Final = re.compile(r'\[\s*([\w-]+)(?:\s+"([^"]*)")?\s*\]')
_SETTING: Final = re.compile(r'([\w.-]+)\s*=\s*"([^"]*)"')
# Where to connect to, by the host that QEMU listens on.
_ANYWHERE: Final = {"": "localhost", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with


@frozen
class MonitorOption:
    """A QMP monitor on a command line.

    Attributes:
        address: Where a client connects to; ``None`` if that is not known. A path is as
            QEMU sees it.
        descriptor: The descriptor of the socket, if QEMU was given one that listens.
        problem: Why no client can connect; empty if one can. It continues a sentence
            that begins with "its monitor".
    """

    address: Address | None = None
    descriptor: int | None = None
    problem: str = ""


@frozen
class CommandLine:
    """What a QEMU's command line says.

    Attributes:
        name: The VM's name; empty if it has none.
        monitors: Its QMP monitors, in the order of the command line.
        problem: Why it may say more than could be read; empty if all was read.
    """

    name: str
    monitors: tuple[MonitorOption, ...]
    problem: str = ""


def parse_command_line(
    arguments: Sequence[str], read_config: Callable[[str], str]
) -> CommandLine:
    """Return what a QEMU's command line says.

    Args:
        arguments: The command line, without the program.
        read_config: Returns the text of a file that ``-readconfig`` names. It may raise
            OSError.
    """
    options: list[tuple[str, _Members]] = []
    problem = ""
    for name, text in _split_options(arguments):
        if name in ("qmp", "qmp-pretty"):
            options.append(("qmp", {"text": text}))
        elif name == "readconfig":
            try:
                options += _parse_config(read_config(text))
            except OSError as error:
                problem = f"its -readconfig {text} cannot be read: {error.strerror}"
        elif name in _GROUPS:
            options.append((name, _parse_option(name, text)))
    chardevs = {
        members.get("id"): members for name, members in options if name == "chardev"
    }
    monitors = (_parse_monitor(name, members, chardevs) for name, members in options)
    names = [members.get("guest", "") for name, members in options if name == "name"]
    return CommandLine(
        name=next(filter(None, reversed(names)), ""),
        monitors=tuple(monitor for monitor in monitors if monitor is not None),
        problem=problem,
    )


def _split_options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each option that is followed by an argument, and that argument."""
    for number in range(len(arguments) - 1):
        option = arguments[number]
        if option.startswith("-"):
            yield option.lstrip("-"), arguments[number + 1]


def _parse_option(name: str, text: str) -> _Members:
    """Parse an option's value: QEMU's own syntax, or JSON."""
    if not text.startswith("{"):
        return _parse_members(text, _GROUPS[name])
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    members = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    return {key: each for key, each in members.items() if isinstance(each, str)}


def _parse_members(text: str, first: str) -> _Members:
    """Parse ``name=value,...``, QEMU's syntax for options.

    A name without a value is on, or off if it begins with ``no``. Two commas stand for
    one comma in a value.

    Args:
        text: The option's value.
        first: The name of the first member, which may be left out.
    """
    members: _Members = {}
    parts = text.replace(",,", "\0").split(",")
    for number, part in enumerate(parts):
        name, equals, value = part.replace("\0", ",").partition("=")
        if number == 0 and not equals:
            name, value = first, name
        elif not equals:
            is_off = name.startswith("no") and name[2:] in _BOOLS
            name, value = (name[2:], "off") if is_off else (name, "on")
        members[name] = value
    return members


def _parse_config(text: str) -> Iterator[tuple[str, _Members]]:
    """Yield the groups of a file as ``-readconfig`` takes it."""
    members: _Members = {}
    for line in text.splitlines():
        heading = _HEADING.match(line.strip())
        setting = _SETTING.match(line.strip())
        if heading is not None:
            members = {} if heading[2] is None else {"id": heading[2]}
            yield heading[1], members  # it is filled by the lines below
        elif setting is not None:
            members[setting[1]] = setting[2]


# Monitors


def _parse_monitor(
    name: str, members: _Members, chardevs: dict[str | None, _Members]
) -> MonitorOption | None:
    """Return the QMP monitor that an option makes; ``None`` if it makes none."""
    match name, members:
        case "qmp", {"text": text}:
            kind, _, rest = text.partition(":")
            if kind != "chardev":
                return _parse_shorthand(text)
            members = {"chardev": rest}
        case "mon", {"mode": "control"}:
            pass
        case "object", {"qom-type": "monitor-qmp"}:
            pass
        case _:
            return None
    chardev = members.get("chardev", "")
    if chardev not in chardevs:
        return MonitorOption(problem=f"has no -chardev of the id {chardev!r}")
    return _parse_chardev(chardevs[chardev])


def _parse_shorthand(text: str) -> MonitorOption | None:
    """Parse what ``-qmp`` takes: ``unix:PATH,server=on`` or ``tcp:HOST:PORT,...``."""
    kind, _, rest = text.partition(":")
    if kind == "unix":
        return _parse_chardev({"backend": "socket", **_parse_members(rest, "path")})
    if kind in ("tcp", "telnet", "tn3270", "websocket"):
        members = {"backend": "socket", **_parse_members(rest, "where")}
        members["host"], _, members["port"] = members["where"].rpartition(":")
        return _parse_chardev(members if kind == "tcp" else {**members, kind: "on"})
    return None if kind == "none" else _parse_chardev({"backend": kind.split(",")[0]})


def _parse_chardev(chardev: _Members) -> MonitorOption:
    """Return the monitor on a ``-chardev``."""
    address: Address | None
    try:
        address = _parse_address(chardev)
    except ValueError as error:
        return MonitorOption(problem=f"has an address that cannot be: {error}")
    descriptor = chardev.get("fd", "")
    return MonitorOption(
        address,
        int(descriptor) if descriptor.isascii() and descriptor.isdigit() else None,
        _find_problem(chardev, str(address or "a socket")),
    )


def _parse_address(chardev: _Members) -> Address | None:
    if "path" in chardev:
        is_abstract = chardev.get("abstract") in _YES
        return (AbstractAddress if is_abstract else UnixAddress)(chardev["path"])
    if "port" not in chardev:
        return None
    host = chardev.get("host", "").strip("[]")
    return TcpAddress(_ANYWHERE.get(host, host), int(chardev["port"]))


def _find_problem(chardev: _Members, where: str) -> str:
    """Say why no client can speak QMP on a ``-chardev``; empty if one can."""
    backend = chardev.get("backend", "")
    if backend != "socket":
        return f"is on {backend or 'nothing'}, and not on a socket"
    if chardev.get("server") not in _YES:
        return f"connects to {where} itself, and does not listen: write server=on"
    for protocol in ("telnet", "tn3270", "websocket"):
        if chardev.get(protocol) in _YES:
            return f"speaks {protocol} on {where}: leave {protocol}=on out"
    if "tls-creds" in chardev:
        return f"wants TLS on {where}, for which a fleet has no certificates"
    is_padded = chardev.get("tight", "on") not in _YES
    if is_padded and chardev.get("abstract") in _YES:
        return f"is at {where} with tight=off: leave that out"
    return ""
