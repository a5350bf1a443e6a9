"""Reclaim what a guest can spare, give it back, and draw a chart of it.

Needs matplotlib, which comes with the extra ``charts``.
"""

from __future__ import annotations

import trio
from _common import make_parser, parse_arguments
from matplotlib.figure import Figure

from qmpballoon import GiB, Progress, ReclaimReport, format_size, open_balloon

LINES = {
    "requested": "target",
    "actual": "actual",
    "guest free": "free",
    "guest page cache": "disk_caches",
    "QEMU resident": "resident",
}


async def reclaim(socket: str) -> ReclaimReport:
    """Reclaim from one guest, and print its size every second."""
    due = 0.0

    def show(progress: Progress) -> None:
        nonlocal due
        if progress.seconds >= due:
            size = format_size(progress.actual)
            print(f"{progress.seconds:5.1f} s  {progress.stage}: the guest has {size}")
            due += 1

    async with open_balloon(socket) as balloon:
        print((await balloon.plan_reclaim()).describe())
        return await balloon.reclaim(on_progress=show)


def draw(report: ReclaimReport, path: str) -> None:
    """Draw the report's timeline; the path's ending chooses the format."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.add_subplot(title=report.reason, xlabel="seconds", ylabel="GiB")
    for name, field in LINES.items():
        points = [(sample.t, getattr(sample, field)) for sample in report.timeline]
        known = [(t, size / GiB) for t, size in points if size is not None]
        if known:
            axes.plot(*zip(*known, strict=True), label=name)
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--chart", default="reclaim.svg", help="[reclaim.svg]")
    with parse_arguments(parser) as options:
        done = trio.run(reclaim, options.socket)
    draw(done, options.chart)
    print(f"{done.outcome}: {format_size(done.handed_over)}; see {options.chart}")
