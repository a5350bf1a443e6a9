"""The bus on a real server, which is stopped, killed and emptied."""

from __future__ import annotations

import logging
import socket
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from trio_peers import serve_whoever_comes
from valkey_server import run_server

from qmpballoon.cluster import valkey
from qmpballoon.cluster.bus import LARGEST_VALUE
from qmpballoon.cluster.valkey import BusAddress, open_bus, parse_bus_address
from qmpballoon.errors import BusError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Collection

    from valkey_server import Server

    from qmpballoon.cluster.valkey import ValkeyBus


# addresses


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("valkey://bus", BusAddress("bus")),
        ("redis://bus:7000/3", BusAddress("bus", 7000, database=3)),
        ("valkeys://h1@[::1]", BusAddress("::1", is_encrypted=True, user="h1")),
        (
            "rediss://a%40b@bus?ca=/c.pem&cert=/h.pem&key=/h.key&password_file=/p%20w",
            BusAddress(
                "bus",
                is_encrypted=True,
                user="a@b",
                ca=Path("/c.pem"),
                certificate=Path("/h.pem"),
                key=Path("/h.key"),
                password_file=Path("/p w"),
            ),
        ),
        ("unix:///run/bus.sock", BusAddress(path="/run/bus.sock")),
        ("unix://h1@/run/a%20b", BusAddress(path="/run/a b", user="h1")),
    ],
)
def test_a_url_is_read(url: str, address: BusAddress) -> None:
    assert parse_bus_address(url) == address


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("bus.example:6379", "malformed: write valkeys://USER@HOST"),
        ("http://bus", "malformed"),
        ("valkey://", "malformed"),
        ("valkey://bus:port", "malformed"),
        ("valkey://[::1", "malformed"),
        ("valkey://bus/db", "malformed"),
        ("valkey://bus?ca", "malformed"),
        ("unix://", "malformed"),
        ("valkeys://h1:S3cret@bus", "holds a password"),
        ("valkey://bus:0", "malformed"),
        ("valkeys://bus?password=S3cret", "has 'password'"),
        ("valkey://bus?ca=/c.pem", "does not ask for TLS"),
        ("valkeys://bus?key=/h.key", "no cert="),
    ],
)
def test_a_url_is_refused_and_not_repeated(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refusal:
        parse_bus_address(url)
    assert "S3cret" not in str(refusal.value)


# values


async def test_values_are_set_read_and_listed(shared_server: Server) -> None:
    async with open_bus(f"unix://{shared_server.path}") as bus:
        await bus.publish({"a*:1": b"one", "a*:2": b"\0\xff"}, expires=1000)
        await bus.publish({"ab:3": b"three"}, expires=1000)
        assert await bus.get(["a*:1", "a*:2", "none"]) == {
            "a*:1": b"one",
            "a*:2": b"\0\xff",
        }
        assert sorted(await bus.list_keys("a*:")) == ["a*:1", "a*:2"]
        assert await bus.get([]) == {}


async def test_more_keys_than_are_asked_for_at_once(
    shared_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(valkey, "_BATCH", 3)
    values = {f"many:{number}": b"%d" % number for number in range(10)}
    async with open_bus(f"unix://{shared_server.path}") as bus:
        await bus.publish(values, expires=1000)
        assert await bus.get(await bus.list_keys("many:")) == values
        monkeypatch.setattr(valkey, "_MOST_KEYS", 9)
        with pytest.raises(BusError, match="more than 9 keys under many:"):
            await bus.list_keys("many:")


async def test_a_value_is_set_only_where_it_is_as_expected(
    shared_server: Server,
) -> None:
    async with open_bus(f"unix://{shared_server.path}") as bus:
        assert await bus.compare_and_set("cas", None, b"1")
        assert not await bus.compare_and_set("cas", None, b"2")
        assert not await bus.compare_and_set("cas", b"2", b"3")
        assert await bus.compare_and_set("cas", b"1", b"2")
        assert await bus.get(["cas"]) == {"cas": b"2"}


async def test_values_vanish(shared_server: Server) -> None:
    async with open_bus(f"unix://{shared_server.path}") as bus:
        await bus.publish({"soon": b"1"}, expires=0.01)
        assert await bus.compare_and_set("too", None, b"1", expires=0.01)
        assert await bus.compare_and_set("stays", None, b"1")
        while await bus.get(["soon", "too"]):
            await trio.lowlevel.checkpoint()
        assert await bus.get(["stays"])


async def test_a_value_that_is_too_large_counts_as_empty(shared_server: Server) -> None:
    async with open_bus(f"unix://{shared_server.path}") as bus:
        most = b"x" * LARGEST_VALUE
        await bus.publish({"most": most, "more": most + b"x"}, expires=1000)
        assert await bus.get(["most", "more"]) == {"most": most, "more": b""}
        # So it is in nobody's way.
        assert not await bus.compare_and_set("more", b"x", b"1")
        assert await bus.compare_and_set("more", b"", b"1")


async def test_what_another_program_has_written_hides_no_other_value(
    shared_server: Server,
) -> None:
    with socket.socket(socket.AF_UNIX) as another:
        another.connect(f"{shared_server.path}")
        another.sendall(b"LPUSH list 1\r\n")
        assert another.recv(100) == b":1\r\n"
    async with open_bus(f"unix://{shared_server.path}") as bus:
        await bus.publish({"ours": b"1"}, expires=1000)
        assert await bus.get(["list", "ours"]) == {"list": b"", "ours": b"1"}
        assert not await bus.compare_and_set("list", b"1", b"2")
        assert await bus.compare_and_set("list", b"", b"2")


# failures


async def ask_until_it_answers(bus: ValkeyBus) -> dict[str, bytes]:
    while True:
        try:
            return await bus.get(["kept"])
        except BusError:
            await trio.sleep(0.01)


async def test_a_cancelled_call_leaves_the_bus_usable(tmp_path: Path) -> None:
    with run_server(tmp_path) as server:
        async with open_bus(f"unix://{server.path}") as bus:
            await bus.publish({"kept": b"1", "other": b"2"}, expires=1000)
            server.stop()
            with trio.move_on_after(0.05) as scope:
                await bus.get(["other"])
            assert scope.cancelled_caught
            server.go_on()
            # Not the reply to the other call, which comes first.
            assert await bus.get(["kept"]) == {"kept": b"1"}


async def test_a_server_that_stands_still_is_told_and_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_server(tmp_path) as server:
        async with open_bus(f"unix://{server.path}") as bus:
            await bus.publish({"kept": b"1"}, expires=1000)
        monkeypatch.setattr(valkey, "_ANSWER", 0.05)
        async with open_bus(f"unix://{server.path}") as bus:
            await ask_until_it_answers(bus)
            server.stop()
            with pytest.raises(BusError, match="does not answer"):
                await bus.get(["kept"])
            with pytest.raises(BusError, match="does not answer"):  # to its greeting
                await bus.get(["kept"])
            monkeypatch.setattr(valkey, "_ANSWER", 120.0)
            server.go_on()
            assert await ask_until_it_answers(bus) == {"kept": b"1"}


async def test_a_server_that_was_killed_is_told_and_used_again(tmp_path: Path) -> None:
    with run_server(tmp_path) as server:
        async with open_bus(f"unix://{server.path}") as bus:
            await bus.publish({"kept": b"1"}, expires=1000)
            server.kill()
            with pytest.raises(
                BusError, match=r"ended the connection|cannot be reached"
            ):
                await bus.get(["kept"])
            server.start()
            assert await ask_until_it_answers(bus) == {}


async def test_a_server_that_is_gone_is_not_asked_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(valkey, "_FIRST_PAUSE", 1e6)
    monkeypatch.setattr(valkey, "_LONGEST_PAUSE", 1e6)
    path = tmp_path / "bus"
    with socket.socket(socket.AF_UNIX) as listener:
        async with open_bus(f"unix://{path}") as bus:
            with pytest.raises(BusError, match="No such file"):
                await bus.get(["kept"])
            listener.bind(str(path))
            listener.listen()
            listener.settimeout(0)
            for _ in range(20):
                with pytest.raises(BusError, match="No such file"):
                    await bus.get(["kept"])
            with pytest.raises(BlockingIOError):
                listener.accept()


async def test_a_peer_that_is_no_server() -> None:
    async def greet(stream: trio.SocketStream) -> None:
        await stream.send_all(b"220 mail.example ESMTP\r\n")

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_whoever_comes, greet, listeners)
        async with open_bus(f"valkey://127.0.0.1:{port}") as bus:
            with pytest.raises(BusError, match=f"127.0.0.1:{port}"):
                await bus.get(["kept"])
        nursery.cancel_scope.cancel()


GREETING = b"%4\r\n+server\r\n+x\r\n+version\r\n+7.0.0\r\n+proto\r\n:3\r\n+id\r\n:5\r\n"


@asynccontextmanager
async def greeting(reply: bytes) -> AsyncGenerator[tuple[ValkeyBus, list[int]]]:
    """Have a server that greets as it should, and then says the same to everything.

    Yields:
        A bus on it, and how many commands each of its connections was sent.
    """
    commands: list[int] = []

    async def serve(stream: trio.SocketStream) -> None:
        number = len(commands)
        commands.append(0)
        async for data in stream:
            # Each is one array, and what they hold here has no asterisk.
            for command in bytes(data).split(b"*")[1:]:
                await stream.send_all(GREETING if b"HELLO" in command else reply)
                commands[number] += 1

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_whoever_comes, serve, listeners)
        async with open_bus(f"valkey://127.0.0.1:{port}") as bus:
            yield bus, commands
        nursery.cancel_scope.cancel()


