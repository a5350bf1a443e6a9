"""The fake answers what real QEMUs were recorded to answer; needs none at hand."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from record import recorded_scripts
from transcripts import Script, replay

from qmpballoon.testing import profile

VERSIONS = ("7.2", "8.2", "10.0", "11.1")


@functools.cache
def recording(version: str) -> dict[str, list[list[str]]]:
    path = Path(__file__).parent / f"recorded-{version}.json"
    found: dict[str, list[list[str]]] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize("script", recorded_scripts(), ids=lambda script: script.name)
@pytest.mark.parametrize("version", VERSIONS)
def test_the_fake_says_what_was_recorded(version: str, script: Script) -> None:
    answers = recording(version)[script.name]
    assert list(replay(script, profile(version), answers)) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_every_recording_is_replayed(version: str) -> None:
    names = {script.name for script in recorded_scripts()}
    assert names == set(recording(version))
