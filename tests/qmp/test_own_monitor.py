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
    list_steps,
    list_undo_steps,
)
from qmpballoon.testing import Machine, profile
from qmpballoon.testing.model.chardevs import SHARED


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
    for step in list_steps("mine")[:count]:
        assert client.execute(step.command, **step.arguments) == {}
    return handed


def test_the_steps_add_a_monitor_that_is_deleted_with_its_client() -> None:
    asking = client("11.1")
    take_steps(asking, 3)
    machine = asking.machine
    ((session, _),) = machine.take_opened()
    assert machine.monitors["mine"].close_action == "delete"
    machine.disconnect(session)
    assert list(machine.monitors) == list(machine.chardevs) == [SHARED]


def test_the_descriptor_goes_with_the_first() -> None:
    assert [step.command for step in list_steps("mine")].index(GETFD) == 0


@pytest.mark.parametrize("version", ["7.2", "11.1"])
@pytest.mark.parametrize("count", range(4))
def test_any_number_of_steps_can_be_taken_back(count: int, version: str) -> None:
    asking = client(version)
    before = asking.execute("qom-list", path="/objects")
    handed = take_steps(asking, min(count, 3 if version == "11.1" else 2))
    for step in list_undo_steps("mine"):
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
