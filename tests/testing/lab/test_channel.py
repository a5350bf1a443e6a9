"""The lab's serial protocol: any split of the bytes gives the same messages."""

from __future__ import annotations

import socket

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from qmpballoon.testing.lab._channel import Answer, Channel, Decoder, Ready, encode

OUTPUTS = st.text(st.characters(exclude_characters="@", codec="utf-8"), max_size=40)
ANSWERS = st.builds(Answer, st.integers(0, 999), st.integers(0, 255), OUTPUTS)
READIES = st.builds(Ready, st.from_regex(r"[0-9a-z.+-]{1,20}", fullmatch=True))


def written(message: Answer | Ready) -> bytes:
    if isinstance(message, Ready):
        return f"@ready {message.release}\n".encode()
    number, status, output = message.number, message.status, message.output
    return f"@{number} {status}\n{output}\n@end {number}\n".encode()


@given(st.lists(ANSWERS), st.lists(st.integers(0, 400)))
def test_any_split_gives_the_same_answers(
    answers: list[Answer], cuts: list[int]
) -> None:
    data = b"".join(map(written, answers))
    decoder, found, start = Decoder(), list[Answer | Ready](), 0
    for cut in [*sorted(cuts), len(data)]:
        found += decoder.feed(data[start:cut])
        start = max(start, cut)
    assert found == answers


@given(ANSWERS, READIES, st.data())
def test_a_reboot_cuts_an_answer_short(
    answer: Answer, ready: Ready, data: st.DataObject
) -> None:
    whole = written(answer)
    part = whole[: data.draw(st.integers(0, len(whole) - 1))]
    decoder = Decoder()
    assert list(decoder.feed(part)) == []
    assert list(decoder.feed(written(ready) + whole)) == [ready, answer]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_a_request_is_one_line(command: str) -> None:
    line = encode(7, command)
    assert line.count(b"\n") == 1
    assert line.startswith(b"7 ")
    assert line.endswith(b"\n")
    unescaped = line[2:-1].decode().replace("\\\\", "\0").replace("\\n", "\n")
    assert unescaped.replace("\0", "\\") == command.replace("\0", "\\")


async def test_answers_find_who_asked_in_any_order() -> None:
    ours, guests = (trio.socket.from_stdlib_socket(s) for s in socket.socketpair())
    channel = Channel(ours)
    given_to: dict[str, str] = {}

    async def ask(command: str) -> None:
        given_to[command] = (await channel.run(command)).output

    async def answer_backwards() -> None:
        received = b""
        while received.count(b"\n") < 3:
            received += await guests.recv(100)
        for line in reversed(received.decode().splitlines()):
            number, _, command = line.partition(" ")
            await guests.send(written(Answer(int(number), 0, f"{command}!")))

    with ours, guests, trio.fail_after(300):
        async with trio.open_nursery() as nursery:
            for command in "abc":
                nursery.start_soon(ask, command)
            nursery.start_soon(answer_backwards)
    assert given_to == {"a": "a!", "b": "b!", "c": "c!"}


async def test_a_reboot_fails_what_was_asked_before() -> None:
    ours, guests = (trio.socket.from_stdlib_socket(s) for s in socket.socketpair())
    channel = Channel(ours)
    with ours, guests, trio.fail_after(300):
        await guests.send(b"@ready 6.1\n")
        await channel.ready()
        assert channel.release == "6.1"
        await guests.send(b"@ready 6.2\n")
        with pytest.raises(ConnectionAbortedError, match="rebooted under 'true'"):
            await channel.run("true")
        assert channel.release == "6.2"


async def test_a_cancelled_request_leaves_the_channel_usable() -> None:
    ours, guests = (trio.socket.from_stdlib_socket(s) for s in socket.socketpair())
    channel = Channel(ours)
    with ours, guests, trio.fail_after(300):
        with trio.move_on_after(0):
            await channel.run("first")
        await guests.send(written(Answer(1, 0, "late")) + written(Answer(2, 0, "ok")))
        assert (await channel.run("second")).output == "ok"
        # Whether the first was sent is open, but no half of it ever is.
        assert (await guests.recv(100)).endswith(b"2 second\n")


async def test_the_end_of_qemu_is_an_error() -> None:
    ours, guests = (trio.socket.from_stdlib_socket(s) for s in socket.socketpair())
    guests.close()
    with ours, trio.fail_after(300), pytest.raises(ConnectionError, match="went away"):
        await Channel(ours).ready()
