"""The front ends that are given a domain of libvirt's, not an address."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypedDict, Unpack, cast

from frontends import Asyncio, Awaited, Blocking, Options, Trio

from qmpballoon import libvirt
from qmpballoon.balloon.balloon import Balloon

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from libvirtd import Domain


class Chosen(TypedDict):
    name: str | None
    command_timeout: float


def choose(options: Options) -> Chosen:
    """Return those of the options that a domain's monitors have."""
    timeout = options.get("command_timeout", libvirt.COMMAND_TIMEOUT)
    return {"name": options.get("name"), "command_timeout": timeout}


class ChosenToOpen(Chosen):
    timeout: float


def choose_to_open(options: Options) -> ChosenToOpen:
    """Return those that there are for a monitor of one's own."""
    timeout = options.get("timeout", libvirt.OPEN_TIMEOUT)
    return {**choose(options), "timeout": timeout}


class TrioLibvirt(Trio):
    @asynccontextmanager
    async def open_balloon(
        self, target: Domain, **options: Unpack[Options]
    ) -> AsyncGenerator[Balloon, None]:
        if options.get("own"):
            async with libvirt.open_balloon_trio(
                target, **choose_to_open(options)
            ) as own:
                yield own
        else:
            yield await libvirt.find_balloon_trio(target, **choose(options))


class AsyncioLibvirt(Asyncio):
    @asynccontextmanager
    async def open_balloon(
        self, target: Domain, **options: Unpack[Options]
    ) -> AsyncGenerator[Balloon, None]:
        if options.get("own"):
            async with libvirt.open_balloon_asyncio(
                target, **choose_to_open(options)
            ) as own:
                yield own
        else:
            yield await libvirt.find_balloon_asyncio(target, **choose(options))


class PlainLibvirt(Blocking):
    @asynccontextmanager
    async def open_balloon(
        self, target: Domain, **options: Unpack[Options]
    ) -> AsyncGenerator[Balloon, None]:
        if options.get("own"):
            with libvirt.open_balloon(target, **choose_to_open(options)) as own:
                yield cast("Balloon", Awaited(own, Balloon))
        else:
            found = libvirt.find_balloon(target, **choose(options))
            yield cast("Balloon", Awaited(found, Balloon))


ALL = [TrioLibvirt(), AsyncioLibvirt(), PlainLibvirt()]
