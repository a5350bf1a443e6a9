"""What a guest is to get back is noted for the next process, and for nobody else."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from notes import write_holder

from qmpballoon._transport import owed_size
from qmpballoon._transport.owed_size import OwedSizeFile
from qmpballoon._transport.qemu_process import read_start_time
from qmpballoon.sizes import GiB

PID = os.getpid()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


def find_file(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def test_what_one_notes_the_next_reads_until_it_is_forgotten(folder: Path) -> None:
    assert OwedSizeFile(PID, folder).read() is None
    OwedSizeFile(PID, folder).note(2 * GiB)
    OwedSizeFile(PID, folder).note(GiB)
    assert OwedSizeFile(PID, folder).read() == GiB
    assert folder.stat().st_mode & 0o777 == 0o700
    assert find_file(folder).name.startswith(f"{PID}-{read_start_time(PID)}-")
    OwedSizeFile(PID, folder).clear()
    OwedSizeFile(PID, folder).clear()
    assert OwedSizeFile(PID, folder).read() is None
    assert list(folder.iterdir()) == []


def test_what_was_asked_for_again_counts_for_ten_minutes(folder: Path) -> None:
    OwedSizeFile(PID, folder, lambda: 1000.0).note(GiB, is_returning=True)
    assert OwedSizeFile(PID, folder, lambda: 1600.0).read() == GiB
    assert OwedSizeFile(PID, folder, lambda: 1601.0).read() is None
    # Before the host was started anew: that QEMU has ended.
    assert OwedSizeFile(PID, folder, lambda: 999.0).read() is None


def test_a_clock_that_is_set_makes_no_difference(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    OwedSizeFile(PID, folder).note(GiB, is_returning=True)
    for now in (0.0, 1e12):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        assert OwedSizeFile(PID, folder).read() == GiB


def test_a_qemu_that_has_ended_is_owed_nothing_and_leaves_nothing(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1) as process:
        ended = OwedSizeFile(process.pid, folder)
        ended.note(GiB)
        assert ended.read() == GiB
        assert process.stdin is not None
        process.stdin.close()
    assert ended.read() is None
    OwedSizeFile(PID, folder, lambda: 1e9).note(GiB)
    assert find_file(folder).name.startswith(f"{PID}-")


def test_a_fleet_that_notes_much_looks_at_each_file_once_a_minute(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []

    def count(folder: int) -> None:
        looked.append(folder)

    monkeypatch.setattr(owed_size, "_remove_ended", count)
    times = iter((1000.0, 1000.5, 1059.0, 1060.0, 1061.0))
    note = OwedSizeFile(PID, folder, lambda: next(times))
    for _ in range(5):
        note.note(GiB)
    assert len(looked) == 2


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", '{"size": 1}', '{"size": "1", "asked_at": null}'),
        *('{"size": 0, "asked_at": null}', '{"size": 1e30, "asked_at": null}'),
        *('{"size": true, "asked_at": null}', '{"size": 1, "asked_at": "x"}'),
        f'{{"size": {2**63}, "asked_at": null}}',
        f'{{"size": {10**4000}, "asked_at": null}}',
        "\xff" * 100,
        "[" * 4000,
    ],
)
def test_what_is_damaged_says_nothing(folder: Path, text: str) -> None:
    OwedSizeFile(PID, folder).note(GiB)
    find_file(folder).write_text(text, encoding="latin-1")
    assert OwedSizeFile(PID, folder).read() is None
    assert OwedSizeFile(PID, folder).read_holder() is None


@pytest.mark.parametrize(
    "holder",
    [
        *(None, [], {}, 1, {"pid": os.getppid()}, {"pid": "1", "started": "1"}),
        {"pid": os.getppid(), "started": None},
        {"pid": os.getppid(), "started": (read_start_time(os.getppid()) or 0) + 1},
        {"pid": 10**4000, "started": 1},
        {"pid": -1, "started": 1},
    ],
)
def test_what_cannot_be_judged_is_held_by_nobody(folder: Path, holder: object) -> None:
    write_holder(folder, PID, GiB, holder)
    assert OwedSizeFile(PID, folder).read() == GiB
    assert OwedSizeFile(PID, folder).read_holder() is None


def test_what_another_process_holds_is_owed_once_that_has_ended(folder: Path) -> None:
    """Not only once somebody has waited for it: it is a zombie until then."""
    code = f"""
