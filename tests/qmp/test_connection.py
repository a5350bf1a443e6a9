"""The state machine: both roles against each other, and against broken peers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from qmpballoon.errors import ProtocolError
from qmpballoon.qmp import (
    MAX_IN_FLIGHT,
    Connection,
    Event,
    Failure,
    Greeting,
    Limits,
    Request,
    Return,
    Role,
    State,
    Version,
)

if TYPE_CHECKING:
    from qmpballoon.qmp import Id, Message

GREETING = Greeting(Version(10, 0, 2), ("oob",))

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=6,
)
arguments = st.dictionaries(st.text(), json_values, max_size=3)
event_names = st.sampled_from(["BALLOON_CHANGE", "STOP", "SHUTDOWN"])
micros = st.integers(min_value=0, max_value=2**50)


def messages(connection: Connection, data: bytes = b"") -> list[Message]:
    """Return all that the connection makes of some bytes."""
    connection.receive_data(data)
    return list(iter(connection.next_message, None))


def ready_client(*, oob: bool = False, limits: Limits | None = None) -> Connection:
    client = Connection(Role.CLIENT, limits)
    messages(client, Connection(Role.SERVER).send_greeting(GREETING))
    request = json.loads(client.send_negotiation(oob=oob))
    messages(client, json.dumps({"return": {}, "id": request["id"]}).encode())
    assert client.state is State.READY
    return client


def ready_server() -> Connection:
    server = Connection(Role.SERVER)
    server.send_greeting(GREETING)
    return server


def say(message: object) -> bytes:
    return json.dumps(message).encode() + b"\r\n"


class Conversation(RuleBasedStateMachine):
    """A client and a server talk; what goes between them is cut anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.client = Connection(Role.CLIENT)
        self.server = Connection(Role.SERVER)
        self.to_client = bytearray()
        self.to_server = bytearray()
        # What the server has taken in and not answered, in its order.
        self.held: list[Request] = []
        # What each must still get to see, in this order.
        self.sent: list[Request] = []
        self.events: list[Event] = []
        self.answers: dict[Id, Return | Failure] = {}
        # Of the client's commands: which it waits for, and how many are in band.
        self.waiting: list[Id] = []
        self.in_band: set[Id] = set()
        # How much the client has read, and where in all of it each reply ends.
        self.delivered = 0
        self.ends: dict[Id, int] = {}

    @initialize(offered=st.booleans())
    def greet(self, *, offered: bool) -> None:
        greeting = Greeting(Version(7, 2, 22), ("oob",) if offered else ())
        self.to_client += self.server.send_greeting(greeting)

    @precondition(lambda self: self.to_client)
    @rule(size=st.integers(min_value=1, max_value=200))
    def client_reads(self, size: int) -> None:
        data = bytes(self.to_client[:size])
        del self.to_client[:size]
        self.delivered += len(data)
        complete = {i for i, end in self.ends.items() if end <= self.delivered}
        self.in_band -= complete
        for ident in complete:  # it may be used again
            del self.ends[ident]
        for message in messages(self.client, data):
            if isinstance(message, Event):
                assert message == self.events.pop(0)
            elif isinstance(message, Return | Failure):
                assert isinstance(message.id, int)
                assert message == self.answers.pop(message.id)
                self.waiting.remove(message.id)
            else:
                assert message == self.server.greeting

    @precondition(lambda self: self.to_server)
    @rule(size=st.integers(min_value=1, max_value=200))
    def server_reads(self, size: int) -> None:
        data = bytes(self.to_server[:size])
        del self.to_server[:size]
        for message in messages(self.server, data):
            assert message == self.sent.pop(0)
            assert isinstance(message, Request)
            self.held.append(message)

    @precondition(lambda self: self.client.state is State.NEGOTIATING)
    @rule(oob=st.booleans())
    def negotiate(self, *, oob: bool) -> None:
        try:
            data = self.client.send_negotiation(oob=oob)
        except RuntimeError:  # asked already
            assert "qmp_capabilities" in self.client.outstanding
            return
        offered = self.client.greeting is not None and self.client.greeting.capabilities
        assert self.client.oob == bool(oob and offered)
        expected = {"enable": ["oob"]} if self.client.oob else {}
        ident = json.loads(data)["id"]
        self.sent.append(Request("qmp_capabilities", expected, ident))
        self.in_band.add(ident)
        self.to_server += data

    @rule(name=st.text(), arguments=arguments, oob=st.booleans())
    def send(self, name: str, arguments: dict[str, object], *, oob: bool) -> None:
        free = len(self.in_band) < MAX_IN_FLIGHT
        ready = self.client.state is State.READY
        allowed = ready and (self.client.oob if oob else free)
        assert self.client.can_send == (ready and free)
        if not allowed:
            with pytest.raises(RuntimeError):
                self.client.send_command(name, arguments, oob=oob)
            return
        ident, data = self.client.send_command(name, arguments, oob=oob)
        assert data.endswith(b"\n")
        self.sent.append(Request(name, arguments, ident, oob))
        self.waiting.append(ident)
        if not oob:
            self.in_band.add(ident)
        self.to_server += data

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        ident = data.draw(st.sampled_from(self.waiting))
        self.client.abandon(ident)
        self.waiting.remove(ident)
        self.answers.pop(ident, None)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), value=json_values, fails=st.booleans())
    def answer(self, data: st.DataObject, value: object, *, fails: bool) -> None:
        # In order, but for what is run out of band.
        first = next((request for request in self.held if not request.oob), None)
        choices = [request for request in self.held if request.oob or request is first]
        request = data.draw(st.sampled_from(choices))
        self.held.remove(request)
        reply: Return | Failure = Return(value, request.id)
        if fails and request.command != "qmp_capabilities":
            reply = Failure("GenericError", str(value), request.id)
        self.reply(reply)

    @rule(name=event_names, content=arguments, time=st.none() | micros)
    def tell(self, name: str, content: dict[str, object], time: int | None) -> None:
        event = Event(name, content, None if time is None else time / 1_000_000)
        self.events.append(event)
        self.to_client += self.server.send_event(event)

    @invariant()
    def window_is_kept(self) -> None:
        assert self.client.in_flight == len(self.in_band) <= MAX_IN_FLIGHT

    def reply(self, reply: Return | Failure) -> None:
        assert isinstance(reply.id, int)
        self.to_client += self.server.send_reply(reply)
        # It is complete with its last bracket; the newline says nothing.
        self.ends[reply.id] = self.delivered + len(self.to_client) - 1
        if reply.id in self.waiting:
            self.answers[reply.id] = reply

    def teardown(self) -> None:
        """Deliver and answer the rest: each gets all that is meant for it."""
        while self.to_server or self.to_client or self.held:
            if self.to_server:
                self.server_reads(10**6)
            while self.held:
                self.reply(Return("late", self.held.pop(0).id))
            if self.to_client:
                self.client_reads(10**6)
        assert not self.sent
        assert not self.events
        assert not self.answers
        assert not self.waiting
        assert self.client.outstanding == ()


