"""What each role may do, by the documentation's rules, on a real server with TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from attrs import frozen
from cluster_files import make_url, write_cluster_files
from valkey_server import free_port, run_server

from qmpballoon.cluster.valkey import open_bus
from qmpballoon.errors import BusError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from qmpballoon.cluster.valkey import ValkeyBus


@frozen
class Place:
    """A server as the documentation sets it up."""

    folder: Path
    port: int


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("bus")
    configuration = write_cluster_files(folder, ["host1", "host2"])
    port = free_port()
    options = ("--include", str(configuration), "--tls-port", str(port))
    with run_server(folder, *options):
        yield Place(folder, port)


HOSTS = {"host1", "host2"}
ASKS: dict[str, tuple[Callable[[ValkeyBus], Awaitable[object]], set[str]]] = {
    "say how host1 is": (
        lambda bus: bus.publish({"qb:host:host1:state": b"1"}, expires=1000),
        {"host1"},
    ),
    "say two things of host2": (
        lambda bus: bus.publish(
            {"qb:host:host2:state": b"1", "qb:host:host2:vms": b"2"}, expires=1000
        ),
        {"host2"},
    ),
    # Otherwise a host could say so much that nobody can list the others.
    "say something else of host1": (
        lambda bus: bus.publish({"qb:host:host1:more": b"1"}, expires=1),
        set(),
    ),
    "see how host1 is": (
        lambda bus: bus.get(["qb:host:host1:state"]),
        {"host1", "operator", "viewer"},
    ),
    "list the hosts": (
        lambda bus: bus.list_keys("qb:host:"),
        {"operator", "viewer"},
    ),
    "read the policy": (
        lambda bus: bus.get(["qb:policy"]),
        {*HOSTS, "operator", "viewer"},
    ),
    "apply a policy": (
        lambda bus: bus.compare_and_set("qb:policy", b"not there", b"1"),
        {"operator"},
    ),
    "publish a policy": (
        lambda bus: bus.publish({"qb:policy": b"1"}, expires=0.001),
        {"operator"},
    ),
    "read the job": (lambda bus: bus.get(["qb:job"]), {"operator", "viewer"}),
    "set a job": (
        lambda bus: bus.compare_and_set("qb:job", b"none", b"1", expires=1000),
        {"operator"},
    ),
    "read host1's quota": (
        lambda bus: bus.get(["qb:quota:host1"]),
        {"host1", "operator", "viewer"},
    ),
    "set a quota": (
        lambda bus: bus.publish({"qb:quota:host1": b"1"}, expires=0.001),
        {"operator"},
    ),
    "write elsewhere": (lambda bus: bus.publish({"else": b"1"}, expires=1), set()),
    "read elsewhere": (lambda bus: bus.get(["else"]), set()),
}


@pytest.mark.parametrize("user", ["operator", "viewer", "host1", "host2"])
async def test_a_role_may_do_what_it_is_for_and_nothing_else(
    place: Place, user: str
) -> None:
    async def may(ask: Callable[[ValkeyBus], Awaitable[object]]) -> bool:
        try:
            await ask(bus)
        except BusError as error:
            refusals.append(str(error))
            return False
        return True

    refusals: list[str] = []
    async with open_bus(make_url(place.folder, place.port, user)) as bus:
        allowed = {what for what, (ask, _) in ASKS.items() if await may(ask)}
    assert allowed == {what for what, (_, users) in ASKS.items() if user in users}
    words = f"does not allow this to the user {user!r}"
    assert all(words in refusal for refusal in refusals)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"certificate": "stranger.pem"}, r"on TLS|ended the connection"),
        ({"host": "localhost"}, r"not valid for 'localhost'"),
        ({"password": "viewer"}, "does not let the user 'host1' in"),
    ],
)
async def test_others_are_not_let_in(
    place: Place, change: dict[str, str], words: str
) -> None:
    url = make_url(place.folder, place.port, "host1", **change)
    async with open_bus(url) as bus:
        with pytest.raises(BusError, match=words):
            await bus.get(["qb:policy"])


async def test_another_server_is_not_told_the_password(
    place: Place, tmp_path: Path
) -> None:
    write_cluster_files(tmp_path, [])  # another authority, of the same name
    url = make_url(place.folder, place.port, "host1").replace(
        f"ca={place.folder}", f"ca={tmp_path}"
    )
    async with open_bus(url) as bus:
        with pytest.raises(BusError, match="certificate verify failed"):
            await bus.get(["qb:policy"])


async def test_a_password_that_was_changed_is_read_anew(
    place: Place, tmp_path: Path
) -> None:
    url = make_url(place.folder, place.port, "viewer")
    file = tmp_path / "password"
    file.write_text("not yet\n")
    url = url.replace(f"password_file={place.folder}/viewer", f"password_file={file}")
    async with open_bus(url) as bus:
        with pytest.raises(BusError, match="does not let"):
            await bus.get(["qb:policy"])
        file.write_text((place.folder / "viewer").read_text())
        with trio.fail_after(120):
            while True:
                try:
                    await bus.get(["qb:policy"])
                except BusError:
                    await trio.sleep(0.01)
                else:
                    break
