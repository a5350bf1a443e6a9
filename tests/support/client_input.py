"""Hypothesis strategies for what a client sends to a monitor: requests and garbage.

They shrink towards few, short and well-formed requests.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing.strategies import sizes

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

_BALLOON = "/machine/peripheral/balloon0"


def ids() -> SearchStrategy[Any]:
    """Request ids of every JSON type."""
    text = st.text(st.characters(codec="utf-8", max_codepoint=0xFDCF), max_size=8)
    numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
    leaves = st.none() | st.booleans() | numbers | text
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3)
        ),
        max_leaves=5,
    )


def _arguments() -> SearchStrategy[tuple[str, dict[str, Any]]]:
    path = st.sampled_from(["balloon0", _BALLOON, "/machine", "/nope", ""])
    interval = "guest-stats-polling-interval"
    name = st.sampled_from([interval, "guest-stats", "type", "nope"])
    value = st.integers(-1, 4 * GiB) | ids()
    return st.one_of(
        st.sampled_from(
            ["query-status", "query-balloon", "query-name", "stop", "system_reset"]
        ).map(lambda command: (command, {})),
        st.tuples(st.just("balloon"), st.fixed_dictionaries({"value": value})),
        st.tuples(st.just("qom-list"), st.fixed_dictionaries({"path": path})),
        st.tuples(
            st.just("qom-get"), st.fixed_dictionaries({"path": path, "property": name})
        ),
        st.tuples(
            st.just("qom-set"),
            st.fixed_dictionaries({"path": path, "property": name, "value": value}),
        ),
        st.tuples(
            st.sampled_from(["nope", "balloon", "query-balloon"]),
            st.dictionaries(st.sampled_from(["value", "x", "y", "z"]), value),
        ),
        _plugging(),
        _lines(),
    )


def _plugging() -> SearchStrategy[tuple[str, dict[str, Any]]]:
    name = st.sampled_from(["m1", "m2", "d1", "balloon0", "3", ""])
    size = st.sampled_from([MiB, 2 * MiB, 128 * MiB, 4096, 0]) | ids()
    # The host decides whether more can be had, and QEMU dies of the largest sizes.
    size = size.filter(
        lambda value: not isinstance(value, int) or not GiB < value % (1 << 64)
    )
    backend = {"qom-type": st.just("memory-backend-ram"), "id": name, "size": size}
    flag = st.booleans() | ids()
    dimm = {
        "id": name | ids(),
        "memdev": name | ids(),
        "slot": st.integers(-2, 3) | ids(),
        "addr": sizes() | ids(),
        "node": st.integers(0, 1) | ids(),
        "x": ids(),
    }
    return st.one_of(
        st.tuples(
            st.just("object-add"),
            st.fixed_dictionaries(backend, optional={"share": flag, "x": flag}),
        ),
        st.tuples(
            st.just("device_add"),
            st.fixed_dictionaries({"driver": st.just("pc-dimm")}, optional=dimm),
        ),
        st.tuples(
            st.sampled_from(["object-del", "device_del"]),
            st.fixed_dictionaries({"id": name}),
        ),
    )


def _lines() -> SearchStrategy[tuple[str, dict[str, Any]]]:
    """Lines for the human monitor: sums, and lines that look like one."""
    words = "1 300 0x10 08 2M + - ~ * / % & | ^ ( ) 'a' ' x 9223372036854775807"
    word = st.sampled_from([*words.split(), " "])
    line = st.lists(word, max_size=6).map(lambda words: f"balloon {''.join(words)}")
    return line.map(lambda each: ("human-monitor-command", {"command-line": each}))


def requests() -> SearchStrategy[dict[str, Any]]:
    """Well-formed requests; not all of them make sense."""

    def build(what: tuple[str, dict[str, Any]], extra: dict[str, Any]) -> Any:  # noqa: ANN401
        return {"execute": what[0], "arguments": what[1], **extra}

    extra = st.fixed_dictionaries({}, optional={"id": ids()})
    return st.builds(build, _arguments(), extra)


def malformed() -> SearchStrategy[bytes]:
    """Bytes that are no request, followed by bytes that resynchronise QEMU."""
    pieces = st.sampled_from(
        [*(bytes([char]) for char in b"{}[]:,\"'\\0159-.eE %\x00\xff"), b"true", b"x"]
    )
    garbage = st.lists(pieces, max_size=12).map(b"".join) | st.binary(max_size=24)
    # A line end ends strings and words; the control character resets the lexer.
    return garbage.map(lambda data: data + b"\n\x01\n")


def request_scripts(length: int = 20) -> SearchStrategy[list[bytes]]:
    """What a client sends, in chunks: mostly requests, and some garbage.

    Args:
        length: Most chunks.
    """
    encoded = requests().map(lambda request: json.dumps(request).encode())
    return st.lists(encoded | encoded | malformed(), max_size=length)
