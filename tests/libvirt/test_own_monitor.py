"""A monitor of one's own on a VM of libvirt's, with a libvirt that is none."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import pytest
from added_monitors import wait_until_gone
from cancelling import descriptors
from fake_libvirt import FakeDomain, install
from frontends import elsewhere, on
from scenarios import MEMORY
from through_libvirt import ALL

from qmpballoon import MonitorClosed, MonitorTimeout, OwnMonitorUnavailable, blocking
from qmpballoon._transport import own_monitor
from qmpballoon.testing import MachineConfig, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from frontends import FrontEnd

    from qmpballoon.testing import ThreadedFake


ASKED = ("query-version", "query-chardev")
Domain: TypeAlias = Any
"""libvirt's, which has no types; or rather a :class:`FakeDomain`."""


@pytest.fixture
def fake(request: pytest.FixtureRequest) -> Iterator[ThreadedFake]:
    version = getattr(request, "param", "11.1")
    with serve(MachineConfig(memory=MEMORY), version=version) as fake:
        yield fake


@pytest.fixture
def vm(fake: ThreadedFake, monkeypatch: pytest.MonkeyPatch) -> Iterator[Domain]:
    install(monkeypatch)
    with blocking.open_monitor(fake.socket) as monitor:
        domain = FakeDomain(monitor)
        domain.hang.set()
        yield domain


@on(*ALL)
async def test_libvirt_is_asked_no_more(
    front: FrontEnd, vm: Domain, fake: ThreadedFake
) -> None:
    before = descriptors()
    async with front.open_balloon(vm, own=True, name="web-1") as balloon:
        assert vm.came == [*ASKED, "getfd", "chardev-add", "object-add"]
        vm.fails = "VIR_ERR_OPERATION_FAILED"
        await balloon.resize(MEMORY // 2)
        assert cast("Any", balloon.monitor).name == "web-1"
        assert cast("Any", balloon.monitor).subscribe("STOP")
    elsewhere(lambda: wait_until_gone(fake))
    while descriptors() != before:
        pass


@on(*ALL)
@pytest.mark.parametrize("fake", ["10.0"], indirect=True)
async def test_an_older_qemu_is_told_of(
    front: FrontEnd, vm: Domain, fake: ThreadedFake
) -> None:
    with pytest.raises(
        OwnMonitorUnavailable, match=r"of vm1: no .* \(QEMU 10\.0\.13 c"
    ):
        async with front.open_balloon(vm, own=True):
            pytest.fail("it opened")
    assert vm.came == ["query-version"]
    elsewhere(lambda: wait_until_gone(fake))


@on(*ALL)
@pytest.mark.parametrize("code", ["VIR_ERR_ARGUMENT_UNSUPPORTED", "VIR_ERR_NO_SUPPORT"])
async def test_a_libvirt_that_hands_no_descriptors_on(
    front: FrontEnd, code: str, vm: Domain
) -> None:
    """It is on another host, or older than 8.2."""
    vm.takes_no_descriptors = code
    before = descriptors()
    with pytest.raises(OwnMonitorUnavailable, match=r"added \(libvirt's words\): give"):
        async with front.open_balloon(vm, own=True):
            pytest.fail("it opened")
    assert vm.came == [*ASKED]
    assert descriptors() == before


@on(*ALL)
async def test_a_vm_that_does_not_run(front: FrontEnd, vm: Domain) -> None:
    vm.fails = "VIR_ERR_OPERATION_INVALID"
    with pytest.raises(MonitorClosed, match="start the VM"):
        async with front.open_balloon(vm, own=True):
            pytest.fail("it opened")


@on(*ALL)
async def test_what_was_given_up_takes_no_other_file(
    front: FrontEnd, vm: Domain, fake: ThreadedFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number that was closed may be another file's when libvirt comes to it."""
    libvirt_qemu = sys.modules["libvirt_qemu"]
    given_up, sent = threading.Event(), list[str]()

    def come_late(domain: FakeDomain, request: str, files: list[int], _: int) -> object:
        given_up.wait(120)
        sent.extend(os.readlink(f"/proc/self/fd/{each}") for each in files)  # noqa: PTH115
        return domain.run_with_files(request, files, 0)

    monkeypatch.setattr(libvirt_qemu, "qemuMonitorCommandWithFiles", come_late)
    monkeypatch.setattr(own_monitor, "_UNDO_TIMEOUT", 0.1)
    before = descriptors()
    with pytest.raises(MonitorTimeout):
        async with front.open_balloon(vm, own=True, timeout=1):
            pytest.fail("it opened")
    with ExitStack() as others:
        for _ in range(20):
            others.enter_context(Path(os.devnull).open())  # noqa: ASYNC230
        given_up.set()
        while "closefd" not in vm.came:
            pass
    elsewhere(lambda: wait_until_gone(fake))
    (file,) = sent
    assert file.startswith("socket:")
    while descriptors() != before:
        pass
