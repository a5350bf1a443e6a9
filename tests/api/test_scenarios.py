"""The same calls have the same results on every front end, against the fake."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from frontends import ALL, on_each
from scenarios import CACHE, MEMORY, SCENARIOS

from qmpballoon.testing import GuestConfig, MachineConfig, serve

if TYPE_CHECKING:
    from frontends import FrontEnd, Scenario

MACHINE = MachineConfig(memory=MEMORY, guest=GuestConfig(used=60 << 20, cache=CACHE))


@on_each(*ALL)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_on_the_fake(front: FrontEnd, scenario: Scenario) -> None:
    with serve(MACHINE) as fake:
        front.run(scenario(front, fake.socket))
