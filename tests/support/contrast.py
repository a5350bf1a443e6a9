"""How well a colour can be read on another one, by WCAG 2.1."""

from __future__ import annotations

from typing import Final

__all__ = ["READABLE", "Rgb", "compute_contrast"]

READABLE: Final = 4.5  # success criterion 1.4.3

Rgb = tuple[int, int, int]


def compute_contrast(first: Rgb, second: Rgb) -> float:
    """Compute the contrast ratio."""
    darker, lighter = sorted((_compute_luminance(first), _compute_luminance(second)))
    return (lighter + 0.05) / (darker + 0.05)


def _compute_luminance(colour: Rgb) -> float:
    parts = (part / 255 for part in colour)
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
