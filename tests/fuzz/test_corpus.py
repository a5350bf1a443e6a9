"""What the fuzzer has found is tried again, with every run of the tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus(name: str) -> None:
    inputs = sorted((CORPUS / name).iterdir())
    assert len(inputs) > 20
    for path in inputs:
        TARGETS[name](path.read_bytes())


WORDS = [b'{"QMP": {}}', b'{"return": {}, "id": 1}', b'{"execute": "x"}', b'"\\ud800"']
pieces = st.sampled_from([*WORDS, b"{", b"}", b"[", b"]", b'"', b"\\", b",", b"\n"])
inputs = st.lists(pieces | st.binary(max_size=3), max_size=40).map(b"".join)


@pytest.mark.parametrize("name", TARGETS)
@given(data=inputs)
def test_anything(name: str, data: bytes) -> None:
    TARGETS[name](data)
