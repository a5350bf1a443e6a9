"""What a decoded value means, and what means nothing."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpballoon.errors import ProtocolError
from qmpballoon.qmp.messages import (
    Event,
    Failure,
    Greeting,
    Request,
    Return,
    Version,
    parse,
    parse_request,
)

GREETING = {
    "QMP": {
        "version": {
            "qemu": {"micro": 22, "minor": 2, "major": 7},
            "package": "Debian 1:7.2+dfsg-7",
        },
        "capabilities": ["oob"],
    }
}

names = st.sampled_from(
    [
        *("return", "error", "event", "QMP", "id", "data", "timestamp", "class"),
        *("desc", "execute", "exec-oob", "arguments", "seconds", "microseconds"),
        *("version", "qemu", "major", "minor", "micro", "package", "capabilities"),
    ]
)
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), 2**63, 1e308])
    | st.floats()
    | names
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=5)
    ),
    max_leaves=20,
)


@given(anything)
def test_any_value_is_a_message_or_a_protocol_error(value: object) -> None:
    try:
        message = parse(value)
    except ProtocolError:
        pass
    else:
        assert isinstance(message, Greeting | Return | Failure | Event)


@given(anything)
def test_any_value_is_a_command_or_a_protocol_error(value: object) -> None:
    try:
        request = parse_request(value)
    except ProtocolError:
        pass
    else:
        assert isinstance(request.command, str)


@given(anything, anything)
def test_the_time_of_an_event_can_always_be_asked_for(
    seconds: object, micros: object
) -> None:
    event = parse(
        {"event": "STOP", "timestamp": {"seconds": seconds, "microseconds": micros}}
    )
    assert isinstance(event, Event)
    assert (event.time is None) == (event.timestamp is None)


def test_a_greeting() -> None:
    greeting = parse(GREETING)
    assert greeting == Greeting(Version(7, 2, 22), ("oob",))
    assert isinstance(greeting, Greeting)
    assert greeting.version is not None
    assert greeting.version.package == "Debian 1:7.2+dfsg-7"


@pytest.mark.parametrize(
    "version", [None, {}, {"qemu": "7.2"}, {"qemu": {"major": 7, "minor": "2"}}]
)
def test_a_version_that_cannot_be_read_is_none(version: object) -> None:
    assert parse({"QMP": {"version": version}}) == Greeting(None)


def test_capabilities_that_are_no_names_cannot_be_asked_for() -> None:
    greeting = parse({"QMP": {"capabilities": [{"name": "async"}, "oob", 1]}})
    assert greeting == Greeting(None, ("oob",))


def test_versions_compare_by_number() -> None:
    assert Version(7, 2, 22, "a") < Version(10, 0, 0, "b")
    assert Version(7, 2, 22, "a") == Version(7, 2, 22, "b")
    assert str(Version(10, 0, 2, "Debian")) == "10.0.2"


def test_replies() -> None:
    assert parse({"return": {"actual": 1}, "id": 7}) == Return({"actual": 1}, 7)
    assert parse({"return": None}) == Return(None, None)
    error = {"class": "DeviceNotFound", "desc": "Device 'x' not found"}
    assert parse({"error": error, "id": "a"}) == Failure(
        "DeviceNotFound", "Device 'x' not found", "a"
    )


def test_events() -> None:
    event = parse(
        {
            "timestamp": {"seconds": 1_700_000_000, "microseconds": 250_000},
            "event": "BALLOON_CHANGE",
            "data": {"actual": 944766976},
        }
    )
    assert event == Event("BALLOON_CHANGE", {"actual": 944766976}, 1_700_000_000.25)
    assert isinstance(event, Event)
    assert event.time == datetime(2023, 11, 14, 22, 13, 20, 250_000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "micros", "time"), [(0, 0, 0.0), (7, 0, 7.0), (7, 999_999, 7.999999)]
)
def test_a_timestamp_may_be_the_first_of_all_and_the_last_of_a_second(
    seconds: int, micros: int, time: float
) -> None:
    timestamp = {"seconds": seconds, "microseconds": micros}
    assert parse({"event": "STOP", "timestamp": timestamp}) == Event(
        "STOP", timestamp=time
    )


def test_a_timestamp_is_the_float_that_is_nearest() -> None:
    timestamp = {"seconds": 1, "microseconds": 254_344}
    assert parse({"event": "STOP", "timestamp": timestamp}) == Event(
        "STOP", timestamp=1.254344
    )


@pytest.mark.parametrize(
    "timestamp",
    [
        None,
        {"seconds": -1, "microseconds": -1},
        {"seconds": 10**400, "microseconds": 0},
        {"seconds": 10**15, "microseconds": 0},
        {"seconds": 1, "microseconds": 10**400},
        {"seconds": 1, "microseconds": 1_000_000},
        {"seconds": 253_402_300_799, "microseconds": 0},
    ],
)
def test_a_timestamp_that_means_nothing_is_none(timestamp: object) -> None:
    event = parse({"event": "STOP", "timestamp": timestamp})
    assert isinstance(event, Event)
    assert event == Event("STOP")
    assert event.time is None


def test_members_that_nobody_knows_are_ignored() -> None:
    assert parse({"return": 1, "id": 2, "took": 3}) == Return(1, 2)
    assert parse({"event": "STOP", "vm": "a"}) == Event("STOP")


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"id": 1},
        {"event": 1},
        {"event": "STOP", "data": []},
        {"error": "no"},
        {"error": {"class": "GenericError"}},
        {"QMP": []},
        {"QMP": {"capabilities": {}}},
    ],
)
def test_no_messages(value: object) -> None:
    with pytest.raises(ProtocolError):
        parse(value)


def test_commands() -> None:
    assert parse_request({"execute": "stop"}) == Request("stop")
    assert parse_request(
        {"exec-oob": "migrate-pause", "arguments": {"a": 1}, "id": [1.5]}
    ) == Request("migrate-pause", {"a": 1}, [1.5], oob=True)


@pytest.mark.parametrize(
    "value", [None, [], {}, {"execute": 1}, {"execute": "stop", "arguments": []}]
)
def test_no_commands(value: object) -> None:
    with pytest.raises(ProtocolError):
        parse_request(value)


def test_what_is_wrong_is_shown_in_short() -> None:
    with pytest.raises(ProtocolError) as caught:
        parse(["x" * 100_000])
    assert len(str(caught.value)) < 200
