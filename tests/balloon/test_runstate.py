"""A VM that does not run is told what helps it; most of them must not be resumed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from simulation import make_balloon, make_machine, run

from qmpballoon.balloon.device import explain_status
from qmpballoon.errors import StatsUnavailable
from qmpballoon.sizes import MiB

if TYPE_CHECKING:
    from qmpballoon.balloon.sampling import Sample

# All of QEMU's RunState but "running", and a word of what helps.
REMEDIES = {
    "paused": "(cont)",
    "prelaunch": "(cont)",
    "debug": "(cont)",
    "watchdog": "(cont)",
    "io-error": "repair",
    "inmigrate": "wait",
    "finish-migrate": "wait",
    "save-vm": "wait",
    "restore-vm": "wait",
    "colo": "wait",
    "postmigrate": "where it runs now",
    "guest-panicked": "system_reset",
    "internal-error": "system_reset",
    "shutdown": "system_reset",
    "suspended": "system_wakeup",
    "some-day": "some-day",
}


@pytest.mark.parametrize("status", REMEDIES)
def test_each_state_has_its_remedy(status: str) -> None:
    text = explain_status(status)
    assert REMEDIES[status] in text
    assert "\n" not in text


@pytest.mark.parametrize("status", sorted({*REMEDIES} - {"paused"}))
def test_whoever_asks_is_told_of_the_state(status: str) -> None:
    machine = make_machine()
    machine.status = status
    balloon = make_balloon(machine)
    assert not run(balloon.is_running())
    with pytest.raises(StatsUnavailable) as caught:
        run(balloon.reclaim())
    assert REMEDIES[status] in str(caught.value)
    result = run(balloon.resize(256 * MiB, timeout=2, on_stall="settle"))
    assert result.diagnosis is not None
    assert result.diagnosis.kind == "paused"
    assert REMEDIES[status] in result.diagnosis.detail


def test_a_vm_that_moves_away_in_mid_reclaim_is_not_to_be_resumed() -> None:
    machine = make_machine()

    def move(sample: Sample) -> None:
        if sample.actual < before:
            machine.status = "postmigrate"

    balloon = make_balloon(machine)
    before = run(balloon.actual())
    report = run(balloon.reclaim(on_progress=move))
    assert report.outcome == "stopped"
    assert REMEDIES["postmigrate"] in report.reason
