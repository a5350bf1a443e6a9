"""Requests are queued and events are sent as a monitor of QEMU does it."""

from __future__ import annotations

import json

from talk import make

from qmpballoon.testing import SECOND


def test_out_of_band_overtakes_and_the_ninth_request_waits() -> None:
    client = make(reply_delay=SECOND)
    session = client.machine.connect()
    session.receive(
        b'{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}'
    )
    client.advance(SECOND)
    session.take_output()
    session.receive(b'{"execute": "query-status", "id": 1}' * 7)
    session.receive(b'{"exec-oob": "query-status", "id": "oob"}')
    assert json.loads(session.take_output())["id"] == "oob"
    session.receive(b'{"execute": "query-status", "id": 1}')
    assert not session.reading
    session.receive(b'{"exec-oob": "query-status", "id": "late"}')
    assert session.take_output() == b""
    client.advance(SECOND)
    ids = [json.loads(line)["id"] for line in session.take_output().splitlines()]
    assert sorted(ids, key=str) == [1] * 8 + ["late"]
    assert ids[0] == 1


def test_without_out_of_band_requests_wait_for_each_other() -> None:
    client = make()
    client.machine.reply_delay = SECOND
    client.session.receive(b'{"execute": "query-status"}' * 3)
    client.advance(5 * SECOND // 2)
    assert client.raw.count(b'"return": {"status"') == 2
    client.advance(SECOND)
    assert client.raw.count(b'"return": {"status"') == 3


def test_events_are_lost_on_those_who_have_not_negotiated() -> None:
    client = make()
    silent = client.machine.connect()
    silent.take_output()
    client.execute("stop")
    assert silent.take_output() == b""
    assert len(client.named("STOP")) == 1


def test_quit_says_so_and_hangs_up() -> None:
    client = make()
    client.session.receive(b'{"execute": "quit"}{"execute": "query-status"}')
    lines = client.session.take_output().splitlines()
    assert [next(iter(json.loads(line))) for line in lines] == ["timestamp", "return"]
    assert client.session.closed
    assert client.machine.find_next_event() is None


def test_a_deadly_command_gets_no_answer() -> None:
    client = make("11.1")
    path = "/machine/peripheral/balloon0/virtio-backend"
    request = {"execute": "x-query-virtio-status", "arguments": {"path": path}}
    client.session.receive(json.dumps(request).encode())
    assert client.session.take_output() == b""
    assert client.session.closed
