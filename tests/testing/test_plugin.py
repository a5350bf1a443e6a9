"""What a project gets that has qmpballoon installed, and pytest."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """Make a project with nothing but this file's tests in it."""
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    return pytester


def test_the_fixtures_are_there_and_say_what_they_are(
    project: pytest.Pytester,
) -> None:
    listed = project.runpytest_subprocess("--fixtures")
    for name in ("fake_qemu", "fake_qemu_config", "start_fake_qemu", "simulated_world"):
        listed.stdout.re_match_lines([rf"{name}\b.*plugin\.py:\d+", r"    \w+"])


def test_a_fake_qemu_for_each_test(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        from qmpballoon import GiB
        from qmpballoon.blocking import open_balloon

        seen = []

        def shrink(path):
            with open_balloon(path) as balloon:
                seen.append(balloon.actual())
                balloon.set_target(1 * GiB)

        def test_first(fake_qemu):
            shrink(fake_qemu.socket)

        def test_second(fake_qemu):
            shrink(fake_qemu.socket)
            assert seen == [2 * GiB, 2 * GiB]
        """
    )
    project.runpytest_subprocess().assert_outcomes(passed=2)


def test_on_any_event_loop(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import asyncio
        import trio
        from qmpballoon import GiB, open_balloon
        from qmpballoon.asyncio import open_balloon as open_on_asyncio

        async def look(balloons):
            async with balloons as balloon:
                return await balloon.actual()

        def test_asyncio(fake_qemu):
            assert asyncio.run(look(open_on_asyncio(fake_qemu.socket))) == 2 * GiB

        def test_trio(fake_qemu):
            assert trio.run(look, open_balloon(fake_qemu.socket)) == 2 * GiB
        """
    )
    project.runpytest_subprocess().assert_outcomes(passed=2)


def test_the_vm_can_be_another(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import pytest
        from qmpballoon import GiB, NoBalloonDevice
        from qmpballoon.blocking import open_balloon
        from qmpballoon.testing import MachineConfig

        @pytest.fixture
        def fake_qemu_config():
            return MachineConfig(balloon=None)

        def test_no_balloon(fake_qemu):
            with pytest.raises(NoBalloonDevice):
                with open_balloon(fake_qemu.socket):
                    pass
        """
    )
    project.runpytest_subprocess().assert_outcomes(passed=1)


def test_several_vms(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        from qmpballoon import GiB
        from qmpballoon.blocking import open_balloon
        from qmpballoon.testing import MachineConfig

        def test_two(start_fake_qemu):
            sizes = [1 * GiB, 3 * GiB]
            fakes = [start_fake_qemu(MachineConfig(memory=size)) for size in sizes]
            for fake, size in zip(fakes, sizes, strict=True):
                with open_balloon(fake.socket) as balloon:
                    assert balloon.actual() == size
        """
    )
    project.runpytest_subprocess().assert_outcomes(passed=1)


def test_a_world_under_hypothesis(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        from hypothesis import given, settings, strategies as st
        from qmpballoon import GiB, MiB, open_balloon
        from qmpballoon.testing import MachineConfig

        async def reclaim(vm):
            async with open_balloon(vm.connect(), wall_clock=vm.wall_clock) as balloon:
                return await balloon.reclaim()

        @settings(max_examples=5, deadline=None)
        @given(memory=st.integers(256, 4096))
        def test_any_size(simulated_world, memory):
            config = MachineConfig(memory=memory * MiB)
            assert simulated_world(reclaim, config).outcome in ("done", "refused")

        def test_the_same_twice(simulated_world):
            first, second = simulated_world(reclaim), simulated_world(reclaim)
            assert first.to_json() == second.to_json()
        """
    )
    project.runpytest_subprocess().assert_outcomes(passed=2)


def test_projects_that_use_none_of_it_load_none_of_it(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import sys

        def test_nothing():
            loaded = {name for name in sys.modules if name.startswith("qmpballoon")}
            assert loaded == {
                "qmpballoon",
                "qmpballoon._lazy",
                "qmpballoon.testing",
                "qmpballoon.testing.plugin",
            }
        """
    )
    # pytest-trio, where it is installed, loads trio in every project.
    project.runpytest_subprocess("-p", "no:trio").assert_outcomes(passed=1)


def test_a_world_on_asyncio_and_a_profile_of_hypothesis(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(
        """
        from hypothesis import Phase, given, settings
        from qmpballoon.asyncio import open_balloon
        from qmpballoon.testing.strategies import fleets

        async def actual(vm):
            async with open_balloon(vm.connect(), wall_clock=vm.wall_clock) as balloon:
                return vm.actual == await balloon.actual()

        @settings(max_examples=5)
        @given(configs=fleets(largest=1))
        def test_any(simulated_asyncio_world, configs):
            assert simulated_asyncio_world(actual, *configs)

        def test_profile():
            assert Phase.explain not in settings().phases
            assert settings().deadline is None
        """
    )
    done = project.runpytest_subprocess("--hypothesis-profile=qmpballoon")
    done.assert_outcomes(passed=2)
