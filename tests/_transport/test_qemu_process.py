"""Which process is QEMU, and what it holds, as the host tells it."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qmpballoon import CommandNotFound
from qmpballoon._transport import qemu_process

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from contextlib import AbstractContextManager

# Listens, tells so, and ends when its standard input does. The kernel takes the
# credentials of who begins to listen.
LISTENER = """
import ctypes, socket, sys
name, path = sys.argv[1:3]
ctypes.CDLL(None).prctl(15, name.encode("latin-1"), 0, 0, 0)
with socket.socket(socket.AF_UNIX) as sock:
    sock.bind(path)
    sock.listen()
    print("ready", flush=True)
    sys.stdin.read()
"""


@contextmanager
def listener(
    folder: Path, name: str, *more: str, executable: Path | None = None
) -> Generator[tuple[int, socket.socket]]:
    """Yield the pid of a process of that name, and a connection to it."""
    path = folder / "socket"
    program = executable or Path(sys.executable)
    process = subprocess.Popen(
        [program, "-c", LISTENER, name, path, *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process, socket.socket(socket.AF_UNIX) as sock:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        sock.connect(os.fspath(path))
        yield process.pid, sock


@pytest.mark.parametrize("name", ["qemu-system-x86", "kvm", "qemu-kvm"])
def test_qemu_is_known_by_its_name(tmp_path: Path, name: str) -> None:
    with listener(tmp_path, name) as (pid, sock):
        assert qemu_process.find_peer_pid(sock) == pid


def test_qemu_is_known_by_its_arguments(tmp_path: Path) -> None:
    # As when it is started through its own dynamic linker, and renamed.
    with listener(tmp_path, "vm1", "/opt/bin/qemu-system-x86_64") as (pid, sock):
        assert qemu_process.find_peer_pid(sock) == pid


def test_qemu_is_known_by_its_program(tmp_path: Path) -> None:
    program = tmp_path / "qemu-system-x86_64"
    program.symlink_to(Path(sys.executable).resolve())
    with listener(tmp_path, "vm1", executable=program) as (pid, sock):
        assert qemu_process.find_peer_pid(sock) == pid


@pytest.mark.parametrize("name", ["systemd", "\xff\xfe"])
def test_another_process_is_not_taken_for_qemu(tmp_path: Path, name: str) -> None:
    with listener(tmp_path, name) as (_, sock):
        assert qemu_process.find_peer_pid(sock) is None


def test_over_tcp_nothing_is_known() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as sock,
    ):
        assert qemu_process.find_peer_pid(sock) is None


def test_an_unconnected_socket_has_no_peer() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        assert qemu_process.find_peer_pid(sock) is None


def test_resident_memory_counts_what_is_touched() -> None:
    size = 64 * 1024 * 1024
    before = qemu_process.read_resident(os.getpid())
    assert before is not None
    with mmap.mmap(-1, size) as memory:
        for place in range(0, size, mmap.PAGESIZE):
            memory[place] = 1
        after = qemu_process.read_resident(os.getpid())
        assert after is not None
        # Something else of this process may be given back meanwhile.
        assert after - before >= size * 3 / 4


def test_a_process_with_an_odd_name_has_resident_memory(tmp_path: Path) -> None:
    with listener(tmp_path, "\xff\xfe") as (pid, _):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        assert qemu_process.read_resident(pid) == pages * mmap.PAGESIZE > 0


def test_a_process_that_is_gone_has_none() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
        assert qemu_process.read_resident(process.pid) is None
        assert qemu_process.read_processor_time(process.pid) is None


def test_processor_time_is_that_of_all_threads() -> None:
    before = time.process_time()
    ran = qemu_process.read_processor_time(os.getpid())
    assert ran is not None
    assert before <= ran <= time.process_time()


def test_a_process_that_has_ended_and_is_not_buried_has_none() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert qemu_process.read_resident(process.pid) is None


def test_locked_memory_of_a_process() -> None:
    before = qemu_process.read_locked(os.getpid())
    assert before is not None
    with mmap.mmap(-1, mmap.PAGESIZE) as memory:
        page = (ctypes.c_char * mmap.PAGESIZE).from_buffer(memory)
        assert ctypes.CDLL(None).mlock(page, mmap.PAGESIZE) == 0
        assert qemu_process.read_locked(os.getpid()) == before + mmap.PAGESIZE
        del page
    assert qemu_process.read_huge_pages(os.getpid()) == 0


def test_a_process_that_is_stopped() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        assert qemu_process.read_state(process.pid) == "T"
        process.kill()
    assert qemu_process.read_state(process.pid) is None
    assert qemu_process.read_locked(process.pid) is None


class Cpus:
    """A monitor that knows of CPUs, and of the threads that they run in."""

    def __init__(self, *answers: object) -> None:
        self._answers = answers

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None
    ) -> object:
        assert (command, arguments) == ("query-cpus-fast", None)
        if not self._answers:
            raise CommandNotFound(command, "CommandNotFound", "not found")
        return [*self._answers]

    async def sleep(self, seconds: float) -> None:
        raise NotImplementedError

    def now(self) -> float:
        raise NotImplementedError

    def shield(self, seconds: float) -> AbstractContextManager[object]:
        raise NotImplementedError


async def test_qemu_is_found_by_the_threads_of_its_cpus(tmp_path: Path) -> None:
    with listener(tmp_path, "qemu-system-x86") as (pid, _):
        cpu = {"cpu-index": 0, "thread-id": pid}
        assert await qemu_process.find_qemu_pid(Cpus(cpu, cpu)) == pid
        ours = {"cpu-index": 1, "thread-id": threading.get_native_id()}
        assert await qemu_process.find_qemu_pid(Cpus(cpu, ours)) is None
        assert await qemu_process.find_qemu_pid(Cpus(cpu, {"cpu-index": 1})) is None
    assert await qemu_process.find_qemu_pid(Cpus(cpu)) is None  # it has ended


async def test_a_thread_is_one_of_its_process() -> None:
    with ThreadPoolExecutor(1) as pool:
        thread = pool.submit(threading.get_native_id).result()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(qemu_process, "_looks_like_qemu", lambda _: True)
            cpu = {"thread-id": thread}
            assert await qemu_process.find_qemu_pid(Cpus(cpu)) == os.getpid() != thread
        assert (
            await qemu_process.find_qemu_pid(Cpus(cpu)) is None
        )  # but this is no QEMU


async def test_a_qemu_that_does_not_tell_its_threads() -> None:
    assert await qemu_process.find_qemu_pid(Cpus()) is None
    assert await qemu_process.find_qemu_pid(Cpus("nonsense")) is None