TestConversation = Conversation.TestCase  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]


# One rule at a time.


def test_nothing_may_be_sent_before_the_greeting() -> None:
    client = Connection(Role.CLIENT)
    with pytest.raises(RuntimeError, match="greeting"):
        client.send_negotiation()
    with pytest.raises(RuntimeError, match="greeting"):
        client.send_command("query-status")


def test_nothing_but_the_negotiation_may_follow_the_greeting() -> None:
    client = Connection(Role.CLIENT)
    messages(client, Connection(Role.SERVER).send_greeting(GREETING))
    with pytest.raises(RuntimeError, match="negotiating"):
        client.send_command("query-status")
    client.send_negotiation()
    with pytest.raises(RuntimeError, match="already"):
        client.send_negotiation()
    with pytest.raises(RuntimeError, match="negotiating"):
        client.send_command("query-status")


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("offered", [True, False])
def test_oob_is_negotiated_when_asked_for_and_offered(
    *, asked: bool, offered: bool
) -> None:
    client = Connection(Role.CLIENT)
    greeting = Greeting(None, ("oob",) if offered else ())
    messages(client, Connection(Role.SERVER).send_greeting(greeting))
    request = json.loads(client.send_negotiation(oob=asked))
    assert client.oob is (asked and offered)
    enabled = {"enable": ["oob"]} if client.oob else None
    assert request.get("arguments") == enabled


