"""What the processes in a guest do with its memory, and when."""

from __future__ import annotations

from typing import Literal

from attrs import field, frozen
from attrs.validators import ge, in_

__all__ = ["WorkloadStep", "ramp"]


@frozen
class WorkloadStep:
    """One thing that processes do.

    Attributes:
        at: When, in nanoseconds of the guest's clock since the machine started.
        delta: Bytes that they ask for, or, negative, give up. They never give up
            more than they asked for before.
        kind: ``"anonymous"`` for memory of their own, ``"cache"`` for files that
            they read, or, negative, delete.
    """

    at: int = field(validator=ge(0))
    delta: int
    kind: Literal["anonymous", "cache"] = field(
        default="anonymous", validator=in_(("anonymous", "cache"))
    )


def ramp(start: int, stop: int, size: int, steps: int = 16) -> tuple[WorkloadStep, ...]:
    """Return steps that ask for ``size`` bytes evenly between two times.

    Args:
        start: Of the first one, in nanoseconds of the guest's clock.
        stop: No step comes at or after it.
        size: Bytes in all; negative to give them up.
        steps: How many.
    """
    return tuple(
        WorkloadStep(
            start + (stop - start) * i // steps,
            size * (i + 1) // steps - size * i // steps,
        )
        for i in range(steps)
    )
