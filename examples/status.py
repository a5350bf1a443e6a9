"""Show a VM's size, its guest's memory, and QEMU's resident memory."""

from __future__ import annotations

import trio
from _common import make_parser, parse_arguments

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
    with parse_arguments(make_parser(__doc__)) as options:
        trio.run(show, options.socket)
