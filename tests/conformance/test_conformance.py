"""The fake answers what the real QEMU answers, request by request."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from attrs import evolve
from client_input import request_scripts
from conftest import COMPARED
from hypothesis import HealthCheck, example, given, settings
from real import VERSIONS, qemu_command
from transcripts import NEGOTIATION, Script, compare, scripts

from qmpballoon.testing import profile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.qemu, pytest.mark.conformance]

WORDS = ("size_parameter", "virtio_device_words", "stat_names")


@pytest.mark.parametrize("script", scripts(), ids=lambda script: script.name)
@pytest.mark.parametrize("version", VERSIONS)
def test_the_transcripts_are_equal(
    version: str,
    script: Script,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    command = qemu_command(version)
    found = list(compare(script, profile(version), command, tmp_path))
    record_property(COMPARED, (version, len(script.chunks), len(found)))
    assert found == []


@pytest.mark.parametrize("word", WORDS)
def test_a_changed_word_is_found(word: str, tmp_path: Path) -> None:
    right = profile(VERSIONS[0])
    value = getattr(right, word)
    wrong = evolve(right, **{word: value[:-1]})
    command = qemu_command(VERSIONS[0])

    found = [
        difference
        for script in scripts()
        if script.name in {"the balloon's size", "statistics", "queries"}
        for difference in compare(script, wrong, command, tmp_path)
    ]

    assert found


def test_there_are_enough_requests() -> None:
    assert sum(len(script.chunks) for script in scripts()) >= 200


@settings(
    max_examples=20,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,  # on a machine that is busy
    ],
)
# A name with a null character, which QEMU's strings have as two bytes.
@example(chunks=[b'{"execute": "query-status", "id": {"2": 0, "\\u00001": 0}}'])
@given(chunks=request_scripts())
@pytest.mark.parametrize("version", VERSIONS)
def test_whatever_is_said_is_answered_alike(
    version: str,
    chunks: list[bytes],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    script = Script("generated", (NEGOTIATION, b"".join(chunks)), dimms=True)
    found = list(compare(script, profile(version), qemu_command(version), tmp_path))
    record_property(COMPARED, (version, len(chunks), len(found)))
    assert found == []
