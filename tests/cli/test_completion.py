"""What a shell completes, by click's interface, and in a real bash."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

import click
import pytest
from click.shell_completion import (
    CompletionItem,
    ShellComplete,
    get_completion_class,
)

from qmpballoon.address import UnixAddress
from qmpballoon.cli._group import command_line
from qmpballoon.fleet import processes
from qmpballoon.fleet.processes import FoundMonitor, QemuProcess
from qmpballoon.fleet.vm_spec import Refused

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

VARIABLE = "_QMPBALLOON_COMPLETE"
ONE_VM = (["status"], ["resize"], ["reclaim"], ["watch"])
FLEETS = (
    ["fleet", "status"],
    ["fleet", "plan"],
    ["fleet", "run"],
    ["fleet", "reclaim", "1G"],
    ["exporter"],
    ["doctor"],
)
FILES = (
    ["fake"],
    ["plot"],
    ["plot", "--output"],
    ["watch", "vm.qmp", "--record"],
    ["reclaim", "vm.qmp", "--report"],
    ["demo", "--report"],
)


def complete(words: list[str], incomplete: str) -> list[tuple[str, str, str | None]]:
    """Return type, value and help of all that click offers."""
    shell = ShellComplete(command_line, {}, "qmpballoon", VARIABLE)
    offered: list[CompletionItem[str]] = shell.get_completions(words, incomplete)
    return [(item.type, item.value, item.help) for item in offered]


@pytest.fixture
def vms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let QEMUs run on this host: libvirt's, odd ones, and one that is refused."""

    def monitor(path: str) -> FoundMonitor:
        return FoundMonitor(UnixAddress(path), path)

    found: list[QemuProcess | Refused] = [
        QemuProcess(1, 1, "web", (monitor("/run/vms/web.qmp"),)),
        QemuProcess(2, 2, "db\n", (monitor("/run/vms/db.qmp"),)),
        QemuProcess(3, 3, "mail", (monitor("/run/libvirt/qemu/mail/monitor.sock"),)),
        QemuProcess(4, 4, "mute", (), "it has no monitor"),
        QemuProcess(6, 6, "odd", (monitor("/run/vms/a\nplain,b.qmp"),)),
        Refused("5", "it is somebody else's"),
    ]

    def find(_: object) -> list[QemuProcess | Refused]:
        return found

    monkeypatch.setattr(processes, "find_processes", find)


@pytest.mark.usefixtures("vms")
@pytest.mark.parametrize("words", [*ONE_VM, *FLEETS], ids=" ".join)
def test_vms_of_this_host_are_offered_besides_files(words: list[str]) -> None:
    assert complete(words, "") == [
        ("plain", "/run/vms/web.qmp", "web"),
        ("plain", "/run/vms/db.qmp", "db\\n"),
        ("plain", "libvirt:mail", "mail"),
        ("file", "", None),
    ]
    assert complete(words, "libvirt:") == [
        ("plain", "libvirt:mail", "mail"),
        ("file", "libvirt:", None),
    ]
    assert complete(words, "/run/vms/w")[0] == ("plain", "/run/vms/web.qmp", "web")
    assert complete(words, "./w") == [("file", "./w", None)]


@pytest.mark.usefixtures("vms")
def test_a_fleet_is_of_several() -> None:
    words = ["fleet", "status", "/run/vms/web.qmp"]
    assert ("plain", "/run/vms/db.qmp", "db\\n") in complete(words, "/run/vms/d")


@pytest.mark.parametrize("words", FILES, ids=" ".join)
def test_files_are_completed(words: list[str]) -> None:
    assert complete(words, "a") == [("file", "a", None)]


def test_a_script_that_does_not_say_what_is_completed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("COMP_LINE", raising=False)
    import_module("qmpballoon.cli._completion")  # tells click of its shells
    shell = get_completion_class("bash")
    assert shell is not None
    made = shell(command_line, {}, "qmpballoon", VARIABLE)
    assert made.get_completion_args() == ([], "")


def test_folders_options_and_words_are_completed() -> None:
    assert complete(["fleet", "plan", "--cgroup"], "/") == [("dir", "/", None)]
    assert [value for _, value, _ in complete(["reclaim"], "--rep")] == ["--report"]
    assert [value for _, value, _ in complete(["fleet"], "re")] == ["reclaim"]


