"""What is said of a guest when a subcommand that works with it is interrupted."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from simulation import PATH, SimulatedMonitor, make_machine, run

from qmpballoon.balloon import Balloon
from qmpballoon.cli import reclaim, resize
from qmpballoon.cli._one_vm import explain_interruption
from qmpballoon.errors import MonitorTimeout
from qmpballoon.sizes import GiB

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Unanswering(SimulatedMonitor):
    """A QEMU that does not answer one command, as on a host that is overloaded."""

    unanswered = ""

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None
    ) -> object:
        if command == self.unanswered:
            raise MonitorTimeout("it does not answer", (command,))
        return await super().execute(command, arguments)


@pytest.mark.parametrize(
    ("describe", "target", "unanswered", "said"),
    [
        (reclaim, None, "query-balloon", "nothing was taken\n"),
        (resize, None, "query-balloon", "nothing was changed\n"),
        (reclaim, GiB, "query-balloon", "its memory back: it is asked to have 1 GiB, "),
        (resize, GiB, "query-balloon", "the guest is asked to have 1 GiB, and QEMU do"),
        (reclaim, GiB, "balloon", "which size the guest was asked for last is not kn"),
    ],
)
def test_what_is_known_is_said_although_qemu_does_not_answer(
    capsys: pytest.CaptureFixture[str],
    describe: object,
    target: int | None,
    unanswered: str,
    said: str,
) -> None:
    monitor = Unanswering(make_machine())
    balloon = Balloon(monitor, PATH, "virtio-balloon-pci")
    monitor.unanswered = unanswered

    async def main(describe: Callable[[int | None, int | None], str]) -> None:
        async with explain_interruption(balloon, describe):
            if target is not None:
                with suppress(MonitorTimeout):
                    await balloon.set_target(target)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(main(vars(describe)["_describe_interrupted"]))
    (line,) = capsys.readouterr().err.splitlines(keepends=True)
    assert line.startswith("qmpballoon: interrupted: ")
    assert said in line