CALLS: dict[str, Callable[[ValkeyBus], Awaitable[object]]] = {
    "get": lambda bus: bus.get(["one", "two"]),
    "list": lambda bus: bus.list_keys("qb:"),
    "publish": lambda bus: bus.publish({"one": b"1", "two": b"2"}, expires=1),
    "set": lambda bus: bus.compare_and_set("one", None, b"1"),
}


@pytest.mark.parametrize(
    ("reply", "calls"),
    [
        (b":5\r\n", CALLS),
        (b"#t\r\n", CALLS.keys() - {"set"}),
        (b"%1\r\n+a\r\n+b\r\n", CALLS),
        (b"*0\r\n", CALLS.keys() - {"get"}),
        (b"*2\r\n$1\r\n0\r\n:7\r\n", CALLS),
        (b"*2\r\n$1\r\nx\r\n*1\r\n$1\r\na\r\n", CALLS),
        (b"*2\r\n$1\r\n0\r\n*1\r\n:5\r\n", CALLS),
        (b"_\r\n", CALLS.keys() - {"get"}),
        (b"\0\xff\r\n", CALLS),
        (b"$9999999\r\n" + b"x" * (3 * LARGEST_VALUE), CALLS),
        (b"-ERR \x1b[31m\r\n", CALLS),
    ],
)
async def test_a_server_that_answers_nonsense(
    reply: bytes, calls: Collection[str]
) -> None:
    for call in calls:
        async with greeting(reply) as (bus, _):
            with pytest.raises(BusError, match=r"is it Valkey|refuses") as error:
                await CALLS[call](bus)
            assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("reply", "remedy"),
    [
        (b"-READONLY You can't write against a replica.\r\n", "name the server that"),
        (b"-WRONGTYPE Operation against a key\r\n", "a database of its own"),
        (b"-OOM command not allowed\r\n", "raise its maxmemory"),
        (b"-LOADING Redis is loading\r\n", "wait until it has read"),
        (b"-ERR unknown command\r\n", "see its log"),
    ],
)
async def test_a_refusal_says_what_to_do(reply: bytes, remedy: str) -> None:
    async with greeting(reply) as (bus, _):
        with pytest.raises(BusError, match=remedy):
            await bus.publish({"kept": b"1"}, expires=1)