def list_options(group: click.Group) -> Iterator[tuple[str, click.Parameter]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from list_options(command)
        for parameter in command.params:
            yield name, parameter


def test_every_option_for_a_file_completes_files() -> None:
    asked = [
        parameter.shell_complete(click.Context(command_line), "a")
        for _, parameter in list_options(command_line)
        if (parameter.metavar or "").startswith("FILE")
    ]
    assert len(asked) == 6
    assert all([item.type for item in items] == ["file"] for items in asked)


def test_where_processes_cannot_be_read_there_are_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: object) -> None:
        raise OSError

    monkeypatch.setattr(processes, "find_processes", fail)
    assert complete(["status"], "a") == [("file", "a", None)]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from qmpballoon.cli import main; main()"],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {VARIABLE: f"{shell}_source"},
    )
    assert f"{VARIABLE}={shell}_complete" in done.stdout
    assert done.stderr == ""


# The command on a host with two QEMUs, one of them libvirt's.
PROGRAM = """
import os
from qmpballoon.address import UnixAddress
from qmpballoon.cli import main
from qmpballoon.fleet import processes

def make(pid, name, path):
    monitor = processes.FoundMonitor(UnixAddress(path), path)
    return processes.QemuProcess(pid, pid, name, (monitor,))

processes.find_processes = lambda _: [
    make(1, "web", f"{os.getcwd()}/web.qmp"),
    make(2, "mail", "/run/libvirt/qemu/mail/monitor.sock"),
]
main()
"""


class Bash:
    """A bash on a terminal of its own, in which the command is completed."""

    def __init__(self, master: int) -> None:
        self._master = master

    def type(self, keys: str, until: str) -> str:
        """Type keys, and return what bash shows until a text has come."""
        os.write(self._master, keys.encode())
        shown, end = "", time.monotonic() + 60
        while until not in shown:
            left = end - time.monotonic()
            assert left > 0, shown
            assert select.select([self._master], [], [], left)[0], shown
            shown += os.read(self._master, 65536).decode()
        return shown

    def complete(self, line: str) -> str:
        """Return a line after the tab key: what the command is then given."""
        # Ctrl-A and "words" make of it the arguments of a program that shows them.
        shown = self.type(f"{line}\t\x01words \n", "\n<end>")
        return shown.rpartition("\n<begin>")[2].partition("\r\n<end>")[0].strip()


@pytest.fixture
def bash(tmp_path: Path) -> Iterator[Bash]:
    with open_bash(tmp_path) as bash:
        yield bash


@contextmanager
def open_bash(folder: Path) -> Generator[Bash]:
    program = folder / "bin" / "qmpballoon"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{PROGRAM}", encoding="utf-8")
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PS1": "", "TERM": "dumb", "INPUTRC": ""}
    shell = shutil.which("bash")
    assert shell
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [shell, "--norc", "--noprofile", "-i"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        cwd=folder,
        env=environment,
        start_new_session=True,
    )
    os.close(terminal)
    try:
        bash = Bash(master)
        bash.type(
            "words() { printf '\\n<begin>%s' \"$*\"; printf '\\n<%s>\\n' end; };"
            f' eval "$({VARIABLE}=bash_source qmpballoon)"; echo rea"dy"\n',
            "\nready",
        )
        yield bash
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_in_bash(bash: Bash, tmp_path: Path) -> None:
    for name in ("vm1.qmp", "a report.svg", "fleet.toml", "welcome"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "vm2.qmp").touch()
    for line, whole in {
        "qmpballoon stat": "qmpballoon status",
        "qmpballoon status v": "qmpballoon status vm1.qmp",
        "qmpballoon status fold": "qmpballoon status folder/",
        "qmpballoon status folder/v": "qmpballoon status folder/vm2.qmp",
        f"qmpballoon status {tmp_path}/v": f"qmpballoon status {tmp_path}/vm1.qmp",
        "qmpballoon status unix:v": "qmpballoon status unix:vm1.qmp",
        # A VM, a VM or a file that begin alike, and a name with a colon.
        f"qmpballoon status {tmp_path}/web": f"qmpballoon status {tmp_path}/web.qmp",
        f"qmpballoon status {tmp_path}/w": f"qmpballoon status {tmp_path}/we",
        "qmpballoon status lib": "qmpballoon status libvirt:mail",
        "qmpballoon fleet status libvirt:m": "qmpballoon fleet status libvirt:mail",
        "qmpballoon fleet plan vm1.qmp fl": "qmpballoon fleet plan vm1.qmp fleet.toml",
        "qmpballoon reclaim vm1.qmp --rep": "qmpballoon reclaim vm1.qmp --report",
        "qmpballoon reclaim vm1.qmp --report a": (
            "qmpballoon reclaim vm1.qmp --report a report.svg"
        ),
        "qmpballoon fleet plan --policy sh": "qmpballoon fleet plan --policy shares",
        "qmpballoon fleet plan --cgroup fol": "qmpballoon fleet plan --cgroup folder/",
    }.items():
        assert bash.complete(line) == whole
