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


class Deadlines(TypedDict):
    command_timeout: float


def deadlines(options: Options) -> Deadlines:
    """Return those of the options that a domain's commands have."""
    return {"command_timeout": options.get("command_timeout", libvirt.COMMAND_TIMEOUT)}


class TrioLibvirt(Trio):
    @asynccontextmanager
    async def open_balloon(
        self, target: Domain, **options: Unpack[Options]
    ) -> AsyncGenerator[Balloon, None]:
        yield await libvirt.find_balloon_trio(target, **deadlines(options))


class AsyncioLibvirt(Asyncio):
    @asynccontextmanager
    async def open_balloon(
        self, target: Domain, **options: Unpack[Options]
    ) -> AsyncGenerator[Balloon, None]:
        yield await libvirt.find_balloon_asyncio(target, **deadlines(options))


class PlainLibvirt(Blocking):
    @asynccontextmanager
    async def open_balloon(
        self, target: Domain, **options: Unpack[Options]
    ) -> AsyncGenerator[Balloon, None]:
        yield cast(
            "Balloon",
            Awaited(libvirt.find_balloon(target, **deadlines(options)), Balloon),
        )


ALL = [TrioLibvirt(), AsyncioLibvirt(), PlainLibvirt()]
