"""libvirt's passthrough with a libvirt that is none, for where there is no daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from frontends import on_each
from scenarios import MEMORY, SCENARIOS, a_second_client
from through_libvirt import ALL

from qmpballoon import (
    CommandError,
    MonitorClosed,
    MonitorError,
    MonitorTimeout,
    MonitorUnreachable,
    UnsafeTarget,
)

if TYPE_CHECKING:
    from fake_libvirt import FakeDomain
    from frontends import FrontEnd, Scenario


@on_each(*ALL)
@pytest.mark.parametrize(
    "scenario",
    [scenario for scenario in SCENARIOS if scenario is not a_second_client],
    ids=lambda scenario: scenario.__name__,
)
def test_scenarios(front: FrontEnd, scenario: Scenario, domain: FakeDomain) -> None:
    front.run(scenario(front, domain))


@on_each(*ALL)
@pytest.mark.parametrize(
    ("code", "error", "unknown"),
    [
        ("VIR_ERR_NO_DOMAIN", MonitorClosed, ()),
        ("VIR_ERR_OPERATION_INVALID", MonitorClosed, ()),
        ("VIR_ERR_NO_SUPPORT", MonitorUnreachable, ()),
        ("VIR_ERR_OPERATION_DENIED", MonitorUnreachable, ()),
        ("VIR_ERR_AUTH_FAILED", MonitorUnreachable, ()),
        ("VIR_ERR_OPERATION_TIMEOUT", MonitorTimeout, ()),
        ("VIR_ERR_OPERATION_FAILED", MonitorClosed, ("query-balloon",)),
    ],
)
def test_errors(
    front: FrontEnd,
    domain: FakeDomain,
    code: str,
    error: type[MonitorError],
    unknown: tuple[str, ...],
) -> None:
    async def fail() -> None:
        async with front.open_balloon(domain) as balloon:  # type: ignore[arg-type]
            domain.fails = code
            await balloon.query()

    with pytest.raises(error, match="vm1: libvirt's words") as caught:
        front.run(fail())
    assert caught.value.unknown_outcome == unknown


@on_each(*ALL)
def test_a_libvirt_that_hangs(front: FrontEnd, domain: FakeDomain) -> None:
    async def hang() -> None:
        async with front.open_balloon(domain, command_timeout=1) as balloon:  # type: ignore[arg-type]
            domain.hang.clear()
            await balloon.query()

    try:
        with pytest.raises(MonitorTimeout, match=r"within 1 s") as caught:
            front.run(hang())
    finally:
        domain.hang.set()
    assert caught.value.unknown_outcome == ("query-balloon",)


@on_each(*ALL)
def test_what_was_given_up_comes_before_what_undoes_it(
    front: FrontEnd, domain: FakeDomain
) -> None:
    """Where several threads wait for a VM, libvirt serves them in any order."""

    async def scenario() -> None:
        async with front.open_balloon(domain, command_timeout=1) as balloon:  # type: ignore[arg-type]
            domain.came.clear()
            domain.hang.clear()
            for give_up in (balloon.set_target(MEMORY // 2), balloon.actual()):
                with pytest.raises(MonitorTimeout):
                    await give_up
            assert domain.came == ["balloon"]
            domain.hang.set()
            await balloon.set_target(MEMORY)
        assert domain.came == ["balloon", "query-balloon", "balloon"]

    try:
        front.run(scenario())
    finally:
        domain.hang.set()


@on_each(*ALL)
def test_an_error_says_which_vm_it_is_about(
    front: FrontEnd, domain: FakeDomain
) -> None:
    async def scenario() -> None:
        for options, name in ({"name": "web-1"}, "web-1"), ({}, f"of {domain.name()}"):
            async with front.open_balloon(domain, **options) as balloon:  # type: ignore[arg-type]
                with pytest.raises(CommandError, match=name) as caught:
                    await balloon.monitor.execute("nope")
                assert (caught.value.vm or "").endswith(name)
                with pytest.raises(UnsafeTarget) as refused:
                    await balloon.resize(1)
                assert (refused.value.vm or "").endswith(name)

    front.run(scenario())
