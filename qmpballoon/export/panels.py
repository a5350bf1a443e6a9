"""A timeline's charts for a page: one below the other, on the same axis of time.

A chart is SVG that stretches with the page. Only its curves are stretched: texts and
lines are beside or above them, and are placed in per cent. So a chart can be read at
any width without a script, and a script can zoom by changing the visible part of the
curves.

The curves' units are milliseconds to the right, and parts of the chart's height
downwards. The page's style sheet gives them their colours.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Literal
from xml.etree import ElementTree as ET

from attrs import evolve, frozen

from qmpballoon._printable import make_printable
from qmpballoon.export.series import SERIES, compute_read_rates
from qmpballoon.sizes import GiB, KiB, MiB, TiB, format_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qmpballoon.balloon.sampling import Sample

__all__ = ["Axis", "Curve", "Panel", "draw_panel", "make", "make_panels"]

_HEIGHT: Final = 4000  # units from top to bottom: more than a screen has dots
_MARGIN: Final = 1.05  # of the largest value is the top
_MOST_TICKS: Final = 5
_UNITS: Final = {TiB: "TiB", GiB: "GiB", MiB: "MiB", KiB: "KiB", 1: "B"}
_LABELS: Final = {series.name: series.label for series in SERIES}
_BELOW: Final = ("available", "free", "disk_caches", "resident")
# What more marks than that say cannot be read; in a list they still are.
_MOST_MARKS: Final = 100
_LONGEST_MARK: Final = 80  # characters
_ROWS: Final = 3  # of words of marks, one below the other
_TIMES: Final = {3600: "h", 60: "min"}

Unit = Literal["size", "rate"]
# Where less than this is read, a chart of it shows that it is little.
_LEAST_TOP: Final[dict[Unit, int]] = {"size": 1, "rate": MiB}


@frozen
class Axis:
    """The axis of time: it begins at 0, as the times of samples do.

    Attributes:
        times: The samples' times in whole milliseconds.
    """

    times: Sequence[int]

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Axis:
        """Return the axis for samples, of which there is at least one."""
        return cls([round(sample.t * 1000) for sample in samples])

    @property
    def start(self) -> int:
        """Where it begins."""
        return min(self.times[0], 0)

    @property
    def span(self) -> int:
        """How long it is, 1 or more."""
        return max(self.times[-1] - self.start, 1)

    def place(self, time: float) -> str:
        """Return where a time is, as a share of the axis."""
        return f"{(time - self.start) / self.span * 100:.2f}%"


def make(
    tag: str,
    attributes: Mapping[str, str | int] | None = None,
    *children: ET.Element | str,
) -> ET.Element:
    """Make an element. What is a text stays one, whatever it holds.

    Args:
        tag: The element's name.
        attributes: Its attributes.
        children: What it holds, in that order.
    """
    made = ET.Element(tag, {key: str(item) for key, item in (attributes or {}).items()})
    for child in children:
        if isinstance(child, ET.Element):
            made.append(child)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + child
        else:
            made.text = (made.text or "") + child
    return made


@frozen
class Curve:
    """One curve of a chart.

    Attributes:
        name: Names it to the page's style sheet and script.
        label: Names it to people.
        values: Its value at each sample in bytes, or in bytes a second; ``None`` where
            it is not known.
        is_step: Whether a value holds since the sample before, rather than being one
            that a gradual change has reached.
        ceiling: If there is one, the area between it and the curve is filled, and no
            line is drawn; and what counts is how far below it the curve is.
    """

    name: str
    label: str
    values: Sequence[int | None]
    is_step: bool = False
    ceiling: int | None = None

    @property
    def shown(self) -> list[int | None]:
        """The values that people are told."""
        if self.ceiling is None:
            return list(self.values)
        top = self.ceiling
        return [None if value is None else top - value for value in self.values]


@frozen
class Panel:
    """One chart.

    Attributes:
        name: Names it to the page's style sheet.
        heading: Names it to people.
        unit: Whether its values are bytes, or bytes a second.
        curves: Its curves, in the order of drawing.
        top: What its height stands for; a little more than its largest value.
    """

    name: str
    heading: str
    unit: Unit
    curves: Sequence[Curve]
    top: float

    @classmethod
    def of(
        cls, name: str, heading: str, curves: Sequence[Curve], unit: Unit = "size"
    ) -> Panel:
        """Return a chart of those curves of which anything is known."""
        known = [curve for curve in curves if any(v is not None for v in curve.values)]
        values = [value or 0 for curve in known for value in curve.values]
        top = max([*values, _LEAST_TOP[unit]]) * _MARGIN
        return cls(name, heading, unit, known, top)

    def format(self, value: int) -> str:
        """Return a value as text for people."""
        return f"{format_size(value)}{'/s' if self.unit == 'rate' else ''}"


def make_panels(samples: Sequence[Sample], ram: int | None = None) -> list[Panel]:
    """Return the charts of which anything is known, the most important one first.

    Args:
        samples: What is shown.
        ram: Bytes of the VM's RAM: what lacks of it is in the balloon. ``None``: what
            lacks of the largest size is.
    """
    rates = {t: round(rate) for t, rate in compute_read_rates(samples)}
    reads = [rates.get(sample.t) for sample in samples]
    ceiling = max([*(sample.actual for sample in samples), ram or 0])
    sizes = {
        name: Curve(
            name,
            label,
            [getattr(sample, name) for sample in samples],
            # A target is set at one moment, right after the sample before.
            is_step=name == "target",
        )
        for name, label in _LABELS.items()
    }
    balloon = evolve(
        sizes["actual"], name="balloon", label="in the balloon", ceiling=ceiling
    )
    panels = [
        Panel.of(
            "main",
            "Requested and handed over",
            [balloon, sizes["target"], sizes["actual"]],
        ),
        Panel.of(
            "memory",
            "Memory of the guest and of the host",
            [sizes[name] for name in _BELOW],
        ),
        Panel.of(
            "reads",
            "Reads from the disks",
            [Curve("reads", "disk reads", reads, is_step=True)],
            "rate",
        ),
    ]
    return [panel for panel in panels if panel.curves]


# Drawing


def draw_panel(panel: Panel, samples: Sequence[Sample]) -> ET.Element:
    """Draw a chart with its legend, which shows the last sample's values.

    Args:
        panel: One of :func:`make_panels`.
        samples: Those that it was made of.
    """
    axis = Axis.of(samples)
    return make(
        "figure",
        {"class": f"panel {panel.name}"},
        make("figcaption", {}, make("h2", {}, panel.heading), _draw_legend(panel)),
        make(
            "div",
            {"class": "chart"},
            _draw_scale(panel),
            _draw_plot(panel, axis),
            _draw_marks(samples, axis, with_words=panel.name == "main"),
            _draw_times(axis),
        ),
    )


def _draw_legend(panel: Panel) -> ET.Element:
    items = [
        make(
            "li",
            {"class": f"key {curve.name}"},
            f"{curve.label} ",
            make(
                "b",
                {"data-curve": curve.name, "data-unit": panel.unit},
                _format_last(panel, curve),
            ),
        )
        # What is drawn last, and so is on top, is named first.
        for curve in reversed(panel.curves)
    ]
    return make("ul", {"class": "legend"}, *items)


def _format_last(panel: Panel, curve: Curve) -> str:
    value = curve.shown[-1]
    return "unknown" if value is None else panel.format(value)


def _draw_scale(panel: Panel) -> ET.Element:
    """Write the values beside the lines of the grid."""
    labels = [
        make(
            "text",
            {"x": "100%", "y": _place(value, panel.top), "dy": "0.35em"},
            label,
        )
        for value, label in _list_ticks(panel)
    ]
    return make("svg", {"class": "scale", "aria-hidden": "true"}, *labels)


def _draw_plot(panel: Panel, axis: Axis) -> ET.Element:
    grid = [
        f"M{axis.start} {_scale(value, panel.top)}h{axis.span}"
        for value, _ in _list_ticks(panel)
    ]
    return make(
        "svg",
        {
            "class": "plot",
            "role": "img",
            "aria-label": _describe(panel),
            "viewBox": f"{axis.start} 0 {axis.span} {_HEIGHT}",
            "preserveAspectRatio": "none",
        },
        make("path", {"class": "grid", "d": "".join(grid)}),
        *(_draw_curve(curve, axis.times, panel.top) for curve in panel.curves),
    )


def _describe(panel: Panel) -> str:
    """Say what a chart shows to those who do not see it."""
    return "; ".join(
        f"{curve.label}: {panel.format(known[0])} at first, {panel.format(min(known))}"
        f" at least, {panel.format(max(known))} at most,"
        f" {panel.format(known[-1])} at the end"
        for curve in panel.curves
        if (known := [value for value in curve.shown if value is not None])
    )


def _draw_curve(curve: Curve, times: Sequence[int], top: float) -> ET.Element:
    points = [
        None if value is None else (time, _scale(value, top))
        for time, value in zip(times, curve.values, strict=True)
    ]
    path = _join(points, is_step=curve.is_step)
    if curve.ceiling is not None:
        y = _scale(curve.ceiling, top)
        path += f"L{times[-1]} {y} {times[0]} {y}Z"
    kind = "line" if curve.ceiling is None else "area"
    return make("path", {"class": f"{kind} {curve.name}", "d": path})


def _join(points: Sequence[tuple[int, int] | None], *, is_step: bool) -> str:
    """Write points as a path, with a gap where one is not known."""
    path = ""
    for before, point in pairwise([None, *points]):
        if point is None:
            continue
        x, y = point
        if before is None:
            # A point alone would not be seen without a line to itself.
            path += f"M{x} {y}h0"
        elif is_step:
            path += f"V{y}H{x}"
        else:
            path += f"L{x} {y}"
    return path


def _draw_marks(
    samples: Sequence[Sample], axis: Axis, *, with_words: bool
) -> ET.Element:
    """Draw a line, and a word, at each mark; and what a script shows as the cursor."""
    marks = [
        (time, sample.mark)
        for time, sample in zip(axis.times, samples, strict=True)
        if sample.mark is not None
    ]
    drawn: list[ET.Element] = []
    for row, (time, word) in enumerate(marks[:_MOST_MARKS]):
        x = axis.place(time)
        drawn.append(make("line", {"x1": x, "x2": x, "y2": "100%", "data-t": time}))
        if with_words:
            is_late = 2 * (time - axis.start) > axis.span
            drawn.append(
                make(
                    "text",
                    {
                        "x": x,
                        "dx": -4 if is_late else 4,
                        "y": f"{1.1 * (1 + row % _ROWS):.1f}em",
                        "text-anchor": "end" if is_late else "start",
                        "data-t": time,
                    },
                    make_printable(word, _LONGEST_MARK),
                )
            )
    cursor = make("line", {"class": "cursor", "y2": "100%", "visibility": "hidden"})
    chosen = make("rect", {"class": "chosen", "height": "100%", "width": 0})
    return make(
        "svg", {"class": "marks", "aria-hidden": "true"}, chosen, *drawn, cursor
    )


def _draw_times(axis: Axis) -> ET.Element:
    """Write the times below a chart."""
    labels = [
        make("text", {"x": axis.place(time * 1000)}, label)
        for time, label in _list_times(axis)
    ]
    return make("svg", {"class": "times", "aria-hidden": "true"}, *labels)


# Scales


def _scale(value: float, top: float) -> int:
    return round((1 - value / top) * _HEIGHT)


def _place(value: float, top: float) -> str:
    return f"{(1 - value / top) * 100:.2f}%"


def _list_ticks(panel: Panel) -> list[tuple[float, str]]:
    """Return round values and their texts."""
    unit = next(unit for unit in _UNITS if unit <= panel.top)
    step = _choose_step(panel.top / unit)
    end = "/s" if panel.unit == "rate" else ""
    return [
        (number * step * unit, f"{number * step:g} {_UNITS[unit]}{end}")
        for number in range(int(panel.top / unit / step) + 1)
    ]


def _choose_step(span: float) -> float:
    """Return the smallest of 1, 2, 5, 10 ... that a span has five of at most."""
    rough = span / _MOST_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * n for n in (1, 2, 5, 10) if power * n >= rough)


def _list_times(axis: Axis) -> list[tuple[float, str]]:
    """Return round times in seconds, and their texts."""
    start, span = axis.start / 1000, axis.span / 1000
    unit, name = next(
        ((unit, name) for unit, name in _TIMES.items() if span >= 3 * unit), (1, "s")
    )
    step = _choose_step(span / unit)
    numbers = range(
        math.ceil(start / unit / step), int((start + span) / unit / step) + 1
    )
    return [(n * step * unit, f"{n * step:g} {name}") for n in numbers]