async def test_who_asks_and_does_not_wait_long_is_not_left_with_a_dead_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def ask(bus: ValkeyBus) -> None:
        with suppress(BusError):
            await bus.get(["kept"])

    async with greeting(b"") as (bus, commands):
        # A greeting and a question; then either another one, or another connection.
        for seconds, asked in ((120.0, 2), (0.0, 3)):
            monkeypatch.setattr(valkey, "_ANSWER", seconds)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, bus)
                with trio.fail_after(120):
                    while len(commands) < 2 and sum(commands) < asked:
                        await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        assert len(commands) == 2


async def test_a_server_that_stands_still_before_tls_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(valkey, "_CONNECT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        async with open_bus(f"valkeys://127.0.0.1:{port}") as bus:
            with pytest.raises(BusError, match="does not answer"):
                await bus.get(["kept"])


async def test_no_password_is_logged(
    shared_server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    file = tmp_path / "password"
    file.write_text("S3cret\n")
    url = f"unix://operator@{shared_server.path}?password_file={file}"
    async with open_bus(url) as bus:
        with pytest.raises(BusError, match="does not let the user 'operator' in") as no:
            await bus.get(["kept"])
    assert "S3cret" not in caplog.text + str(no.value) + repr(bus)


async def test_a_missing_file_is_named(shared_server: Server, tmp_path: Path) -> None:
    file = tmp_path / "none"
    async with open_bus(f"unix://{shared_server.path}?password_file={file}") as bus:
        with pytest.raises(BusError, match=f"{file}: No such file"):
            await bus.get(["kept"])
