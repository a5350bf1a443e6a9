"""The decoder: any split gives the same messages, and no bytes break it."""

from __future__ import annotations

import gc
import json
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qmpballoon.errors import ProtocolError
from qmpballoon.qmp import decoder as module
from qmpballoon.qmp.decoder import Decoder, Limits, MessageScan

if TYPE_CHECKING:
    from collections.abc import Iterable

GOOD = b'{"return": {}, "id": 1}\r\n'

# What a careless decoder takes for structure.
nasty_text = st.text(alphabet='{}[]"\\,: \r\n\tau\0\x7fé€😀') | st.text()
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | nasty_text
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(nasty_text, inner, max_size=4)
    ),
    max_leaves=12,
)
objects = st.dictionaries(nasty_text, values, max_size=4)
blanks = st.text(alphabet=" \t\r\n", max_size=3) | st.just("\r\n")


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[object], bytes]:
    """Draw some messages, and a way in which a peer may write them."""
    messages = draw(st.lists(objects | st.lists(values, max_size=4), max_size=6))
    text = draw(blanks)
    for message in messages:
        text += json.dumps(
            message,
            ensure_ascii=draw(st.booleans()),
            indent=draw(st.sampled_from([None, 4])),
        )
        text += draw(blanks)
    return list(messages), text.encode()


