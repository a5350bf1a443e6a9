"""Watch a guest's memory, several times a second, until Ctrl-C.

Each sample is a line of JSON, for use in a pipe: sizes in bytes, times in seconds.
"""

from __future__ import annotations

import json
import sys

import trio
from _common import make_parser, parse_arguments

from qmpballoon import open_balloon


async def watch(socket: str, interval: float, count: int) -> None:
    """Print samples; the statistics interval is restored at the end."""
    async with open_balloon(socket) as balloon, balloon.sampler() as sampler:
        for _ in range(count):
            await trio.sleep(interval)
            sample = await sampler.take()
            print(json.dumps(sample.to_json()), flush=True)


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--interval", type=float, default=0.2, help="seconds [0.2]")
    parser.add_argument("--count", type=int, default=sys.maxsize, help="[for ever]")
    with parse_arguments(parser) as options:
        try:
            trio.run(watch, options.socket, options.interval, options.count)
        except KeyboardInterrupt:
            print("done", file=sys.stderr)
