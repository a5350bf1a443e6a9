"""The files of the documentation's set-up, for a server and clients of a test."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import trustme

if TYPE_CHECKING:
    from collections.abc import Iterable

FILES = Path(__file__).parents[2] / "docs" / "howto" / "cluster-files"


def write_cluster_files(
    folder: Path, hosts: Iterable[str], address: str = "127.0.0.1"
) -> Path:
    """Write what the server and each of its users need.

    The passwords of the users are in files of their names, and certificates of theirs
    and of the server's in ``client.pem`` and ``server.pem``. ``stranger.pem`` is
    another authority's.

    Args:
        folder: Where to.
        hosts: The names of the hosts.
        address: The server's.

    Returns:
        The server's configuration.
    """
    ours, other = trustme.CA(), trustme.CA()
    ours.cert_pem.write_to_path(str(folder / "ca.pem"))
    server = ours.issue_cert(address)
    server.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    server.private_key_pem.write_to_path(str(folder / "server.key"))
    for authority, name in ((ours, "client"), (other, "stranger")):
        client = authority.issue_cert("client")
        path = str(folder / f"{name}.pem")
        client.private_key_and_cert_chain_pem.write_to_path(path)
    (folder / "users.acl").write_text(_make_users(folder, hosts))
    configuration = folder / "bus.conf"
    text = (FILES / "bus.conf").read_text()
    text = re.sub("/etc/redis/bus/|/var/lib/redis/bus", f"{folder}/", text)
    configuration.write_text(text)
    return configuration


def _make_users(folder: Path, hosts: Iterable[str]) -> str:
    """Return the access control list, with passwords and with a line for each host."""
    rows = (FILES / "users.acl").read_text().splitlines()
    (of_host,) = (row for row in rows if row.startswith("user host1 "))
    others = [row for row in rows if row != of_host]
    rows = [*others, *(of_host.replace("host1", host) for host in hosts)]
    return "".join(f"{_set_password(folder, row)}\n" for row in rows)


def _set_password(folder: Path, row: str) -> str:
    words = row.split()
    if "PASSWORD" not in row:
        return row
    password = f"{words[1]}'s password"
    (folder / words[1]).write_text(f"{password}\n")
    digest = hashlib.sha256(password.encode()).hexdigest()
    return row.replace("PASSWORD", digest)


def make_url(
    folder: Path,
    port: int,
    user: str,
    *,
    host: str = "127.0.0.1",
    certificate: str = "client.pem",
    password: str = "",
) -> str:
    """Return the URL that a user connects with."""
    return (
        f"valkeys://{user}@{host}:{port}?ca={folder}/ca.pem"
        f"&cert={folder}/{certificate}&password_file={folder}/{password or user}"
    )
