"""What is sent for a monitor of one's own, and what takes any part of it back."""

from __future__ import annotations

import random

import pytest
from attrs import define
from talk import Client

from qmpballoon.qmp.messages import Version
from qmpballoon.qmp.own_monitor import (
    GETFD,
    can_add_monitor,
    find_leftovers,
    list_steps,
    list_undo_steps,
    make_name,
)
from qmpballoon.testing import Machine, profile
from qmpballoon.testing.model.chardevs import SHARED, QmpMonitor

NAME = make_name(7)


@define
class Handed:
    """A descriptor as the model sees it."""

    is_socket: bool = True
    is_connected: bool = True
    closed: bool = False

    def close(self) -> None:
        self.closed = True


def client(version: str) -> Client:
    return Client(Machine(profile=profile(version), rng=random.Random(0)))


def take_steps(client: Client, count: int) -> Handed:
    """Send so many steps, the first with a descriptor."""
    handed = Handed()
    client.session.receive(b" ", [handed])
    for step in list_steps(NAME)[:count]:
        assert client.execute(step.command, **step.arguments) == {}
    return handed


def test_the_steps_add_a_monitor_that_is_deleted_with_its_client() -> None:
    asking = client("11.1")
    take_steps(asking, 3)
    machine = asking.machine
    ((session, _),) = machine.take_opened()
    added = machine.monitors[NAME]
    assert isinstance(added, QmpMonitor)
    assert added.close_action == "delete"
    machine.disconnect(session)
    assert list(machine.monitors) == list(machine.chardevs) == [SHARED]


def test_the_descriptor_goes_with_the_first() -> None:
    assert [step.command for step in list_steps(NAME)].index(GETFD) == 0


@pytest.mark.parametrize("version", ["7.2", "11.1"])
@pytest.mark.parametrize("count", range(4))
def test_any_number_of_steps_can_be_taken_back(count: int, version: str) -> None:
    asking = client(version)
    before = asking.execute("qom-list", path="/objects")
    handed = take_steps(asking, min(count, 3 if version == "11.1" else 2))
    for step in list_undo_steps(NAME):
        asking.execute(step.command, **step.arguments)
    machine = asking.machine
    assert list(machine.monitors) == list(machine.chardevs) == [SHARED]
    assert machine.monitors[SHARED].files == {}
    assert handed.closed == (count > 0)
    assert asking.execute("qom-list", path="/objects") == before


@pytest.mark.parametrize(
    ("numbers", "can"),
    [((7, 2, 22), False), ((10, 2, 0), False), ((11, 0, 50), True), ((12, 0, 0), True)],
)
def test_which_versions_are_asked(numbers: tuple[int, int, int], *, can: bool) -> None:
    assert can_add_monitor(Version(*numbers)) == can


def test_one_that_tells_no_version_is_asked() -> None:
    assert can_add_monitor(None)


def entry(label: object, filename: object) -> dict[str, object]:
    return {"label": label, "filename": filename, "frontend-open": True}


def test_only_ours_that_are_dead_are_left_over() -> None:
    """The file names are those that QEMU 11.1.3 was seen to give."""
    answer = [
        entry("qmpballoon-1", "disconnected:fd:qmpballoon-1"),
        entry("qmpballoon-2", "unix:"),
        entry("qmp", "disconnected:unix:/run/vm.qmp,server=on"),
        entry("theirs", "disconnected:fd:theirs"),
        entry("qmpballoon-3", "disconnected:unix:/run/qmpballoon,server=on"),
        entry("qmpballoon-4", "disconnected:fd:qmpballoon-4"),
    ]
    assert list(find_leftovers(answer)) == ["qmpballoon-1", "qmpballoon-4"]


@pytest.mark.parametrize("answer", [None, {}, "qmpballoon-1", [1, {}, entry(1, 2)]])
def test_an_answer_that_is_none_names_nothing(answer: object) -> None:
    assert list(find_leftovers(answer)) == []


@pytest.mark.parametrize("count", [2, 3])
def test_what_a_client_leaves_that_is_killed_meanwhile_is_found(count: int) -> None:
    asking = client("11.1")
    handed = take_steps(asking, count)
    assert list(find_leftovers(asking.execute("query-chardev"))) == []
    handed.is_connected = False
    for session, _ in asking.machine.take_opened():
        asking.machine.miss_client(session)
    assert list(find_leftovers(asking.execute("query-chardev"))) == [NAME]
