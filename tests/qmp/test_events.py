"""The buffer of events: bounded, in order, and honest about its losses."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpballoon.qmp import Event
from qmpballoon.qmp.events import EventBuffer

names = st.sampled_from(["BALLOON_CHANGE", "STOP", "SHUTDOWN"])


def drain(buffer: EventBuffer) -> list[Event]:
    return list(iter(buffer.get, None))


def test_events_come_out_in_order() -> None:
    buffer = EventBuffer()
    events = [Event(name) for name in ("STOP", "RESUME", "STOP")]
    assert all([buffer.put(event) for event in events])  # noqa: C419 - all are put
    assert len(buffer) == 3
    assert drain(buffer) == events
    assert len(buffer) == 0


def test_only_what_was_asked_for_is_taken() -> None:
    buffer = EventBuffer({"STOP"})
    assert buffer.put(Event("STOP"))
    assert not buffer.put(Event("RESUME"))
    assert drain(buffer) == [Event("STOP")]


def test_the_oldest_of_the_same_name_goes_first() -> None:
    buffer = EventBuffer(capacity=3)
    for event in (Event("SHUTDOWN"), *changes(4)):
        buffer.put(event)
    assert drain(buffer) == [Event("SHUTDOWN"), *changes(4)[2:]]
    assert buffer.lost == {"BALLOON_CHANGE": 2}


def test_a_new_name_pushes_out_the_oldest_of_all() -> None:
    buffer = EventBuffer(capacity=2)
    for event in (Event("STOP"), Event("RESUME"), Event("SHUTDOWN")):
        buffer.put(event)
    assert drain(buffer) == [Event("RESUME"), Event("SHUTDOWN")]
    assert buffer.lost == {"STOP": 1}


def changes(count: int) -> list[Event]:
    return [Event("BALLOON_CHANGE", {"actual": number}) for number in range(count)]


@given(st.lists(names | st.none()), st.integers(min_value=1, max_value=4))
def test_what_is_put_is_read_or_counted_as_lost(
    steps: list[str | None], capacity: int
) -> None:
    buffer = EventBuffer(capacity=capacity)
    put: list[Event] = []
    got: list[Event] = []
    for number, name in enumerate(steps):
        if name is None:
            got += filter(None, [buffer.get()])
        else:
            put.append(Event(name, {"number": number}))
            buffer.put(put[-1])
        assert len(buffer) <= capacity
    got += drain(buffer)
    assert got == [event for event in put if event in got]
    lost = Counter(event.name for event in put) - Counter(event.name for event in got)
    assert buffer.lost == lost


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_buffer_holds_something(capacity: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        EventBuffer(capacity=cast("Any", capacity))


@pytest.mark.parametrize("capacity", [2.5, "2", None, True])
def test_a_bound_that_is_no_number_is_none(capacity: object) -> None:
    with pytest.raises(TypeError, match="whole number of events"):
        EventBuffer(capacity=cast("Any", capacity))


@pytest.mark.parametrize("name", [("STOP", "RESUME"), None, b"STOP"])
def test_what_no_event_is_called_is_refused(name: object) -> None:
    with pytest.raises(TypeError, match="an event's name is"):
        EventBuffer([cast("Any", name)])