from pathlib import Path
from qmpballoon._transport.owed_size import OwedSizeFile
OwedSizeFile({PID}, Path({str(folder)!r})).note({GiB}, is_held=True)
print(flush=True)
input()
"""
    note = OwedSizeFile(PID, folder)
    arguments = [sys.executable, "-c", code]
    with subprocess.Popen(arguments, stdin=-1, stdout=-1, stderr=-3) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == b"\n"
        assert (note.read_holder(), note.read()) == (other.pid, None)
        other.stdin.close()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        assert (note.read_holder(), note.read()) == (None, GiB)


def test_what_one_holds_only_that_one_lets_go(folder: Path) -> None:
    note = OwedSizeFile(PID, folder)
    assert note.note(GiB, is_held=True) is None
    for other in (None, PID + 1):
        assert note.note(2 * GiB, is_held=True, own=other) == PID
        note.clear(other)
        assert (note.read_holder(), note.read()) == (PID, None)
    assert note.note(GiB, own=PID) is None
    assert (note.read_holder(), note.read()) == (None, GiB)
    note.note(GiB, is_held=True)
    note.clear(PID)
    assert list(folder.iterdir()) == []


_CLAIM = """
import os, sys
from pathlib import Path
from qmpballoon._transport.owed_size import OwedSizeFile
note = OwedSizeFile({pid}, Path({folder!r}))
print(flush=True)
for line in sys.stdin:
    won = note.note({size}, is_held=True) is None
    print("won" if won else "lost", flush=True)
"""


def test_of_those_that_begin_at_the_same_moment_one_holds(folder: Path) -> None:
    code = _CLAIM.format(pid=PID, folder=str(folder), size=GiB)
    with ExitStack() as stack:
        claims = [
            stack.enter_context(
                subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1)
            )
            for _ in range(2)
        ]
        streams = [(claim.stdin, claim.stdout) for claim in claims]
        for _, said in streams:
            assert said is not None
            said.readline()
        for _ in range(500):
            for asked, _ in streams:
                assert asked is not None
                asked.write(b"\n")
                asked.flush()
            answers = [said.readline() for _, said in streams if said is not None]
            assert sorted(answers) == [b"lost\n", b"won\n"]
            holder = OwedSizeFile(PID, folder).read_holder()
            assert holder == claims[answers.index(b"won\n")].pid
            OwedSizeFile(PID, folder).clear(holder)
        for asked, _ in streams:
            assert asked is not None
            asked.close()


def test_a_folder_that_stays_locked_keeps_nobody_waiting_for_ever(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owed_size, "_LOCK_PAUSE", 0)
    OwedSizeFile(PID, folder).note(GiB)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="has locked"):
            OwedSizeFile(PID, folder).note(2 * GiB)
        assert OwedSizeFile(PID, folder).read() == GiB
    finally:
        os.close(descriptor)
    OwedSizeFile(PID, folder).note(2 * GiB)


def test_what_is_of_another_namespace_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There QEMU's process id means another process, or none."""
    OwedSizeFile(PID, folder).note(GiB)
    with monkeypatch.context() as there:
        there.setattr(owed_size, "_read_namespaces", lambda: "1-1")
        there.setattr(owed_size, "read_start_time", lambda _: 7)
        assert OwedSizeFile(PID, folder).read() is None
        OwedSizeFile(PID, folder, lambda: 5e8).note(2 * GiB)
        assert len(list(folder.iterdir())) == 2
    OwedSizeFile(PID, folder, lambda: 1e9).note(GiB)
    assert len(list(folder.iterdir())) == 2
    assert OwedSizeFile(PID, folder).read() == GiB


