"""Saved guests' files: found if they are whole, and removed when there are too many."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
import trio

from qmpballoon.testing.lab import LabError
from qmpballoon.testing.lab import _saved as saved
from qmpballoon.testing.lab._saved import (
    find_saved,
    identify_guest,
    incoming_arguments,
    lock_guest,
    store_guest,
)

if TYPE_CHECKING:
    from pathlib import Path

KEY = "0123456789abcdef"
STATE = bytes(range(256)) * 16


@pytest.fixture
def guests(cache_folder: Path) -> Path:
    return cache_folder / "guests"


def store(guests: Path, key: str = KEY, state: bytes = STATE) -> Path:
    """Save a guest whose state QEMU has just written; return its folder."""
    unfinished = guests / f"{key}.unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "state").write_bytes(state)
    store_guest(unfinished, key, "6.1.0-test", "a line\n")
    assert not unfinished.exists()
    return guests / key


def test_what_was_saved_is_found(guests: Path) -> None:
    assert find_saved(KEY) is None
    folder = store(guests)
    found = find_saved(KEY)
    assert found is not None
    assert found.state == folder / "state"
    assert (found.release, found.console) == ("6.1.0-test", "a line\n")
    assert find_saved(KEY[::-1]) is None


def test_a_second_guest_of_that_name_replaces_the_first(guests: Path) -> None:
    store(guests)
    store(guests, state=b"another")
    found = find_saved(KEY)
    assert found is not None
    assert found.state.read_bytes() == b"another"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("state", STATE[:-1]),
        ("state", b""),
        ("state", STATE[:-1] + b"\0"),
        ("state", None),
        ("about.json", b""),
        ("about.json", b'{"size": 4096}'),
        ("about.json", b"[]"),
        ("about.json", None),
    ],
)
def test_a_damaged_file_is_as_good_as_none(
    guests: Path, file: str, content: bytes | None
) -> None:
    folder = store(guests)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    assert find_saved(KEY) is None
    store(guests)
    assert find_saved(KEY) is not None


def test_what_is_being_written_is_not_found(guests: Path) -> None:
    folder = store(guests)
    folder.rename(guests / f"{KEY}.unfinished")
    assert find_saved(KEY) is None


def test_every_dependency_makes_another_guest(tmp_path: Path) -> None:
    qemu = tmp_path / "qemu"
    qemu.write_bytes(b"a program")
    seen = {
        identify_guest({"cache": 1}, qemu),
        identify_guest({"cache": 2}, qemu),
        identify_guest({"hog": 1}, qemu),
    }
    os.utime(qemu, (1, 1))
    seen.add(identify_guest({"cache": 1}, qemu))
    qemu.write_bytes(b"a program!")
    os.utime(qemu, (1, 1))
    seen.add(identify_guest({"cache": 1}, qemu))
    assert len(seen) == 5
    assert identify_guest({"cache": 1}, qemu) in seen


@pytest.fixture
def room_for_three(monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(STATE) + len(json.dumps({"size": 1, "checksum": 1, "release": ""})) + 99
    monkeypatch.setattr(saved, "MOST_SPACE", 3 * size)


def used(folder: Path, when: int) -> None:
    os.utime(folder, (when, when))


def names(guests: Path) -> set[str]:
    return {path.name for path in guests.iterdir()} - {"locks"}


@pytest.mark.usefixtures("room_for_three")
def test_what_was_not_used_for_the_longest_time_is_removed(guests: Path) -> None:
    for when, key in enumerate(("aa", "bb", "cc")):
        used(store(guests, key), when)
    assert find_saved("aa")  # and so it was used
    store(guests, "dd")
    assert names(guests) == {"aa", "cc", "dd"}


@pytest.mark.usefixtures("room_for_three")
def test_a_guest_that_needs_all_the_room_is_kept(guests: Path) -> None:
    used(store(guests, "aa"), 1)
    store(guests, "bb", STATE * 9)
    assert names(guests) == {"bb"}


@pytest.mark.usefixtures("room_for_three")
async def test_what_another_process_writes_is_not_removed(guests: Path) -> None:
    unfinished = [guests / f"{key}.unfinished" for key in ("aa", "bb")]
    for folder in unfinished:
        folder.mkdir(parents=True)
        (folder / "state").write_bytes(STATE * 9)
        used(folder, 1)

    def store_while_another_saves() -> None:
        with lock_guest("aa"):
            store(guests, "cc")

    await trio.to_thread.run_sync(store_while_another_saves)
    # The other one was left behind by a process that was killed.
    assert names(guests) == {"aa.unfinished", "cc"}


async def test_waiting_for_another_process_can_be_cancelled(guests: Path) -> None:
    del guests

    def hold_and_wait() -> None:
        with lock_guest("aa"), lock_guest("aa"):
            pytest.fail("it was locked")

    with trio.move_on_after(0.3) as scope:
        await trio.to_thread.run_sync(hold_and_wait)
    assert scope.cancelled_caught


def test_a_cache_folder_that_can_hold_nothing_is_told(cache_folder: Path) -> None:
    cache_folder.write_text("a file")
    with (
        pytest.raises(LabError, match=r"guests cannot be saved: .*cache"),
        lock_guest(KEY),
    ):
        pytest.fail("it was locked")


def test_a_path_with_blanks_is_one_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QMPBALLOON_CACHE", str(tmp_path / "my cache"))
    store(tmp_path / "my cache" / "guests")
    found = find_saved(KEY)
    assert found is not None
    assert incoming_arguments(found) == ("-incoming", f"exec:cat '{found.state}'")
