"""Bring a guest to a size, or as near as it can get, with a progress bar.

Needs rich, which comes with the extra ``cli``.
"""

from __future__ import annotations

import trio
from _common import make_parser, parse_arguments
from rich import progress

from qmpballoon import Progress, ResizeResult, format_size, open_balloon, parse_size


async def resize(socket: str, target: str) -> ResizeResult:
    """Resize a guest to a size such as ``2G`` or ``50%``, and show the progress."""
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    async with open_balloon(socket) as balloon:
        info = await balloon.query()
        size = parse_size(target, whole=info.total)
        with progress.Progress(*columns) as bar:
            task = bar.add_task("waiting", total=abs(size - info.actual))

            def show(seen: Progress) -> None:
                moved = abs(seen.actual - seen.before)
                bar.update(task, description=seen.phase, completed=moved)

            return await balloon.resize(size, on_stall="settle", on_progress=show)


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--target", default="50%", help="a size, or a share [50%%]")
    with parse_arguments(parser) as options:
        result = trio.run(resize, options.socket, options.target)
    print(f"{result.outcome} at {format_size(result.actual)} in {result.seconds:.1f} s")
    if result.diagnosis is not None:
        print(result.diagnosis.detail)
