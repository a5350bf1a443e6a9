"""Monitors that are added while QEMU runs: a real QEMU and the fake do the same."""

from __future__ import annotations

import contextlib
import json
import re
import time
from typing import TYPE_CHECKING, Any

from real import DEADLINE, RealMonitor, connected
from test_survival import BOTH, Start

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VERSION = "11.1"
"""The first that has them."""

NAME = "added"
BACKEND = {
    "type": "socket",
    "data": {"addr": {"type": "fd", "data": {"str": NAME}}, "server": False},
}
HUMAN_GREETING = re.compile(rb"QEMU 11\.1\.\d+ monitor - type 'help' for more .*\r\n")
PROMPT = b"(qemu) "


@contextlib.contextmanager
def client(path: Path) -> Iterator[RealMonitor]:
    """Connect and negotiate."""
    with connected(path) as sock:
        monitor = RealMonitor(sock)
        try:
            assert b'"QMP"' in monitor.receive(1)
            negotiate(monitor)
            yield monitor
        finally:
            monitor.close()


def negotiate(monitor: RealMonitor) -> None:
    assert monitor.execute("qmp_capabilities") == {"return": {}}


def add(monitor: RealMonitor, close_action: str) -> RealMonitor:
    """Add a monitor; return the client's end of it."""
    added = add_object(monitor, "monitor-qmp", **{"close-action": close_action})
    # QEMU does not notice that a client leaves before this.
    assert b'"QMP"' in added.receive(1)
    return added


def add_human(monitor: RealMonitor, *, readline: bool = True) -> RealMonitor:
    """Add a human monitor; return the client's end of it, which was greeted."""
    added = add_object(monitor, "monitor-hmp", readline=readline)
    assert HUMAN_GREETING.fullmatch(added.receive(1))
    if readline:
        assert added.receive_exactly(len(PROMPT)) == PROMPT
    return added


def add_object(monitor: RealMonitor, kind: str, **properties: Any) -> RealMonitor:  # noqa: ANN401 - as QEMU takes them
    """Add a monitor of a kind; return the client's end of it."""
    request = {"execute": "getfd", "arguments": {"fdname": NAME}}
    added = monitor.hand_over(json.dumps(request).encode())
    assert b'"return"' in monitor.receive(1)
    monitor.execute("chardev-add", id=NAME, backend=BACKEND)
    answer = monitor.execute(
        "object-add", **{"qom-type": kind}, id=NAME, chardev=NAME, **properties
    )
    assert answer == {"return": {}}
    return added


def list_chardevs(monitor: RealMonitor) -> dict[str, tuple[str, bool]]:
    """Return each character device's other end, and whether a monitor is on it."""
    return {
        each["label"]: (each["filename"].partition("/")[0], each["frontend-open"])
        for each in monitor.execute("query-chardev")["return"]
    }


def list_objects(monitor: RealMonitor) -> set[str]:
    objects = monitor.execute("qom-list", path="/objects")["return"]
    return {each["name"] for each in objects}


def wait_until_left(monitor: RealMonitor) -> tuple[str, bool] | None:
    """Wait until QEMU has noticed that the client left; return the device's state."""
    deadline = time.monotonic() + DEADLINE
    while (state := list_chardevs(monitor).get(NAME)) == ("unix:", True):
        assert time.monotonic() < deadline
    return state


@BOTH
def test_it_is_a_monitor_of_its_own(start: Start, tmp_path: Path) -> None:
    with start(VERSION, tmp_path) as path, client(path) as shared:
        added = add(shared, "delete")
        negotiate(added)
        assert list_chardevs(added)[NAME] == ("unix:", True)
        status = shared.execute("query-status")
        assert status == added.execute("query-status")


@BOTH
def test_both_get_events(start: Start, tmp_path: Path) -> None:
    with start(VERSION, tmp_path) as path, client(path) as shared:
        added = add(shared, "delete")
        negotiate(added)
        for command in ("stop", "cont"):
            shared.execute(command)
        seen = added.receive(1)
        shared.execute("stop")
        seen += added.receive(1)
        assert b'"RESUME"' in seen
        assert b'"STOP"' in seen


@BOTH
def test_it_vanishes_with_its_client(start: Start, tmp_path: Path) -> None:
    with start(VERSION, tmp_path) as path, client(path) as shared:
        before = list_chardevs(shared), list_objects(shared)
        added = add(shared, "delete")
        assert NAME in list_objects(shared)
        added.leave()
        assert wait_until_left(shared) is None
        assert (list_chardevs(shared), list_objects(shared)) == before