def test_ids_are_short_and_differ_from_those_in_flight() -> None:
    client, server = ready_client(oob=True), ready_server()
    first = client.send_command("first")[0]
    for _ in range(100):
        ident, _ = client.send_command("next")
        assert ident in set(range(1, 10)) - {first}
        messages(client, server.send_reply(Return({}, ident)))
    idents = {client.send_command("more", oob=True)[0] for _ in range(20)}
    assert len(idents - {first}) == 20


def test_oob_that_was_not_negotiated_is_refused() -> None:
    with pytest.raises(RuntimeError, match="not negotiated"):
        ready_client().send_command("query-status", oob=True)


def test_a_ninth_command_is_refused_but_out_of_band() -> None:
    client = ready_client(oob=True)
    for _ in range(MAX_IN_FLIGHT):
        client.send_command("query-status")
    assert not client.can_send
    with pytest.raises(RuntimeError, match="8 commands are in flight"):
        client.send_command("query-status")
    for _ in range(20):
        client.send_command("query-status", oob=True)
    assert client.in_flight == MAX_IN_FLIGHT


def test_an_abandoned_command_keeps_its_place_until_its_reply() -> None:
    client = ready_client()
    idents = [client.send_command("query-status")[0] for _ in range(MAX_IN_FLIGHT)]
    for ident in idents:
        client.abandon(ident)
    assert not client.can_send
    assert messages(client, say({"return": 1, "id": idents[0]})) == []
    assert client.can_send
    assert client.in_flight == MAX_IN_FLIGHT - 1


def test_abandoning_what_was_answered_changes_nothing() -> None:
    client = ready_client()
    ident, _ = client.send_command("query-status")
    assert messages(client, say({"return": 1, "id": ident})) == [Return(1, ident)]
    client.abandon(ident)
    with pytest.raises(ProtocolError):
        messages(client, say({"return": 1, "id": ident}))


@pytest.mark.parametrize(
    "answer",
    [
        {"return": {}, "id": 99},
        {"return": {}, "id": "1"},
        {"return": {}, "id": 1.0},
        {"return": {}, "id": True},
        {"return": {}, "id": [1]},
        {"return": {}, "id": None},
        {"return": {}},
        {"error": {"class": "GenericError", "desc": "JSON parse error"}},
        {"execute": "stop", "id": 1},
    ],
)
def test_a_reply_to_nothing_is_a_protocol_error(answer: object) -> None:
    client = ready_client()
    ident, _ = client.send_command("query-status")
    assert ident == 1
    with pytest.raises(ProtocolError):
        messages(client, say(answer))
    assert client.outstanding == ("query-status",)


def test_a_refusal_without_id_says_what_qemu_said() -> None:
    client = ready_client()
    error = {"class": "GenericError", "desc": "JSON parse error, stray 'x'"}
    with pytest.raises(ProtocolError, match="JSON parse error, stray 'x'"):
        messages(client, say({"error": error}))


answers = st.one_of(
    st.builds(lambda value: {"return": value}, json_values),
    st.builds(lambda desc: {"error": {"class": "E", "desc": desc}}, st.text()),
)
identities = st.one_of(
    st.just({}),
    st.builds(lambda ident: {"id": ident}, st.integers(0, 10) | json_values),
)
leftovers = st.lists(
    st.builds(lambda answer, ident: say({**answer, **ident}), answers, identities),
    max_size=MAX_IN_FLIGHT,
).map(b"".join)


