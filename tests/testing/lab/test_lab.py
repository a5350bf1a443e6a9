"""The lab's pure parts: versions, cache, packages, arguments, progress, verdicts."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import lab
from qmpballoon.testing.lab import accelerator, cache, packages, parts
from qmpballoon.testing.lab.__main__ import main
from qmpballoon.testing.lab.apt import Package, parse_uris
from qmpballoon.testing.lab.command import Files, Wishes, arguments
from qmpballoon.testing.lab.guest import parse_meminfo
from qmpballoon.testing.lab.process import running, wait_ended
from qmpballoon.testing.lab.versions import matches

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("QMPBALLOON_CACHE", str(folder))
    return folder


def silent(_progress: lab.Progress) -> None:
    """Take progress and show nothing."""


@pytest.mark.parametrize(
    ("version", "wanted", "expected"),
    [
        ("7.2.22", "7.2", True),
        ("7.2.22", None, True),
        ("7.20.1", "7.2", False),
        ("10.0.13", "1", False),
        ("6.12.107", "6.1", False),
        ("6.1.0-56-cloud-amd64", "6.1", True),
    ],
)
def test_versions_match_by_number(
    version: str, wanted: str | None, *, expected: bool
) -> None:
    assert matches(version, wanted) is expected


def test_meminfo_is_in_bytes_but_for_counts() -> None:
    text = "MemTotal:  973 kB\nHugePages_Total:    4\nActive(anon):  1 kB\n"
    expected = {"MemTotal": 973 * 1024, "HugePages_Total": 4, "Active(anon)": 1024}
    assert parse_meminfo(text) == expected


def test_apt_says_what_is_to_be_fetched() -> None:
    text = (
        "'http://mirror.example/q/qemu_10.0%2bds-1_amd64.deb' "
        "qemu-system-x86_1%3a10.0.13+ds-0+deb13u1_amd64.deb 10278596 SHA256:0a\n"
        "'http://mirror.example/p/seabios_1.16.3-2_all.deb' "
        "seabios_1.16.3-2_all.deb 163272 \n"
        "Reading package lists...\n"
    )
    qemu, seabios = parse_uris(text)
    assert qemu == Package("qemu-system-x86", "1:10.0.13+ds-0+deb13u1", 10278596)
    assert qemu.upstream == "10.0.13"
    assert seabios.upstream == "1.16.3"


def test_what_is_in_the_cache_is_taken_without_asking_anybody(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    for name in ("QEMU-10.0.9", "QEMU-10.0.13", "QEMU-11.1.3", "Linux-10.0.99"):
        (cache_folder / "trees" / name).mkdir(parents=True)
    found = packages.fetch(packages.qemu, "10.0", silent)
    assert found == cache_folder / "trees/QEMU-10.0.13"
    assert packages.fetch(packages.qemu, None, silent).name == "QEMU-11.1.3"


def test_where_nothing_can_be_fetched_it_says_what_to_install(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(lab.LabError, match="no apt-get here; install what is missing"):
        packages.fetch(packages.qemu, "10.0", silent)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(lab.LabError, match="not on aarch64"):
        packages.fetch(packages.kernel, None, silent)
    assert not cache_folder.exists()


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("QMPBALLOON_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / ".cache/qmpballoon"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_folder() == tmp_path / "xdg/qmpballoon"
    monkeypatch.setenv("QMPBALLOON_CACHE", str(tmp_path / "own"))
    assert cache.cache_folder() == tmp_path / "own"


def test_a_lock_is_waited_for_until_the_caller_has_enough(tmp_path: Path) -> None:
    class EnoughError(Exception):
        pass

    def give_up() -> None:
        raise EnoughError

    lock = tmp_path / "folder/lock"
    with (
        cache.locked(lock, give_up),
        pytest.raises(EnoughError),
        cache.locked(lock, give_up),
    ):
        pass
    with cache.locked(lock, give_up):
        pass


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a/b"
    cache.write_whole(path, "old")
    cache.write_whole(path, "new")
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.usefixtures("cache_folder")
async def test_kvm_is_tried_once_and_the_verdict_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "kvm"
    monkeypatch.setattr(accelerator, "_DEVICE", device)
    tried: list[str] = []

    async def hangs() -> bool:
        await trio.lowlevel.checkpoint()
        tried.append("hangs")
        return False

    async def boots() -> bool:
        await trio.lowlevel.checkpoint()
        tried.append("boots")
        return True

    assert await accelerator.choose("qemu", "6.1", boots) == "tcg"
    assert tried == []
    device.touch()
    assert await accelerator.choose("qemu", "6.1", hangs) == "tcg"
    assert await accelerator.choose("qemu", "6.1", boots) == "tcg"
    assert await accelerator.choose("qemu", "6.12", boots) == "kvm"
    assert tried == ["hangs", "boots"]


def test_arguments(tmp_path: Path) -> None:
    files = Files.within(tmp_path, tmp_path / "vmlinuz")
    plain = arguments(Wishes(memory=GiB), files, "tcg")
    assert f"size={GiB}B" in plain
    assert "virtio-balloon-pci,id=balloon0" in plain
    assert "-cpu" not in plain
    wishes = Wishes(machine="microvm", device=None, extra=("-m", "slots=2"))
    other = arguments(wishes, files, "kvm")
    assert other[-2:] == ["-m", "slots=2"]
    assert "virtio-blk-device,drive=cache" in other
    assert not any("balloon" in argument for argument in other)


@pytest.mark.parametrize(
    "wishes",
    [
        {"memory": MiB},
        {"machine": "z80"},
        {"cpus": 0},
        {"memory": GiB, "cache": GiB - MiB, "hog": MiB},
    ],
)
async def test_wishes_that_cannot_be_had(wishes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        async with lab.boot(**wishes):  # type: ignore[arg-type]
            pass


async def test_a_paused_guest_cannot_work() -> None:
    with pytest.raises(ValueError, match="call fill_cache and hog once it is ready"):
        async with lab.boot(paused=True, hog=MiB):
            pass


def test_progress_on_a_file_is_one_line_each(tmp_path: Path) -> None:
    stream = io.StringIO()
    bar = lab.ProgressBar(stream)
    for share in (0.0, 0.5, 1.0):
        bar(
            lab.Progress(
                "fetching QEMU 10.0.13 (90 packages)", tmp_path, 36 * MiB, share
            )
        )
    expected = (
        f"qmpballoon: fetching QEMU 10.0.13 (90 packages), 36 MiB -> {tmp_path}\n"
    )
    assert stream.getvalue() == expected


def test_progress_on_a_terminal_moves(tmp_path: Path) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    bar = lab.ProgressBar(stream)
    for share in (0.0, 0.5, 1.0):
        bar(lab.Progress("fetching", tmp_path, 36 * MiB, share))
    *_, half, full = stream.getvalue().split("\r")
    assert half.count("#") == half.count(".")
    assert full.endswith("100%\n")


async def test_a_program_ends_with_its_block(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import signal; signal.pause()"]
    async with running(command, tmp_path / "errors") as process:
        assert process.poll() is None
        # One that is stopped ends as well.
        process.send_signal(signal.SIGSTOP)
    assert process.returncode == -signal.SIGKILL


_PARENT = """
import sys, trio
from pathlib import Path
from qmpballoon.testing.lab.process import running
async def main():
    pause = [sys.executable, "-c", "print(flush=True); import signal; signal.pause()"]
    async with running(pause, Path(sys.argv[1])) as process:
        print(process.pid, flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


async def test_a_program_ends_with_a_killed_parent(tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    with subprocess.Popen(  # noqa: ASYNC220 - trio's own would end it for us
        [sys.executable, "-c", _PARENT, str(errors)], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        descriptor = os.pidfd_open(int(parent.stdout.readline()))
        with trio.fail_after(30):
            while not errors.stat().st_size:  # noqa: ASYNC110 - a file's growth
                await trio.sleep(0.01)
            parent.kill()
            await trio.lowlevel.wait_readable(descriptor)
        os.close(descriptor)


async def test_the_end_of_a_program_can_be_waited_for(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit(7)"]
    async with running(command, tmp_path / "errors") as process:
        with trio.fail_after(30):
            assert await wait_ended(process) == 7


@pytest.mark.parametrize("size", ["1.5G!", "50x", "-1", "50%"])
def test_the_command_refuses_sizes(
    size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([f"--memory={size}"])
    assert ended.value.code == 2
    assert size in capsys.readouterr().err


def test_the_command_says_in_one_line_what_is_wrong(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--qemu", "/nowhere/qemu"]) == 1
    assert main(["--memory=1G", "--cache=99G"]) == 1
    assert main(["--cpus=0"]) == 1
    said = capsys.readouterr().err
    assert "cannot be run as a QEMU" in said
    assert "must be less than that, and not 99 GiB" in said
    assert said.count("\n") == 3


def test_the_program_is_taken_and_not_another_file_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = tmp_path / "usr/share/initramfs-tools/conf-hooks.d/busybox"
    program = tmp_path / "usr/bin/busybox"
    for path in (hook, program):
        path.parent.mkdir(parents=True)
        path.touch()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(packages, "fetch", lambda *_: tmp_path)
    assert parts.find_busybox(silent) == program
