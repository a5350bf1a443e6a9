"""``qmpballoon plot``: draw a recording."""

from __future__ import annotations

from pathlib import Path

import click

from qmpballoon import export
from qmpballoon.cli._completion import complete_file
from qmpballoon.cli._display import has_braille, print_chart
from qmpballoon.cli._options import check_report_file
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
    type=check_report_file,
    shell_complete=complete_file,
    metavar="FILE",
    help="Where to write it: a page, a chart or the figures. The name's ending chooses"
    f" the format: {export.CHOICE}.  [default: draw on the terminal]",
)
@click.option("--title", help="The chart's heading.  [default: the file's name]")
def plot(recording: Path, output: Path | None, title: str | None) -> None:
    """Draw what `watch --record` or `watch --json` has recorded."""
    try:
        # What is not UTF-8 is no sample, either.
        with recording.open(encoding="utf-8", errors="replace") as file:
            timeline = read_recording(file)
    except ValueError as error:
        raise click.UsageError(f"{recording}: {error}") from error
    except OSError as error:  # its own message may not name the file
        raise OSError(error.errno, error.strerror, str(recording)) from error
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
        print_chart(heading, timeline)
