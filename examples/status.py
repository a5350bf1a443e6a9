"""Show what a VM has, what its guest says of it, and what the host sees."""

from __future__ import annotations

import trio
from _common import parsed, vm_parser

from qmpballoon import format_size, open_balloon


async def show(socket: str) -> None:
    """Print one VM's sizes."""
    async with open_balloon(socket) as balloon:
        info = await balloon.query()
        stats = await balloon.refresh_stats()
        rows = {
            "RAM": info.total,
            "has": info.actual,
            "free": stats.free,
            "page cache": stats.disk_caches,
            "available": stats.available,
            "QEMU resident": balloon.resident(),
        }
    for name, size in rows.items():
        print(f"{name:<14}{'unknown' if size is None else format_size(size):>12}")


if __name__ == "__main__":
    with parsed(vm_parser(__doc__)) as options:
        trio.run(show, options.socket)
