"""What a client of a human monitor sees."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qmpballoon.testing import profile
from qmpballoon.testing.model.chardevs import HmpMonitor
from qmpballoon.testing.model.hmp_session import HmpSession

GREETING = b"QEMU 11.1.3 monitor - type 'help' for more information\r\n"
PROMPT = b"(qemu) "
REFUSAL = (
    b"The simulated QEMU carries out no commands here; use human-monitor-command\r\n"
)
TYPED = st.lists(st.text("a\r\n\0\xe9", max_size=5).map(str.encode), max_size=5)


def open_session(*, readline: bool = True) -> HmpSession:
    return HmpSession(HmpMonitor("h", "c", readline), profile("11.1"))


def test_each_command_is_told_that_none_is_carried_out() -> None:
    session = open_session()
    assert session.take_output() == GREETING + PROMPT
    session.receive(b"info balloon\n\n")
    answers = b"\r\n" + REFUSAL + PROMPT + b"\r\n" + PROMPT
    assert session.take_output() == answers


@given(pieces=TYPED)
def test_each_line_is_answered_however_it_comes(pieces: list[bytes]) -> None:
    session, whole = open_session(), open_session()
    for piece in pieces:
        session.receive(piece)
    whole.receive(b"".join(pieces))
    said = session.take_output()
    assert said == whole.take_output()
    lines = b"".join(pieces).replace(b"\r", b"\n").split(b"\n")
    assert said.count(PROMPT) == len(lines)
    assert said.count(REFUSAL) == sum(map(bool, lines[:-1]))


def test_without_lines_each_byte_is_a_corrupted_command() -> None:
    session = open_session(readline=False)
    session.receive(b"a\0\n")
    assert session.take_output() == GREETING + 2 * b"corrupted command\r\n"


def test_nothing_is_said_once_it_is_closed() -> None:
    session = open_session()
    session.take_output()
    session.closed = True
    session.receive(b"help\n")
    assert session.take_output() == b""
