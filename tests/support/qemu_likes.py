"""Processes that are, or only look like, a QEMU with a monitor."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

__all__ = ["NOBODY", "fake_process", "listening", "make_program"]

NOBODY: Final = 65534
# Listens on the path after -listen, as soon as it says so on its standard output.
_LISTEN: Final = """
import socket, sys, time
sock = socket.socket(socket.AF_UNIX)
sock.bind(sys.argv[sys.argv.index("-listen") + 1])
sock.listen()
print("listening", flush=True)
time.sleep(600)
"""


def make_program(folder: Path, name: str = "qemu-system-test") -> Path:
    """Make a program whose file is called like a QEMU; it is this Python."""
    program = folder / name
    shutil.copy(Path(sys.executable).resolve(), program)
    program.chmod(0o755)
    return program


@contextmanager
def listening(
    command: Sequence[str | Path],
    path: Path,
    *arguments: str,
    argv0: str | None = None,
    prefix: Sequence[str] = (),
) -> Generator[int]:
    """Run a program that listens on a path; yield its process id.

    Args:
        command: The program: a Python, and what it needs to be started by.
        path: Where it listens.
        arguments: What else its command line says.
        argv0: What it is called.
        prefix: A command that runs it, in the same process.
    """
    line = [*map(str, command), "-S", "-c", _LISTEN, "-listen", str(path)]
    if argv0 is not None:
        line = ["bash", "-c", 'exec -a "$0" "$@"', argv0, *line]
    # Under another name, a Python does not find its library. A copy finds one.
    is_ours = Path(command[-1]).resolve().samefile(sys.executable)
    home = {"PYTHONHOME": sys.base_prefix} if is_ours else {}
    with subprocess.Popen(
        [*prefix, *line, *arguments],
        stdout=subprocess.PIPE,
        env={**os.environ, **home},
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"listening\n"
            yield process.pid
        finally:
            process.kill()


def fake_process(
    proc: Path,
    pid: int,
    line: Sequence[str],
    *,
    exe: str = "/usr/bin/qemu-system-x86_64",
    uid: int = 0,
    started: int = 22,
    links: Mapping[str, str] | None = None,
) -> Path:
    """Make the part of a process file system that tells of one process."""
    folder = proc / str(pid)
    (folder / "ns").mkdir(parents=True)
    (folder / "fd").mkdir()
    (folder / "net").mkdir()
    (folder / "cmdline").write_bytes(b"".join(os.fsencode(a) + b"\0" for a in line))
    (folder / "status").write_text(f"Name:\tx\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n")
    figures = [*range(4, 22), started, *range(23, 40)]
    (folder / "stat").write_text(f"{pid} (a b) c) S {' '.join(map(str, figures))}")
    (folder / "net" / "unix").write_text(
        "Num RefCount Protocol Flags Type St Inode Path\n"
    )
    for name, target in {"exe": exe, "cwd": "/srv", **(links or {})}.items():
        (folder / name).symlink_to(target)
    return folder