@BOTH
def test_it_stays_without_its_client(start: Start, tmp_path: Path) -> None:
    with start(VERSION, tmp_path) as path, client(path) as shared:
        add(shared, "none").leave()
        assert wait_until_left(shared) == (f"disconnected:fd:{NAME}", True)
        assert NAME in list_objects(shared)
        shared.execute("object-del", id=NAME)
        assert list_chardevs(shared)[NAME] == (f"disconnected:fd:{NAME}", False)


@BOTH
def test_it_outlives_the_shared_monitors_client(start: Start, tmp_path: Path) -> None:
    with start(VERSION, tmp_path) as path, contextlib.ExitStack() as stack:
        with client(path) as shared:
            ours = stack.enter_context(_keep(shared))
            negotiate(ours)
        deadline = time.monotonic() + DEADLINE
        while list_chardevs(ours)["compat_monitor0"] != ("disconnected:unix:", True):
            assert time.monotonic() < deadline
        with client(path) as shared:
            assert list_chardevs(ours)["compat_monitor0"] == ("unix:", True)
            assert shared.execute("query-status") == ours.execute("query-status")


@contextlib.contextmanager
def _keep(shared: RealMonitor) -> Iterator[RealMonitor]:
    """Add a monitor whose client stays when that of the shared one leaves."""
    added = add(shared, "delete").take()
    try:
        yield added
    finally:
        added.leave()


@BOTH
def test_another_client_deletes_it(start: Start, tmp_path: Path) -> None:
    with start(VERSION, tmp_path) as path, client(path) as shared:
        added = add(shared, "delete")
        negotiate(added)
        error = added.execute("object-del", id=NAME)["error"]
        assert error["desc"] == "Cannot delete the current QMP monitor"
        assert shared.execute("object-del", id=NAME) == {"return": {}}
        assert list_chardevs(shared)[NAME] == ("unix:", False)
        assert shared.execute("chardev-remove", id=NAME) == {"return": {}}
        assert added.receive_all() == b""


@BOTH
def test_named_descriptors_belong_to_a_monitor(start: Start, tmp_path: Path) -> None:
    with start(VERSION, tmp_path) as path:
        with client(path) as shared:
            added = add(shared, "delete")
            negotiate(added)
            shared.hand_over(b'{"execute": "getfd", "arguments": {"fdname": "kept"}}')
            assert b'"return"' in shared.receive(1)
            assert "error" in added.execute("closefd", fdname="kept")
        with client(path) as shared:
            assert shared.execute("closefd", fdname="kept") == {"return": {}}


@BOTH
def test_all_end_with_qemu(start: Start, tmp_path: Path) -> None:
    with start(VERSION, tmp_path) as path, client(path) as shared:
        added = add(shared, "delete")
        negotiate(added)
        waiting = shared.hand_over(
            b'{"execute": "getfd", "arguments": {"fdname": "waiting"}}'
        )
        assert b'"return"' in shared.receive(1)
        added.send(b'{"execute": "quit"}')
        for end in (added, shared):
            assert b'"SHUTDOWN"' in end.receive_all()
        assert waiting.receive_all() == b""


@BOTH
def test_a_human_monitor_greets_and_stays(start: Start, tmp_path: Path) -> None:
    with start(VERSION, tmp_path) as path, client(path) as shared:
        added = add_human(shared)
        for command in ("cont", "stop"):  # events are none of its
            shared.execute(command)
        added.send(b"\n\r")
        empty = b"\r\n" + PROMPT
        assert added.receive_exactly(2 * len(empty)) == 2 * empty
        added.leave()
        assert wait_until_left(shared) == (f"disconnected:fd:{NAME}", True)
        assert NAME in list_objects(shared)
        error = shared.execute("object-del", id=NAME)["error"]
        assert error["desc"] == "Deleting HMP monitors is not supported"


@BOTH
def test_a_human_monitor_that_edits_no_lines(start: Start, tmp_path: Path) -> None:
    with start(VERSION, tmp_path) as path, client(path) as shared:
        added = add_human(shared, readline=False)
        added.send(b"\0help\r\n")
        said = added.receive(len(b"help\r\n"))
        assert said == len(b"help\r\n") * b"corrupted command\r\n"
        shared.send(b'{"execute": "quit"}')
        assert added.receive_all() == b""