@given(before=leftovers, late=leftovers)
def test_answers_to_somebody_before_are_passed_over(before: bytes, late: bytes) -> None:
    client = Connection(Role.CLIENT)
    greeting = Connection(Role.SERVER).send_greeting(GREETING)
    assert messages(client, before + greeting) == [GREETING]
    ident = json.loads(client.send_negotiation())["id"]
    assert messages(client, late) == []
    assert not client.can_send
    assert messages(client, say({"return": {}, "id": ident})) == []
    assert client.can_send
    own, _ = client.send_command("query-status")
    assert messages(client, say({"return": 1, "id": own})) == [Return(1, own)]


@pytest.mark.parametrize("greets", [False, True])
def test_a_peer_that_only_answers_others_is_a_protocol_error(greets: bool) -> None:
    client = Connection(Role.CLIENT)
    answer = say({"return": {}, "id": 1})
    most = 2 * MAX_IN_FLIGHT + 1
    if greets:
        messages(client, Connection(Role.SERVER).send_greeting(GREETING))
        client.send_negotiation()
    assert messages(client, answer * most) == []
    with pytest.raises(ProtocolError, match="what was not asked: id 1"):
        messages(client, answer)
    assert client.outstanding == ("qmp_capabilities",) * greets


@pytest.mark.parametrize("greeted", [False, True])
def test_the_negotiation_of_a_client_before_is_as_good(greeted: bool) -> None:
    before = Connection(Role.CLIENT)
    greeting = Connection(Role.SERVER).send_greeting(GREETING)
    messages(before, greeting)
    left = say({"return": {}, "id": json.loads(before.send_negotiation())["id"]})
    client = Connection(Role.CLIENT)
    messages(client, greeting if greeted else left + greeting)
    ident = json.loads(client.send_negotiation())["id"]
    messages(client, left if greeted else b"")
    assert client.can_send is greeted
    own = say({"return": {}, "id": ident})
    if greeted:
        first, _ = client.send_command("query-status")
        assert messages(client, own + say({"return": 1, "id": first})) == [
            Return(1, first)
        ]
    else:
        assert messages(client, own) == []
        assert client.can_send


@pytest.mark.parametrize("oob", [False, True])
def test_the_negotiation_of_a_client_before_may_be_carried_out_for_us(
    oob: bool,
) -> None:
    """QEMU 11.1 does that where a client leaves at once."""
    client = Connection(Role.CLIENT)
    messages(client, Connection(Role.SERVER).send_greeting(GREETING))
    ident = json.loads(client.send_negotiation(oob=oob))["id"]
    error = {
        "class": "CommandNotFound",
        "desc": "Capabilities negotiation is already complete, command ignored",
    }
    reply = say({"error": error, "id": ident})
    if oob:  # whether that client has enabled it is not known
        with pytest.raises(ProtocolError, match="already complete"):
            messages(client, reply)
    else:
        assert messages(client, reply) == []
        assert client.can_send


def test_a_greeting_for_somebody_before_is_passed_over() -> None:
    client = Connection(Role.CLIENT)
    greeting = Connection(Role.SERVER).send_greeting(GREETING)
    assert messages(client, greeting * 2) == [GREETING]
    ident = json.loads(client.send_negotiation())["id"]
    messages(client, greeting + say({"return": {}, "id": ident}))
    assert client.state is State.READY


def test_a_greeting_in_the_middle_is_a_protocol_error() -> None:
    client = ready_client()
    with pytest.raises(ProtocolError, match="greeted again"):
        messages(client, Connection(Role.SERVER).send_greeting(GREETING))


def test_a_refused_negotiation_is_a_protocol_error() -> None:
    client = Connection(Role.CLIENT)
    messages(client, Connection(Role.SERVER).send_greeting(GREETING))
    ident = json.loads(client.send_negotiation())["id"]
    error = {"class": "GenericError", "desc": "nope"}
    with pytest.raises(ProtocolError, match="negotiation failed: nope"):
        messages(client, say({"error": error, "id": ident}))