def test_what_was_not_finished_is_removed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    OwedSizeFile(PID, folder).note(GiB)
    with monkeypatch.context() as full:
        full.setattr(os, "replace", fail)
        with pytest.raises(OSError, match=f"No space left on device: '{folder}'"):
            OwedSizeFile(PID, folder).note(2 * GiB)
    file = find_file(folder)  # the old one, and no other
    (folder / f".{file.name}.new").write_text("{")  # by a process that was killed
    OwedSizeFile(PID, folder, lambda: 1e9).note(3 * GiB)
    assert find_file(folder) == file
    assert OwedSizeFile(PID, folder).read() == 3 * GiB


def test_what_others_could_write_is_not_believed(folder: Path) -> None:
    OwedSizeFile(PID, folder).note(GiB)
    file = find_file(folder)
    file.chmod(0o666)
    assert OwedSizeFile(PID, folder).read() is None
    file.chmod(0o600)
    folder.chmod(0o777)
    assert OwedSizeFile(PID, folder).read() is None
    with pytest.raises(PermissionError, match="not this user's alone"):
        OwedSizeFile(PID, folder).note(GiB)


def test_no_link_is_followed(folder: Path, tmp_path: Path) -> None:
    OwedSizeFile(PID, folder).note(GiB)
    name = find_file(folder).name
    elsewhere = find_file(folder).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(elsewhere)
    assert OwedSizeFile(PID, folder).read() is None
    OwedSizeFile(PID, folder).note(2 * GiB)
    assert json.loads(elsewhere.read_text())["size"] == GiB
    link = tmp_path / "link"
    link.symlink_to(folder, target_is_directory=True)
    assert OwedSizeFile(PID, link).read() is None
    with pytest.raises(OSError, match="link"):
        OwedSizeFile(PID, link).note(GiB)


def test_a_fifo_keeps_nobody_waiting(folder: Path) -> None:
    OwedSizeFile(PID, folder).note(GiB)
    file = find_file(folder)
    file.unlink()
    os.mkfifo(file)
    assert OwedSizeFile(PID, folder).read() is None


def test_where_it_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QMPBALLOON_RUNTIME_DIR", str(tmp_path / "given"))
    OwedSizeFile(PID).note(GiB)
    assert OwedSizeFile(PID, tmp_path / "given").read() == GiB
    monkeypatch.setenv("QMPBALLOON_RUNTIME_DIR", "")
    OwedSizeFile(PID).note(GiB)
    assert OwedSizeFile(PID).read() is None
    monkeypatch.delenv("QMPBALLOON_RUNTIME_DIR")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    OwedSizeFile(PID).note(GiB)
    assert not Path("relative").exists()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(PermissionError):  # it is not that user's
        OwedSizeFile(PID).note(GiB)
    assert (tmp_path / "qmpballoon").is_dir()


def test_where_it_is_kept_for_a_job_of_cron(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("QMPBALLOON_RUNTIME_DIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(owed_size, "_RUN_USER", tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    OwedSizeFile(PID).note(GiB)  # there is no such folder
    assert not [*tmp_path.iterdir()]
    (tmp_path / "12345").mkdir()
    with pytest.raises(PermissionError):  # it is not that user's
        OwedSizeFile(PID).note(GiB)
    assert (tmp_path / "12345/qmpballoon").is_dir()


def test_where_it_cannot_be_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("QMPBALLOON_RUNTIME_DIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    # A service with ProtectHome= may not look into /run/user. Nobody, root neither, can
    # look at a name that is too long.
    monkeypatch.setattr(owed_size, "_RUN_USER", tmp_path / ("x" * 256))
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    OwedSizeFile(PID).note(GiB)
    assert OwedSizeFile(PID).read() is None
