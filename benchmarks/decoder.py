"""The CPU time of decoding, compared with ``json.loads`` of the whole input.

First the answer to ``query-qmp-schema``, the longest that QEMU gives, is decoded in
pieces. Each way of cutting and ``json.loads`` take turns; the median of the ratios and
the middle half of them are shown. Then inputs of several kinds are made ten times
longer, up to the limits. The time should become ten times longer, too.

    python benchmarks/decoder.py [--rounds N] [--qemu PROGRAM]
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from monitor import compare, run_qemu

from qmpballoon import blocking
from qmpballoon.qmp import Decoder, Limits

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
LIMITS = Limits(size=64 * MIB + 64, tokens=1 << 40)
KINDS: dict[str, tuple[bytes, bytes, bytes]] = {
    "one string": (b'{"a": "', b"x" * 16, b'"}\n'),
    "escapes": (b'{"a": "', b'\\"\\\\\\u00e9{', b'"}\n'),
    "objects": (b"[0", b', {"name": "x", "args": []}', b"]\n"),
    "numbers": (b"[0", b", 1234567", b"]\n"),
    "short messages": (b"", b'{"return": {}, "id": 1}\r\n', b""),
    "one line of messages": (b"", b'{"return": {}, "id": 1}', b"\n"),
    "pretty": (b"[0", b',\n    {\n        "name": "x"\n    }', b"\n]\n"),
}


def read_schema(program: str) -> bytes:
    """Return QEMU's answer to ``query-qmp-schema``, as bytes on the wire."""
    with run_qemu(program) as path, blocking.open_monitor(path) as monitor:
        answer = {"return": monitor.execute("query-qmp-schema"), "id": 1}
    return json.dumps(answer).encode() + b"\r\n"


def measure(what: Callable[[], object]) -> float:
    """Return the CPU time that a call takes."""
    start = time.process_time()
    what()
    return time.process_time() - start


def decode(data: bytes, size: int) -> None:
    """Decode all of it, ``size`` bytes at a time."""
    decoder = Decoder(LIMITS)
    view = memoryview(data)
    for start in range(0, len(data), size):
        decoder.feed(view[start : start + size])
        while decoder.next() is not None:
            pass
    if decoder.pending:
        raise SystemExit("a message is left over")


def decode_cut(data: bytes, place: int) -> None:
    """Decode one message in two pieces."""
    decoder = Decoder()
    decoder.feed(data[:place])
    first = decoder.next()
    decoder.feed(data[place:])
    if first is None and decoder.next() is None:
        raise SystemExit("no message came out")


def show_schema(data: bytes, rounds: int) -> None:
    """Print the cost of cutting the schema."""
    print(f"the schema, {len(data)} bytes; json.loads = 1")
    seen: list[float] = []
    whole: list[float] = []
    for number in range(rounds):
        place = len(data) * number // rounds
        whole.append(measure(lambda: json.loads(data)))
        seen.append(measure(lambda place=place: decode_cut(data, place)))
    print(f"  cut in two: {compare(seen, whole)}")
    for size in (65536, 4096, 512, 64):
        seen, whole = [], []
        for _ in range(max(rounds // 10, 3)):
            whole.append(measure(lambda: json.loads(data)))
            seen.append(measure(lambda size=size: decode(data, size)))
        print(f"  {size} bytes at a time: {compare(seen, whole)}")


def show_growth(largest: int) -> None:
    """Print how much longer ten times the input takes."""
    print("time for ten times the input, at most, up to 64 MiB")
    for kind, (start, middle, end) in KINDS.items():
        for chunk, top in ((65536, largest), (1460, largest), (64, largest // 10)):
            times: list[float] = []
            for size in (top // 1000, top // 100, top // 10, top):
                data = start + middle * (size // len(middle)) + end
                work = partial(decode, data, chunk)
                times.append(min(measure(work) for _ in range(3)))
            growth = max(after / before for before, after in pairwise(times))
            print(
                f"  {kind:22} {chunk:6} at a time: x {growth:.1f} at most", flush=True
            )


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--qemu", default="qemu-system-x86_64", metavar="PROGRAM")
    options = parser.parse_args()
    show_schema(read_schema(options.qemu), options.rounds)
    gc.disable()  # it takes longer with more live objects, whoever made them
    show_growth(64 * MIB)


if __name__ == "__main__":
    main()