def pieces(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """Cut ``data`` at some places, taken modulo its length."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:stop] for start, stop in pairwise(places)]


def decode(decoder: Decoder, *chunks: bytes) -> list[object]:
    """Return all that comes out; a broken message comes out as its error."""
    seen: list[object] = []
    for chunk in chunks:
        decoder.feed(chunk)
        while True:
            try:
                value = decoder.next()
            except ProtocolError as error:
                seen.append(error)
            else:
                if value is None:
                    break
                seen.append(value)
    return seen


def errors(seen: list[object]) -> list[str]:
    return [str(error) for error in seen if isinstance(error, ProtocolError)]


def bytewise(data: bytes) -> list[bytes]:
    return [data[place : place + 1] for place in range(len(data))]


cuts = st.lists(st.integers(min_value=0, max_value=2**16), max_size=8)


@given(streams(), cuts)
def test_any_split_gives_the_same_messages(
    stream: tuple[list[object], bytes], cuts: list[int]
) -> None:
    messages, data = stream
    decoder = Decoder()
    assert decode(decoder, *pieces(data, cuts)) == messages
    assert decoder.pending == 0


@given(streams())
def test_single_bytes_give_the_same_messages(
    stream: tuple[list[object], bytes],
) -> None:
    messages, data = stream
    assert decode(Decoder(), *bytewise(data)) == messages


@given(objects)
def test_a_message_is_what_json_makes_of_it(message: dict[str, object]) -> None:
    data = json.dumps(message).encode()
    assert decode(Decoder(), data) == [json.loads(data)]


@pytest.mark.parametrize(
    "message",
    [
        {"a": '}{"\\'},
        {"a": "\\"},
        {"a": '\\"}'},
        {'"}': "\\\\"},
        {"text": "x" * 10_000},  # no short line any more
        {"escapes": '\\"' * 10_000},
        {"braces": '"}{[' * 3000},
    ],
)
def test_a_message_may_be_cut_anywhere(message: dict[str, object]) -> None:
    data = json.dumps(message).encode() + b"\r\n"
    places = range(len(data)) if len(data) < 100 else [*range(40), 5001, 5002, 5003]
    for place in places:
        assert decode(Decoder(), data[:place], data[place:]) == [message]


def test_a_message_is_given_out_with_its_last_byte() -> None:
    # Whoever waits for a newline waits for ever: some peers send none.
    decoder = Decoder()
    assert decode(decoder, GOOD.strip()) == [json.loads(GOOD)]
    assert decoder.pending == 0


def test_many_messages_of_one_chunk_come_in_order() -> None:
    data = b"".join(b'{"id":%d}' % number for number in range(5000))
    assert decode(Decoder(), data) == [{"id": number} for number in range(5000)]


@given(st.binary(), cuts)
@example(b"[[{}]\\", [])
@example(b'{"\\', [1, 2])
@example(b"}" * 100, [50])
def test_garbage_is_a_protocol_error_and_nothing_else(
    garbage: bytes, cuts: list[int]
) -> None:
    decode(Decoder(), *pieces(garbage, cuts))


json_like = st.text(alphabet='{}[]",:\\ \ntrue1.5e-nNaI\x01é').map(str.encode)


@given(json_like, cuts)
def test_what_looks_like_json_is_a_protocol_error_and_nothing_else(
    garbage: bytes, cuts: list[int]
) -> None:
    decode(Decoder(), *pieces(garbage, cuts))


@given(streams(), st.binary(), cuts)
def test_garbage_takes_nothing_back(
    stream: tuple[list[object], bytes], garbage: bytes, cuts: list[int]
) -> None:
    messages, data = stream
    seen = decode(Decoder(), *pieces(data + b"\n#" + garbage, cuts))
    assert seen[: len(messages)] == messages
    assert errors(seen[len(messages) : len(messages) + 1])


@given(st.binary().filter(lambda data: data.strip(b" \t\r\n")[:1] not in b"{["), cuts)
def test_the_line_after_garbage_is_decoded(garbage: bytes, cuts: list[int]) -> None:
    line = garbage.replace(b"\n", b"") + b"\n"
    seen = decode(Decoder(), *pieces(line + GOOD, cuts))
    assert len(errors(seen)) == 1
    assert seen[1:] == [json.loads(GOOD)]


@pytest.mark.parametrize(
    "bad",
    [
        b"{bad}",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":-1e999}',
        b'{"a":1,"a":2}',
        b'{"a":{"b":1,"b":1}}',
        b'{"a":"\xff"}',
        b'{"a":"\\ud800"}',
        b'{"\\udfff":1}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":"tab\there"}',
        b'{"a":"\\x"}',
        b"{]",
        b"[}",
        b"{'a':1}",
        b'{"a":1,}',
        b'{"a":01}',
        b'{"a":' + b"1" * 5000 + b"}",
    ],
)
@pytest.mark.parametrize("cut", [0, 5, -1])
def test_a_broken_message_is_refused_and_the_next_is_not(bad: bytes, cut: int) -> None:
    data = bad + b"\n"
    seen = decode(Decoder(), data[:cut], data[cut:], GOOD)
    assert len(errors(seen)) == 1
    assert seen[1:] == [json.loads(GOOD)]


PADDING = ["x" * 50] * 200  # no short line any more


@given(objects, st.integers(min_value=0), cuts)
def test_the_same_key_twice_is_refused_in_a_long_message_too(
    message: dict[str, object], place: int, cuts: list[int]
) -> None:
    keys = list(message) or ["a"]
    twice = json.dumps(keys[place % len(keys)])
    members = [json.dumps(value) for value in (PADDING, message)]
    good = f'{{"a": [{", ".join(members)}]}}\n'
    bad = f'{{"a": [{", ".join(members)}, {{{twice}: 1, "": 2, {twice}: 3}}]}}\n'
    seen = decode(Decoder(), *pieces((good + bad + good).encode(), cuts))
    assert "the same key twice" in errors(seen)[0]
    assert [seen[0], *seen[2:]] == [json.loads(good)] * 2


@given(streams(), cuts)
def test_long_messages_come_out_whatever_follows_them(
    stream: tuple[list[object], bytes], cuts: list[int]
) -> None:
    messages, data = stream
    long = {"a:{": PADDING, "b": messages}
    text = json.dumps(long).encode()
    follows = (b"", b"{", data, b"\xff", b'{"\xff', b"}", b",", b'"', b"\n#")
    for chunks in [(text + more,) for more in follows] + [pieces(text + data, cuts)]:
        assert decode(Decoder(), *chunks)[0] == long


@pytest.mark.parametrize("escaped", [b'{"a":"\\ud83d\\ude00"}', b'{"a":"\\\\ud800"}'])
def test_pairs_of_surrogates_and_escaped_backslashes_are_good(escaped: bytes) -> None:
    assert decode(Decoder(), escaped) == [json.loads(escaped)]


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b"[{}, "])
def test_a_hundred_thousand_levels_are_refused(opening: bytes) -> None:
    seen = decode(Decoder(), opening * 100_000, b"\n", GOOD)
    assert "nested over 512 levels" in errors(seen)[0]
    assert seen[-1] == json.loads(GOOD)


def test_a_limit_beyond_pythons_own_parser_is_no_other_error() -> None:
    depth = 200_000
    decoder = Decoder(Limits(depth=2 * depth))
    assert errors(decode(decoder, b"[" * depth + b"]" * depth))


# The limits hold wherever the stream is cut.

LIMITS = Limits(size=200, depth=5, tokens=40)


@pytest.mark.parametrize("size", [199, 200, 201, 400])
@pytest.mark.parametrize("cuts", [[], [1], [100], [199], [200], [1, 2, 3]])
@pytest.mark.parametrize("end", [b"", b"\r\n"])
def test_a_message_may_be_as_long_as_the_limit(
    size: int, cuts: list[int], end: bytes
) -> None:
    message = {"a": "x" * (size - len('{"a": ""}'))}
    data = json.dumps(message).encode()
    assert len(data) == size
    seen = decode(Decoder(LIMITS), *pieces(data + end, cuts))
    if size <= LIMITS.size:
        assert seen == [message]
    else:
        assert "more than 200 bytes" in errors(seen)[0]


@pytest.mark.parametrize("depth", [1, 4, 5, 6, 50])
@pytest.mark.parametrize("before", [b"", b'"[[[[[[",', b"[],[[]],[],[],[],[],"])
@pytest.mark.parametrize("cuts", [[], [1], [5], [9], [1, 2, 3, 4, 5, 6, 7, 8]])
@pytest.mark.parametrize("end", [b"", b"\r\n"])
def test_a_message_may_be_as_deep_as_the_limit(
    depth: int, before: bytes, cuts: list[int], end: bytes
) -> None:
    data = b"[" + before + b"[" * (depth - 1) + b"1" + b"]" * depth
    decoder = Decoder(Limits(size=200, depth=5, tokens=200))
    seen = decode(decoder, *pieces(data + end, cuts))
    if depth <= LIMITS.depth:
        assert seen == [json.loads(data)]
    else:
        assert "nested over 5 levels" in errors(seen)[0]


@given(
    st.lists(st.sampled_from([1, "," * 9, "::", []]), max_size=12),
    cuts,
    st.sampled_from(["", "\n"]),
)
def test_whether_there_are_too_many_tokens_does_not_hang_on_the_cuts(
    message: list[object], cuts: list[int], end: str
) -> None:
    data = json.dumps(message, separators=(",", ":")).encode() + end.encode()
    whole, cut = (
        decode(Decoder(LIMITS), *chunks) for chunks in ([data], pieces(data, cuts))
    )
    assert errors(whole[:1]) == errors(cut[:1])
    assert errors(whole) or whole == cut == [message]


@given(st.integers(min_value=1, max_value=60), st.sampled_from([b"", b"\n"]))
def test_a_message_may_have_as_many_tokens_as_the_limit(items: int, end: bytes) -> None:
    tokens = 2 + 2 * items - 1  # brackets, values and commas
    seen = decode(Decoder(LIMITS), json.dumps([1] * items).encode() + end)
    if tokens <= LIMITS.tokens - 1:
        assert seen == [[1] * items]
    elif tokens > LIMITS.tokens + 1:
        assert "more than 40 tokens" in errors(seen)[0]


@given(cuts)
def test_what_is_too_long_is_dropped_with_its_line(cuts: list[int]) -> None:
    long = b'{"a": "' + b"x" * 1000 + b'"}\n'
    seen = decode(Decoder(LIMITS), *pieces(long + GOOD, cuts))
    assert len(errors(seen)) == 1
    assert seen[1:] == [json.loads(GOOD)]


def test_a_message_that_never_ends_takes_no_memory() -> None:
    decoder = Decoder(LIMITS)
    for _ in range(100):
        decode(decoder, b'{"a": "' + b"x" * 100)
        assert decoder.pending <= LIMITS.size


def test_a_message_followed_by_a_stray_comma_does_not_wait_for_more() -> None:
    decoder = Decoder()
    assert decode(decoder, GOOD.strip() + b",")
    assert decode(decoder, b"\n", GOOD)[-1] == json.loads(GOOD)


@pytest.mark.parametrize("garbage", [b",[", b":{", b',"a":[', b",{}[["])
@pytest.mark.parametrize("start", [b"{}", b'{"a": [[{}], {}]}', b"[" * 40 + b"]" * 40])
def test_garbage_that_opens_brackets_holds_no_message_back(
    start: bytes, garbage: bytes
) -> None:
    whole = decode(Decoder(), start + garbage)
    assert whole[0] == json.loads(start)
    data = start + garbage
    single = [data[n : n + 1] for n in range(len(data))]
    assert whole[:1] == decode(Decoder(), *single)[:1]


@pytest.mark.parametrize("bad", [b'{"a":{}\\}', b'{"a":{}\\\\}'])
def test_a_backslash_outside_strings_is_found_however_it_is_cut(bad: bytes) -> None:
    data = bad + b"\n" + GOOD
    for size in range(1, len(bad) + 1):
        cut = [data[n : n + size] for n in range(0, len(data), size)]
        seen = decode(Decoder(), *cut)
        assert len(errors(seen[:1])) == 1
        assert seen[-1] == json.loads(GOOD)
        # What is left of the bad line is one more error, at most.
        assert len(seen) <= 3


@pytest.mark.parametrize(
    ("banner", "hint"),
    [
        (b"QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) ", "HMP"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP"),
        (b"\xff\xfb\x01\xff\xfb\x03", "telnet=on"),
        (b"RFB 003.008\n", "VNC"),
        (b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", "SSH"),
        (b"220 mail ready\r\n", "220 mail ready"),
    ],
)
def test_other_services_are_named(banner: bytes, hint: str) -> None:
    assert hint in errors(decode(Decoder(), banner))[0]


class Work:
    """Counts the bytes that the decoder looks at, in both of its ways."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counted = 0
        self.parsed = 0
        parse = module._parse  # noqa: SLF001
        after = MessageScan.extend

        def counting_parse(message: bytes, keys: int | None = None) -> object:
            self.parsed += len(message)
            return parse(message, keys)

        def counting_after(scan: MessageScan, piece: bytes, bound: int) -> MessageScan:
            self.counted += len(piece)
            return after(scan, piece, bound)

        monkeypatch.setattr(module, "_parse", counting_parse)
        monkeypatch.setattr(MessageScan, "extend", counting_after)


LONG: list[object] = [{"name": f"{{{number}}}", "args": [{}]} for number in range(400)]


@pytest.mark.parametrize("indent", [None, 4])
@pytest.mark.parametrize("size", [1, 7, 4096, 1_000_000])
def test_every_byte_is_looked_at_twice_at_most(
    monkeypatch: pytest.MonkeyPatch, indent: int | None, size: int
) -> None:
    data = json.dumps({"return": LONG}, indent=indent).encode() + b"\r\n"
    chunks = [data[place : place + size] for place in range(0, len(data), size)]
    work = Work(monkeypatch)
    assert decode(Decoder(), *chunks) == [{"return": LONG}]
    assert work.counted <= len(data)
    # Besides the message itself, one try at its first line.
    assert work.parsed <= 2 * len(data)


def test_short_messages_on_one_line_are_not_parsed_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    messages = 40_000
    work = Work(monkeypatch)
    assert len(decode(Decoder(), b"{}" * messages + b"\n")) == messages
    # Each looks at a piece of what follows it, at most; those before the newline at
    # what is left of a short line.
    assert work.counted + work.parsed <= messages * 2 * 256 + 2048 * 4096


# All decoders together


HALF = b'{"return": "' + b"x" * (2 << 20)


def test_unfinished_messages_of_all_peers_together_are_bounded() -> None:
    decoders = [Decoder() for _ in range(60)]
    refused = [text for decoder in decoders for text in errors(decode(decoder, HALF))]
    assert all("too many long messages" in text for text in refused)
    assert sum(decoder.pending for decoder in decoders) <= 64 << 20
    assert len(refused) == 60 - 31
    # Whoever sends short messages, or ends its long one, does not notice.
    assert decode(Decoder(), GOOD[:-9], GOOD[-9:]) == [json.loads(GOOD)]
    assert decode(Decoder(), b'{"return": "' + b"x" * 60_000, b'"}') != []
    assert decode(decoders[0], b'"}\r\n') == [json.loads(HALF + b'"}')]
    # What was refused goes on as after any other error.
    assert decode(decoders[-1], b"xxx\n" + GOOD) == [json.loads(GOOD)]


@pytest.mark.parametrize("how", ["forgotten", "cleared", "ended"])
def test_what_is_not_held_any_more_does_not_count(how: str) -> None:
    decoders = [Decoder() for _ in range(30)]
    for decoder in decoders:
        decode(decoder, HALF)
    match how:
        case "forgotten":
            del decoder
            decoders.clear()
            gc.collect()
        case "cleared":
            for decoder in decoders:
                decoder.clear()
        case _:
            for decoder in decoders:
                decode(decoder, b'"}')
    again = [Decoder() for _ in range(30)]
    for decoder in again:
        assert decode(decoder, HALF) == []
    assert len(module._held) == 30  # noqa: SLF001 - nothing else tells it
