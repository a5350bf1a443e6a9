"""``qmpballoon plot``: a recording, drawn."""

from __future__ import annotations

from pathlib import Path

import click

from qmpballoon import export
from qmpballoon.cli._options import report_file
from qmpballoon.cli.render.live import has_braille
from qmpballoon.export.recording import read_recording

__all__ = ["plot"]


@click.command()
@click.argument(
    "recording",
    metavar="FILE.jsonl",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option(
    "--output",
    type=report_file,
    metavar="FILE",
    help=f"Write it, by the name's end: {export.CHOICE}.  [default: the terminal]",
)
@click.option("--title", help="The chart's heading.  [default: the file's name]")
def plot(recording: Path, output: Path | None, title: str | None) -> None:
    """Draw what `watch --record` or `watch --json` has recorded."""
    try:
        with recording.open(encoding="utf-8") as file:
            timeline = read_recording(file)
    except ValueError as error:
        raise click.UsageError(f"{recording}: {error}") from error
    if not len(timeline):
        raise click.UsageError(f"{recording} is empty: nothing was recorded")
    heading = title or recording.stem
    if output:
        export.save(output, timeline, title=heading)
    elif not has_braille():
        raise click.UsageError(
            "a chart cannot be shown here, where text is not UTF-8: give a file with"
            " --output"
        )
    else:
        from qmpballoon.cli.render.screen import print_chart  # noqa: PLC0415 - loads rich

        print_chart(heading, timeline)
