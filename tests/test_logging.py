"""Every move is logged, in one line a message; trouble is a warning, and no secret."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from docblocks import DOCS
from faults import monitor_of
from simulation import make_balloon, make_machine, run
from suffering import Suffering

import qmpballoon
from qmpballoon.errors import BalloonStalled
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import GuestConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qmpballoon.balloon.balloon import Balloon

PAGE = (DOCS / "howto" / "logging.md").read_text(encoding="utf-8")


def list_loggers() -> Iterator[str]:
    for path in Path(qmpballoon.__file__).parent.rglob("*.py"):
        code = path.read_text(encoding="utf-8")
        yield from re.findall(r'getLogger\("(qmpballoon\.[.\w]+)"\)', code)
        assert "getLogger(__name__)" not in code


def test_the_page_names_all_loggers() -> None:
    documented = re.findall(r"^\| `(qmpballoon\.\w+)` \|", PAGE, re.MULTILINE)
    assert sorted(documented) == sorted(set(list_loggers()))


def logged(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    lines = [
        record.getMessage()
        for record in caplog.records
        if record.name == "qmpballoon.balloon" and record.levelno == level
    ]
    assert not any("\n" in line for line in lines)
    return lines


MOVES: dict[str, tuple[Callable[[Balloon], Any], str, str]] = {
    "resize": (
        lambda balloon: balloon.resize(GiB),
        "resize from 2 GiB to 1 GiB begins",
        "resize reached: 2 GiB -> 1 GiB",
    ),
    "reclaim": (
        lambda balloon: balloon.reclaim(256 * MiB),
        "reclaim begins: 256 MiB can be taken",
        "reclaim done: the guest gave 256 MiB",
    ),
    "keep": (
        lambda balloon: balloon.keep(256 * MiB, seconds=1),
        "reclaim begins: 256 MiB can be taken",
        "kept for 1 s",
    ),
    "refused": (
        lambda balloon: balloon.reclaim(1),
        "reclaim refused: nothing to take",
        "",
    ),
}


@pytest.mark.parametrize("name", MOVES)
def test_a_move_is_logged_at_its_beginning_and_at_its_end(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    move, begins, ends = MOVES[name]
    balloon = make_balloon(make_machine(memory=2 * GiB))
    monitor_of(balloon).name = "vm1"  # type: ignore[attr-defined]
    run(move(balloon))
    lines = logged(caplog, logging.INFO)
    assert lines[0].startswith(f"vm1: {begins}")
    assert ends in lines[-1]
    assert not logged(caplog, logging.WARNING)
    targets = monitor_of(balloon).targets()
    assert len(logged(caplog, logging.DEBUG)) == len(targets)


def test_a_stall_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    balloon = make_balloon(make_machine(GuestConfig(driver=False)))
    with pytest.raises(BalloonStalled):
        run(balloon.resize(GiB))
    (line,) = logged(caplog, logging.WARNING)
    assert line.startswith("resize stalled: 2 GiB -> 2 GiB")
    assert "load virtio_balloon" in line


def test_trouble_is_a_warning_and_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    guest = GuestConfig(used=128 * MiB, cache=512 * MiB, inflate_rate=512 * MiB)
    balloon = make_balloon(make_machine(guest, memory=2 * GiB))
    suffering = Suffering(monitor_of(balloon).machine, "swap-out")
    monitor_of(balloon).before_call = suffering.look
    run(balloon.reclaim())
    assert sum("nothing more is taken" in x for x in logged(caplog, logging.INFO)) == 1
    trouble, end = logged(caplog, logging.WARNING)
    assert "it gets 2 GiB back" in trouble
    assert end.startswith("reclaim stopped")


def test_a_call_that_ends_by_an_exception_is_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    balloon = make_balloon(make_machine(memory=2 * GiB))

    def fail(_: object) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        run(balloon.reclaim(on_progress=fail))
    (line,) = logged(caplog, logging.WARNING)
    assert line == "ended by KeyError: the guest is asked to have 2 GiB"


def test_without_handlers_nothing_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("qmpballoon"), "propagate", False)
    logging.getLogger("qmpballoon.balloon").warning("nobody listens")
    assert capsys.readouterr() == ("", "")
