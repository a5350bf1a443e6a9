"""The tool itself is safe: no shell, private sockets, loopback only, no secret told."""

from __future__ import annotations

import ast
import logging
import stat
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from frontends import CONNECTING, FrontEnd, on_each
from scripted import Session, serve

import qmpballoon
from qmpballoon.cli import _fleet_options, _pages
from qmpballoon.cli.exporter import exporter
from qmpballoon.cli.web import web
from qmpballoon.errors import CommandError, MonitorTimeout
from qmpballoon.qmp import Failure
from qmpballoon.testing import serve as serve_fake
from qmpballoon.testing.lab import _boot

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE: Final = Path(qmpballoon.__file__).parent
MODULES: Final = sorted(PACKAGE.rglob("*.py"))
SHELLS: Final = {
    *("system", "popen", "getoutput", "getstatusoutput"),
    *("create_subprocess_shell", "subprocess_shell"),
}


# No shell.


def shells(source: str) -> Iterator[int]:
    """Yield the lines that have a shell run something."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = getattr(function, "attr", None) or getattr(function, "id", None)
        shell = any(
            keyword.arg == "shell"
            and not (
                isinstance(keyword.value, ast.Constant) and not keyword.value.value
            )
            for keyword in node.keywords
        )
        if name in SHELLS or shell:
            yield node.lineno


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_shell_is_ever_involved(path: Path) -> None:
    assert list(shells(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "line",
    [
        "os.system('true')",
        "os.popen('true')",
        "subprocess.run('true', shell=True)",
        "subprocess.run('true', shell=chosen)",
        "asyncio.create_subprocess_shell('true')",
        "getoutput('true')",
    ],
)
def test_a_shell_would_be_seen(line: str) -> None:
    assert list(shells(f"{line}\nrun('true', shell=False)")) == [1]


# Sockets are for this user alone, and for this machine.


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_fakes_socket_is_private() -> None:
    with serve_fake() as fake:
        assert mode(Path(fake.socket)) == 0o600
        assert mode(Path(fake.socket).parent) == 0o700


def test_the_labs_folder_is_private() -> None:
    with _boot._make_folder() as folder:  # noqa: SLF001
        assert mode(folder) == 0o700


def test_metrics_are_for_this_machine_unless_told() -> None:
    (listen,) = [option for option in exporter.params if option.name == "listen"]
    assert isinstance(listen.default, str)
    assert _fleet_options.read_listen_address(listen.default)[0] == "127.0.0.1"
    assert _fleet_options.read_listen_address("9729") == ("127.0.0.1", 9729)
    assert _fleet_options.read_listen_address(":9729") == ("127.0.0.1", 9729)
    assert _fleet_options.read_listen_address("0.0.0.0:9729") == ("0.0.0.0", 9729)  # noqa: S104


def test_pages_are_for_this_machine_unless_told() -> None:
    (listen,) = [option for option in web.params if option.name == "listen"]
    assert isinstance(listen.default, str)
    assert _pages.read_page_address(listen.default) == ("127.0.0.1", 9730)
    assert _pages.read_page_address("unix:/run/pages") == Path("/run/pages")


# Secrets.

SECRET: Final = "swordfish"  # noqa: S105
COMMANDS: Final = {
    "set_password": {"protocol": "vnc", "password": SECRET},
    "object-add": {"qom-type": "secret", "id": "s", "data": SECRET},
}


@on_each(*CONNECTING)
@pytest.mark.parametrize("command", COMMANDS)
def test_no_secret_is_told(
    front: FrontEnd, command: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither by a log on its most talkative, nor by an exception as it is printed."""
    caplog.set_level(logging.DEBUG)
    reached: list[object] = []

    def script(session: Session) -> None:
        session.greet()
        refused = False
        while True:
            request = session.request()
            if request.command == command:
                reached.append(request.arguments)
                if not refused:
                    failure = Failure("GenericError", "there is no VNC", request.id)
                    session.sock.sendall(session.qmp.send_reply(failure))
                refused = True
            elif request.command == "qom-list":
                child = {"name": "b", "type": "child<virtio-balloon-pci>"}
                session.answer(request, [child])
            else:
                session.answer(request, {})

    async def main(path: str) -> list[BaseException]:
        arguments = COMMANDS[command]
        async with front.open_balloon(path, command_timeout=1) as balloon:
            with pytest.raises(CommandError) as refused:
                await balloon.monitor.execute(command, arguments)
            with pytest.raises(MonitorTimeout) as late:
                await balloon.monitor.execute(command, arguments)
            with pytest.raises(TypeError) as wrong:
                await balloon.monitor.execute(command, {**arguments, "x": object()})
        return [refused.value, late.value, wrong.value]

    with serve(script) as path:
        errors = front.run(main(path))
    assert SECRET in str(reached)
    for error in errors:
        assert SECRET not in "".join(traceback.format_exception(error))
        assert SECRET not in repr(error)
    assert SECRET not in caplog.text
