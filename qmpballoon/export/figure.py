"""A timeline as a chart for a slide: what was requested against what was handed over.

Drawn with matplotlib's object interface: no global state, no window. The same
timeline gives the same bytes, whenever and wherever it is drawn with the same
versions.
"""

# Most of matplotlib's methods take keyword arguments of no stated type.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
from attrs import frozen
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qmpballoon.sizes import GiB, MiB, format_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from qmpballoon.balloon.sampling import Sample, Timeline

__all__ = ["draw", "render"]

_SIZE: Final = (12.8, 7.2)  # inches, 16:9
_DPI: Final = 150  # 1920 x 1080 dots
_INK: Final = "#22303c"
_FAINT: Final = "#8795a1"
_STYLE: Final[dict[Any, object]] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
    "font.size": 13,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "svg.hashsalt": "qmpballoon",  # makes the ids in the SVG the same each time
}


@frozen
class _Line:
    name: str
    label: str
    colour: str
    width: float = 2.0
    style: str = "-"


# Okabe and Ito's colours, which the colour-blind can tell apart too.
_LINES: Final = (
    _Line("available", "available", "#56b4e9"),
    _Line("free", "guest free", "#009e73"),
    _Line("disk_caches", "guest cache", "#e69f00"),
    _Line("resident", "host resident", "#cc79a7", 2.6),
    _Line("target", "requested", _INK, 1.6, "--"),
    _Line("actual", "actual", "#0072b2", 3.0),
)
_GIB_FROM: Final = GiB  # a chart of less than this is in MiB


def draw(timeline: Timeline, *, title: str) -> Figure:
    """Draw a timeline.

    Args:
        timeline: What was seen; nothing is drawn of figures nobody knew.
        title: The heading. A second line with the outcome is made from the timeline.

    Returns:
        A figure, 16 to 9, that belongs to the caller alone.
    """
    samples = list(timeline)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, dpi=_DPI, facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.075, 0.175, 0.885, 0.645))
        figure.text(0.03, 0.93, title, fontsize=22, fontweight="bold")
        figure.text(0.03, 0.875, _outcome(samples), fontsize=14, color=_FAINT)
        top = max((_largest(sample) for sample in samples), default=MiB)
        unit, name = (GiB, "GiB") if top >= _GIB_FROM else (MiB, "MiB")
        _draw_lines(axes, samples, unit)
        _mark(axes, samples, top / unit)
        _set_axes(axes, samples, name, top / unit)
        _name_lines(figure, axes)
    return figure


def render(figure: Figure, kind: str) -> bytes:
    """Return a figure as a file.

    Args:
        figure: As :func:`draw` has made it.
        kind: ``"svg"`` or ``"png"``.
    """
    data = io.BytesIO()
    # No date: the same timeline is the same file.
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
            color="#0072b2",
            alpha=0.08,
            linewidth=0,
            label="in the balloon",
        )
    for line in _LINES:
        sizes = [getattr(sample, line.name) for sample in samples]
        if any(size is not None for size in sizes):
            axes.plot(
                times,
                [math.nan if size is None else size / unit for size in sizes],
                label=line.label,
                color=line.colour,
                linewidth=line.width,
                linestyle=line.style,
                # A target is set at a moment, right behind the sample before;
                # everything else moves.
                drawstyle="steps-pre" if line.name == "target" else "default",
                solid_capstyle="round",
            )


def _name_lines(figure: Figure, axes: Axes) -> None:
    # What is looked at most is drawn last, on top, and named first.
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


def _mark(axes: Axes, samples: list[Sample], top: float) -> None:
    """Draw a line with a word where something happened."""
    for sample in samples:
        if sample.mark is not None:
            axes.axvline(sample.t, color="#d55e00", linewidth=1.4, linestyle=":")
            axes.annotate(
                sample.mark,
                (sample.t, top),
                xytext=(4, 0),
                textcoords="offset points",
                color="#d55e00",
                va="bottom",
            )


def _set_axes(axes: Axes, samples: list[Sample], unit: str, top: float) -> None:
    axes.set_ylabel(unit)
    axes.set_xlabel("seconds")
    axes.set_ylim(0, top * 1.06)
    axes.set_xlim(0, max(samples[-1].t if samples else 0.0, 1.0) * 1.01)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(axis="y", color="#e4e8ec", linewidth=1)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, pad=6)


def _outcome(samples: list[Sample]) -> str:
    """Sum up in one line what the chart shows."""
    if not samples:
        return "nothing was seen"
    first, last = samples[0], samples[-1]
    parts: list[str] = []
    targets = [sample.target for sample in samples if sample.target is not None]
    if targets:
        asked = max(first.actual - min(targets), 0)
        got = max(first.actual - min(sample.actual for sample in samples), 0)
        parts.append(
            f"requested {format_size(asked)}, handed over {format_size(got)},"
            f" {last.t - first.t:.1f} s"
        )
    for label, name in (("page cache", "disk_caches"), ("host resident", "resident")):
        before, after = getattr(first, name), getattr(last, name)
        if before is not None and after is not None:
            parts.append(f"{label} {format_size(before)} \u2192 {format_size(after)}")
    return "   \u00b7   ".join(parts)


def _largest(sample: Sample) -> int:
    return max(getattr(sample, line.name) or 0 for line in _LINES)
