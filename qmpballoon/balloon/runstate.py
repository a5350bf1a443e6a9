"""Why a VM does not run, and what to do about it.

Nothing moves in a balloon whose VM stands still. What gets it going depends on why it
does: resumed where it was migrated away from, it would run twice, on the same disks.

Source: QAPI reference, ``query-status`` and ``RunState``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from qmpballoon.monitor import Monitor

__all__ = ["explain_status", "why_stopped"]

_PAUSED: Final = "the VM is paused: resume it (cont)"
_BUSY: Final = "the VM is being saved, restored or migrated: wait until that is done"
_ENDED: Final = "reset it (system_reset), and resume it (cont)"
_REASONS: Final = {
    "paused": _PAUSED,
    "prelaunch": _PAUSED,
    "debug": _PAUSED,
    "watchdog": f"the VM's watchdog stopped it; {_PAUSED}",
    "io-error": "the VM was stopped by an error of a disk: mend that, and resume it"
    " (cont)",
    "inmigrate": "the VM is not here yet: wait until its migration has come in",
    "postmigrate": "the VM was migrated, and its target with it: set that anew where it"
    " runs now; resume it here (cont) only if that is nowhere",
    "finish-migrate": _BUSY,
    "save-vm": _BUSY,
    "restore-vm": _BUSY,
    "colo": _BUSY,
    "guest-panicked": f"the guest has panicked: {_ENDED}",
    "internal-error": f"QEMU cannot run the guest any further: {_ENDED}",
    "shutdown": f"the guest has shut down: {_ENDED}",
    "suspended": "the guest sleeps: wake it (system_wakeup)",
}


def explain_status(status: str) -> str:
    """Say what a VM that does not run is doing, and what helps.

    Args:
        status: As ``query-status`` names it.
    """
    return _REASONS.get(status, f"the VM is in the state {status!r} and does not run")


async def why_stopped(monitor: Monitor) -> str | None:
    """Say why the VM behind a monitor does not run; ``None`` if it does.

    Cancellation: at once, with no effect.
    """
    match await monitor.execute("query-status"):
        case {"running": False, "status": str(status)}:
            return explain_status(status)
        case {"running": False}:
            return _PAUSED
        case _:
            return None
