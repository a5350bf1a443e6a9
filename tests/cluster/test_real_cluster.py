"""One of the runs of :mod:`real_cluster`, small; the others are drawn by hand.

Needs root, for network namespaces.
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from attrs import evolve
from real_cluster import Run, carry_out, open_cluster, open_network
from valkey_server import find_server

from qmpballoon.sizes import MiB

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _can_be_had() -> None:
    find_server()
    try:
        with open_network(f"qbtry{os.getpid()}"):
            pass
    except (OSError, subprocess.CalledProcessError) as error:
        reason = f"network namespaces need root, and Debian's package iproute2: {error}"
        pytest.skip(reason)


def test_a_killed_agent_gives_back_and_takes_nothing_twice(tmp_path: Path) -> None:
    run = evolve(Run.draw(6, 3), fault="agent-killed", after=0.5, lasts=1.0)
    with open_cluster(tmp_path, vms=3, rate=32 * MiB) as cluster:
        problems, figures = carry_out(cluster, run)
    assert problems == []
    assert figures["share"] > 0.4  # the other host's part
