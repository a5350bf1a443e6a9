"""A timeline as a figure: a chart of requested against handed-over memory.

It is drawn by matplotlib's object interface, without global state and without a window.
The same timeline and the same versions give the same bytes.

matplotlib is loaded where it is used, because it is large, and an extra.
"""

# Most of matplotlib's methods take keyword arguments of no stated type.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any, Final

from qmpballoon._printable import make_printable
from qmpballoon.export.series import SERIES, compute_read_rates, find_largest
from qmpballoon.export.summary import describe_timeline
from qmpballoon.sizes import GiB, MiB

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from qmpballoon.balloon.sampling import Sample, Timeline

__all__ = ["draw_figure", "render_figure"]

_SIZE: Final = (12.8, 7.2)  # inches, 16:9
_LONGEST_TITLE: Final = 80  # characters that fit beside each other
_DPI: Final = 150  # 1920 x 1080 dots
_INK: Final = "#22303c"
_FAINT: Final = "#8795a1"
_STYLE: Final[dict[Any, object]] = {
    "font.family": "DejaVu Sans",  # is part of matplotlib: the same on all machines
    "font.size": 13,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "svg.hashsalt": "qmpballoon",  # gives the same ids in an SVG each time
}
_ACTUAL: Final = next(s.colour for s in SERIES if s.name == "actual")
_MARK: Final = "#d55e00"
# Width and style of a curve's line, if they are not the usual ones.
_WIDTH: Final = 2.0
_WIDTHS: Final = {"resident": 2.6, "target": 1.6, "actual": 3.0}
_STYLES: Final = {"target": "--"}
# Where the axes stand: left, bottom, width and height, as parts of the figure. Below
# the sizes there is room for disk reads, if they are known.
_ALONE: Final = (0.075, 0.175, 0.885, 0.645)
_ABOVE: Final = (0.075, 0.325, 0.885, 0.495)
_BELOW: Final = (0.075, 0.175, 0.885, 0.105)
_READS: Final = "#7a5195"
_GIB_FROM: Final = GiB  # a chart of less than this is in MiB


def draw_figure(timeline: Timeline, *, title: str) -> Figure:
    """Draw a timeline. This needs matplotlib.

    Args:
        timeline: The samples. A curve of which no value is known is left out.
        title: The heading. The line below it sums the timeline up.

    Returns:
        A matplotlib figure of 12.8 by 7.2 inches, which the caller may change.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib as mpl  # noqa: PLC0415 - an extra
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    samples = list(timeline)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, dpi=_DPI, facecolor="white")
        FigureCanvasAgg(figure)
        rates = compute_read_rates(samples)
        axes = figure.add_axes(_ABOVE if rates else _ALONE)
        figure.text(
            0.03,
            0.93,
            make_printable(title, _LONGEST_TITLE),
            fontsize=22,
            fontweight="bold",
            parse_math=False,  # a name may hold dollar signs
        )
        about = "   \u00b7   ".join(describe_timeline(samples))
        figure.text(0.03, 0.875, about, fontsize=14, color=_FAINT)
        top = max((find_largest(sample) for sample in samples), default=MiB)
        unit, name = (GiB, "GiB") if top >= _GIB_FROM else (MiB, "MiB")
        _draw_lines(axes, samples, unit)
        _draw_marks(axes, samples, top / unit)
        _set_axes(axes, samples, name, top / unit)
        if rates:
            axes.set_xlabel("")
            axes.tick_params(labelbottom=False)
            _draw_reads(figure.add_axes(_BELOW, sharex=axes), rates)
        _add_legend(figure, axes)
    return figure


def render_figure(figure: Figure, kind: str) -> bytes:
    """Return a figure as the contents of a file.

    Args:
        figure: What :func:`draw_figure` has drawn.
        kind: ``"svg"`` or ``"png"``; a PNG has 1920 by 1080 pixels.
    """
    import matplotlib as mpl  # noqa: PLC0415 - an extra

    data = io.BytesIO()
    # Without a date, so that the same timeline gives the same file.
    metadata = {"Date": None} if kind == "svg" else None
    with mpl.rc_context(_STYLE):
        figure.savefig(data, format=kind, metadata=metadata)
    return data.getvalue()


def _draw_lines(axes: Axes, samples: list[Sample], unit: int) -> None:
    times = [sample.t for sample in samples]
    if samples:
        axes.fill_between(
            times,
            [sample.actual / unit for sample in samples],
            max(sample.actual for sample in samples) / unit,
            color=_ACTUAL,
            alpha=0.08,
            linewidth=0,
            label="in the balloon",
        )
    for series in SERIES:
        sizes = [series.get_size(sample) for sample in samples]
        if any(size is not None for size in sizes):
            axes.plot(
                times,
                [math.nan if size is None else size / unit for size in sizes],
                label=series.label,
                color=series.colour,
                linewidth=_WIDTHS.get(series.name, _WIDTH),
                linestyle=_STYLES.get(series.name, "-"),
                # A target is set at one moment, right after the sample before. All
                # other figures change gradually.
                drawstyle="steps-pre" if series.name == "target" else "default",
                solid_capstyle="round",
            )


def _draw_reads(axes: Axes, rates: list[tuple[float, float]]) -> None:
    """Draw how fast the VM reads from its disks."""
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 - an extra

    times, sizes = [time for time, _ in rates], [rate / MiB for _, rate in rates]
    # A rate is that of the time up to its sample.
    axes.fill_between(times, sizes, step="pre", color=_READS, alpha=0.25, linewidth=0)
    axes.plot(times, sizes, color=_READS, linewidth=1.6, drawstyle="steps-pre")
    axes.set_ylabel("disk reads\nMiB/s", fontsize=11)
    axes.set_xlabel("seconds")
    axes.set_ylim(0, max(*sizes, 1.0) * 1.1)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=2))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, pad=6, labelbottom=True)


def _add_legend(figure: Figure, axes: Axes) -> None:
    # What is drawn last, and so is on top, is named first.
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles[::-1],
        labels[::-1],
        loc="lower center",
        ncols=len(labels),
        frameon=False,
        handlelength=1.6,
        handletextpad=0.5,
        columnspacing=1.4,
    )


def _draw_marks(axes: Axes, samples: list[Sample], top: float) -> None:
    """Draw a vertical line with a word at each mark."""
    for sample in samples:
        if sample.mark is not None:
            axes.axvline(sample.t, color=_MARK, linewidth=1.4, linestyle=":")
            axes.annotate(
                make_printable(sample.mark, _LONGEST_TITLE),
                (sample.t, top),
                xytext=(4, 0),
                textcoords="offset points",
                color=_MARK,
                va="bottom",
                parse_math=False,
            )


def _set_axes(axes: Axes, samples: list[Sample], unit: str, top: float) -> None:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 - an extra

    axes.set_ylabel(unit)
    axes.set_xlabel("seconds")
    axes.set_ylim(0, top * 1.06)
    axes.set_xlim(0, max(samples[-1].t if samples else 0.0, 1.0) * 1.01)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(axis="y", color="#e4e8ec", linewidth=1)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, pad=6)
