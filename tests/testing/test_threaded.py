"""A fake QEMU in a thread of its own, used without any event loop."""

from __future__ import annotations

import json
import socket
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from qmpballoon import GiB
from qmpballoon.blocking import open_balloon
from qmpballoon.testing import GuestConfig, Machine, MachineConfig, ThreadedFake, serve

if TYPE_CHECKING:
    from collections.abc import Iterator


class Client:
    """The simplest client there can be: a blocking socket, one line a message."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(path)
        self._lines = self._socket.makefile("rb")
        self.greeting = self.read()
        self.execute("qmp_capabilities")

    def read(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise EOFError
        message: dict[str, Any] = json.loads(line)
        return message

    def execute(self, command: str, **arguments: object) -> Any:  # noqa: ANN401
        request = {"execute": command, "arguments": arguments, "id": 1}
        self._socket.sendall(json.dumps(request).encode())
        while "id" not in (message := self.read()):  # an event
            pass
        return message["return"]

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@pytest.fixture
def path() -> Iterator[str]:
    with serve() as fake:
        yield fake.socket


def test_a_client_is_served(path: str) -> None:
    client = Client(path)
    version = client.greeting["QMP"]["version"]["qemu"]
    assert version["major"] == 10
    assert client.execute("query-balloon") == {"actual": 2 << 30}
    client.close()


def test_clients_come_one_after_the_other(path: str) -> None:
    for _ in range(3):
        client = Client(path)
        assert client.execute("query-status")["running"] is True
        client.close()


def test_only_its_owner_can_reach_it(path: str) -> None:
    assert stat.S_IMODE(Path(path).stat().st_mode) == stat.S_IRUSR | stat.S_IWUSR


def test_nothing_is_left_behind() -> None:
    with serve() as fake:
        folder = Path(fake.socket).parent
        assert folder.is_dir()
    assert not folder.exists()


def test_the_vm_is_as_configured(tmp_path: Path) -> None:
    config = MachineConfig(memory=1 << 30, paused=True, name="vm1")
    with serve(config, version="7.2", path=tmp_path / "q") as fake:
        assert fake.socket == str(tmp_path / "q")
        client = Client(fake.socket)
        assert client.greeting["QMP"]["version"]["qemu"]["major"] == 7
        assert client.execute("query-name") == {"name": "vm1"}
        assert client.execute("query-balloon") == {"actual": 1 << 30}
        assert client.execute("query-status")["running"] is False
        client.close()


def test_its_wall_clock_is_the_hosts() -> None:
    before = int(time.time())
    with serve() as fake:
        client = Client(fake.socket)
        device, name = "/machine/peripheral/balloon0", "guest-stats"
        stats = client.execute("qom-get", path=device, property=name)
        assert before <= stats["last-update"] <= time.time() + 1
        client.close()


def test_something_can_be_done_to_it() -> None:
    with serve() as fake:
        client = Client(fake.socket)
        fake.do(Machine.stop)
        assert client.read()["event"] == "STOP"
        assert client.execute("query-status")["status"] == "paused"
        assert fake.do(lambda machine: machine.status) == "paused"
        client.close()


def test_it_tells_its_sizes() -> None:
    with serve() as fake, open_balloon(fake.socket) as balloon:
        assert (fake.actual, fake.target, fake.oom_kills) == (2 * GiB, 2 * GiB, 0)
        assert GiB < fake.available < 2 * GiB
        balloon.resize(GiB)
        assert fake.actual == fake.target == GiB
        assert fake.available < GiB


def test_what_fails_in_it_is_raised_here_and_harms_nobody() -> None:
    with serve() as fake:
        with pytest.raises(ZeroDivisionError):
            fake.do(lambda _: 1 // 0)
        assert fake.do(lambda machine: machine.status) == "running"


def test_the_guest_lives_on_real_time() -> None:
    guest = GuestConfig(inflate_rate=8 << 30, reclaim_rate=8 << 30)
    with serve(MachineConfig(guest=guest)) as fake:
        client = Client(fake.socket)
        client.execute("balloon", value=1 << 30)
        deadline = time.monotonic() + 30
        while client.execute("query-balloon") != {"actual": 1 << 30}:
            assert time.monotonic() < deadline
        client.close()


def test_a_killed_qemu_hangs_up() -> None:
    with serve() as fake:
        client = Client(fake.socket)
        fake.kill()
        with pytest.raises(EOFError):
            client.read()
        client.close()


def test_a_qemu_that_quits_ends() -> None:
    with serve() as fake:
        client = Client(fake.socket)
        client.execute("quit")
        with pytest.raises(EOFError):
            client.read()
        client.close()
        with pytest.raises(trio.RunFinishedError):
            do_for_ever(fake)


def do_for_ever(fake: ThreadedFake) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        fake.do(lambda machine: machine.status)


def test_no_socket_can_be_made_where_there_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), serve(path=tmp_path / "no" / "q"):
        pass


def test_an_exception_in_the_block_comes_out_as_it_is() -> None:
    with pytest.raises(LookupError), serve():
        raise LookupError


def test_no_such_version() -> None:
    with pytest.raises(ValueError, match=r"0\.9"), serve(version="0.9"):
        pass
