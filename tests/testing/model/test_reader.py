"""Requests are read as QEMU reads them, in whatever chunks they come."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import pytest
from client_input import malformed, request_scripts
from hypothesis import HealthCheck, given, settings

from qmpballoon.testing import Machine, profile
from qmpballoon.testing.model.reader import read_simple
from qmpballoon.testing.strategies import machines, profiles

if TYPE_CHECKING:
    from qmpballoon.testing import Profile


@given(script=request_scripts(), subject=machines())
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_the_fake_survives_every_script(script: list[bytes], subject: Machine) -> None:
    session = subject.connect()
    for chunk in script:
        session.receive(chunk)
        assert session.take_output().isascii()
    session.receive(b'\n\x01\n{"execute": "qmp_capabilities", "id": "last"}')
    if not session.closed:
        assert json.loads(session.take_output().splitlines()[-1])["id"] == "last"


@given(garbage=malformed())
def test_what_is_malformed_leaves_qemu_in_step(garbage: bytes) -> None:
    session = Machine(rng=random.Random(0)).connect()
    session.receive(garbage)
    session.take_output()
    session.receive(b'{"execute": "qmp_capabilities"}')
    assert session.take_output() == b'{"return": {}}\r\n'


@given(script=request_scripts(), version=profiles())
def test_the_short_way_to_read_a_request_is_as_good_as_the_long_one(
    script: list[bytes], version: Profile
) -> None:
    """In one chunk most requests are read the short way, byte by byte none is."""
    said = []
    for size in (None, 1):
        session = Machine(profile=version, rng=random.Random(0)).connect()
        for chunk in script:
            for start in range(0, len(chunk), size or len(chunk) or 1):
                session.receive(chunk[start:][:size])
        said.append(session.take_output())
    assert said[0] == said[1]


@pytest.mark.parametrize(
    "request_",
    [
        '{"a": 1, "a": 2}', '{"a": 1.0}', '{"a": NaN}', '{"a": -Infinity}', '{"a": 01}',
        '{"a": 1e5}', '{"a": 1234567890123456789}', '{"a": "\\u0041"}', "{'a': 1}",
        '{"a": 1}{"b": 2}', '{"a": 1}\r\n', '{"a": "\t"}', '{"a" 1}', "[]", "{",
        '{"a":' * 100 + "1" + "}" * 100, '{"a": "\x7f"}', '{"a": "\xe9"}',
    ],
)  # fmt: skip
def test_what_is_not_simple_is_read_the_long_way(request_: str) -> None:
    assert read_simple(request_.encode()) is None


@pytest.mark.parametrize("end", ["", "\n"])
def test_the_short_way_counts_lines_too(end: str) -> None:
    """QEMU 11.1 tells where in all that it was sent an error is."""
    request = '{"execute": "query-status", "id": 1}' + end
    text = (request * 3 + "x\n").encode()
    said = []
    for size in (len(text), len(request), 1):
        version = profile("11.1")
        session = Machine(profile=version, rng=random.Random(0)).connect()
        for start in range(0, len(text), size):
            session.receive(text[start : start + size])
        said.append(json.loads(session.take_output().splitlines()[-1])["error"]["desc"])
    assert said[0] == said[1] == said[2]
    assert said[0].startswith("4:" if end else f"1:{3 * len(request) + 1}:")
