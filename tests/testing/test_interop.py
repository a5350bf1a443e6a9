"""Other people's clients on our fake, and our client on another's server."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
from command import PROGRAM
from qemu.qmp import Message, QMPClient
from qemu.qmp.protocol import AsyncProtocol

from qmpballoon import GiB, MiB, open_balloon
from qmpballoon.testing import PROFILES, Machine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REQUESTS = b"""
{"execute": "qmp_capabilities", "id": "negotiate"}
{"execute": "query-balloon", "id": "size"}
{"execute": "balloon", "arguments": {"value": 1073741824}, "id": "shrink"}
{"execute": "quit", "id": "quit"}
"""

PERL = r"""
use strict; use warnings; use IO::Socket::UNIX;
my $qemu = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die "connect: $!";
$qemu->autoflush(1);
sub ask {
    print $qemu $_[0];
    while (my $line = <$qemu>) { return $line if $line =~ /"(return|error)"/ }
    die "QEMU hung up";
}
die unless <$qemu> =~ /"QMP"/;
ask('{"execute": "qmp_capabilities"}');
ask('{"execute": "balloon", "arguments": {"value": 1610612736}}');
for (1 .. 500) {
    last if ask('{"execute": "query-balloon"}') =~ /"actual": 1610612736\b/;
    select(undef, undef, undef, 0.02);
}
print ask('{"execute": "query-balloon"}');
"""


@pytest.fixture(params=PROFILES)
def fake(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Run ``qmpballoon fake``; return its socket."""
    path = tmp_path / "qmp"
    arguments = ("fake", str(path), "--profile", request.param, "--seed", "7")
    with subprocess.Popen([*PROGRAM, *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"listens" in process.stdout.readline()
        yield path
        process.terminate()


def foreign(program: str) -> str:
    found = shutil.which(program)
    return found or pytest.skip(f"{program} is not installed")


def test_socat(fake: Path) -> None:
    command = [foreign("socat"), "-", f"UNIX-CONNECT:{fake}"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        # It stays open: a client that closes its end has left.
        process.stdin.write(REQUESTS)
        process.stdin.flush()
        messages = [json.loads(line) for line in process.stdout]
    assert "QMP" in messages[0]
    answers = {m["id"]: m["return"] for m in messages if "id" in m}
    assert answers == {
        "negotiate": {},
        "size": {"actual": 2 * GiB},
        "shrink": {},
        "quit": {},
    }
    assert [m["event"] for m in messages if "event" in m][-1] == "SHUTDOWN"


def test_a_few_lines_of_perl(fake: Path) -> None:
    command = [foreign("perl"), "-e", PERL, str(fake)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    assert json.loads(done.stdout) == {"return": {"actual": 1536 * MiB}}


class Server(QMPClient):
    """qemu.qmp's end of the line, turned round: it greets, and is asked."""

    def __init__(self) -> None:
        super().__init__("server")
        self.session = Machine().connect()

    async def _establish_session(self) -> None:
        for message in self._said():
            await self._send(message)
        await AsyncProtocol._establish_session(self)  # noqa: SLF001 -- as its heirs do

    async def _on_message(self, msg: Message) -> None:
        self.session.receive(bytes(msg))
        for message in self._said():
            await self._outgoing.put(message)

    def _said(self) -> list[Message]:
        return [Message(line) for line in self.session.take_output().splitlines()]


def test_our_client_on_the_server_of_qemu_itself(tmp_path: Path) -> None:
    path = str(tmp_path / "qmp")

    async def serve(listening: Any) -> None:  # noqa: ANN401 -- trio's own
        server = Server()
        await server.start_server(path)
        listening()
        await server.accept()
        while server.runstate.name == "RUNNING":
            await server.runstate_changed()
        # The client hung up; that is how it ends.
        with suppress(EOFError):
            await server.disconnect()

    async def main() -> tuple[int, int | None, bool]:
        listening = trio.Event()

        def tell() -> None:
            trio.from_thread.run_sync(listening.set)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                trio.to_thread.run_sync, lambda: asyncio.run(serve(tell))
            )
            await listening.wait()
            async with open_balloon(path) as balloon:
                info = await balloon.query()
                await balloon.set_target(GiB)
                return info.actual, balloon.target, await balloon.is_running()

    assert trio.run(main) == (2 * GiB, GiB, True)
