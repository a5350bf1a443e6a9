"""Monitors of one's own: what they leave in a fake QEMU, and a client that dies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpballoon.testing.model.chardevs import SHARED

if TYPE_CHECKING:
    from qmpballoon.testing import Machine, ThreadedFake

__all__ = ["KILLED", "left_behind", "wait_until_gone"]


def left_behind(machine: Machine) -> list[str]:
    """Return what a machine has beyond what it was started with."""
    named = machine.monitors[SHARED].files
    return sorted({*machine.chardevs, *machine.monitors, *named} - {SHARED})


def wait_until_gone(fake: ThreadedFake) -> None:
    """Wait until QEMU has noticed that the clients left."""
    while fake.do(left_behind):
        pass


# Opens a monitor of its own at an address, and kills itself after a certain command.
KILLED = """
import os, signal, sys
from qmpballoon.blocking import monitor, open_monitor

def run_and_die(self, command, *rest):
    result = run(self, command, *rest)
    if command == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

run = monitor.BlockingMonitor._run_command
monitor.BlockingMonitor._run_command = run_and_die
with open_monitor(sys.argv[1], own=True):
    pass
"""
