"""Comparing versions as far as the lab needs it: by their numbers."""

from __future__ import annotations

import re

__all__ = ["matches", "numbers"]


def numbers(version: str) -> tuple[int, ...]:
    """Take a version apart: ``"6.1.0-56-cloud"`` is 6, 1, 0, 56."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


def matches(version: str, wanted: str | None) -> bool:
    """Tell whether ``"7.2.22"`` is a ``"7.2"``; anything is a ``None``."""
    prefix = numbers(wanted) if wanted else ()
    return numbers(version)[: len(prefix)] == prefix