def test_nothing_runs_out_of_band_before_that_is_negotiated() -> None:
    assert not Connection(Role.CLIENT).oob


def test_an_event_without_a_time_says_so_as_qemu_does() -> None:
    """QEMU sends -1 for both where the host's clock cannot be read."""
    server = Connection(Role.SERVER)
    server.send_greeting(GREETING)
    sent = json.loads(server.send_event(Event("STOP")))
    assert sent["timestamp"] == {"seconds": -1, "microseconds": -1}


def test_closing_tells_what_nobody_will_ever_know() -> None:
    client = ready_client()
    client.send_command("balloon", {"value": 1})
    ident, _ = client.send_command("stop")
    client.abandon(ident)
    assert client.close() == ("balloon", "stop")
    assert client.outstanding == ()
    assert client.state is State.CLOSED
    assert not client.can_send
    assert messages(client, say({"return": {}, "id": 2})) == []
    with pytest.raises(RuntimeError, match="closed"):
        client.send_command("query-status")


LOOP: list[object] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (object(), TypeError),
        (b"bytes", TypeError),
        ({1, 2}, TypeError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        ("\ud800", ValueError),
        (LOOP, ValueError),
    ],
)
def test_arguments_that_json_does_not_know_register_nothing(
    value: object, error: type[Exception]
) -> None:
    client = ready_client()
    with pytest.raises(error):
        client.send_command("balloon", {"value": value})
    assert client.outstanding == ()
    assert client.can_send


def test_arguments_nested_too_deep_register_nothing() -> None:
    client = ready_client()
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ValueError, match="nested too deep"):
        client.send_command("balloon", {"value": value})
    assert client.outstanding == ()


def test_limits_are_those_asked_for() -> None:
    client = ready_client(limits=Limits(size=200))
    with pytest.raises(ProtocolError, match="200 bytes"):
        messages(client, say({"event": "x" * 200}))


def test_each_end_has_its_own_methods() -> None:
    client, server = ready_client(), ready_server()
    for misuse in (
        lambda: client.send_greeting(GREETING),
        lambda: client.send_reply(Return(1, 1)),
        lambda: client.send_event(Event("STOP")),
        lambda: server.send_command("stop"),
        server.send_negotiation,
    ):
        with pytest.raises(RuntimeError, match="'s end of the connection"):
            misuse()


def test_a_server_greets_first_and_once() -> None:
    server = Connection(Role.SERVER)
    with pytest.raises(RuntimeError, match="greeting"):
        server.send_reply(Return(1, 1))
    with pytest.raises(RuntimeError, match="greeting"):
        server.send_event(Event("STOP"))
    server.send_greeting(GREETING)
    with pytest.raises(RuntimeError, match="ready"):
        server.send_greeting(GREETING)


def test_a_greeting_without_version_can_be_sent() -> None:
    data = Connection(Role.SERVER).send_greeting(Greeting(None))
    assert messages(Connection(Role.CLIENT), data) == [Greeting(None)]


def test_a_server_goes_on_after_nonsense() -> None:
    server = ready_server()
    with pytest.raises(ProtocolError):
        messages(server, b"hello\n")
    with pytest.raises(ProtocolError):
        messages(server, say({"id": 1}))
    assert messages(server, say({"execute": "stop"})) == [Request("stop")]


members = st.sampled_from(["return", "error", "event", "QMP", "id", "execute"])


@given(
    st.sampled_from(Role),
    st.lists(st.dictionaries(members, json_values | st.just(2), max_size=3)),
)
def test_no_message_raises_anything_but_a_protocol_error(
    role: Role, peer: list[dict[str, object]]
) -> None:
    end = ready_client() if role is Role.CLIENT else ready_server()
    if role is Role.CLIENT:
        end.send_command("query-status")
    for message in peer:
        try:
            messages(end, say(message))
        except ProtocolError:
            continue
