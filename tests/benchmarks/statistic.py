"""What repeated measurements say, and how a table says it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def describe(values: Sequence[float], digits: int = 0) -> str:
    """Median and range: `131 (98-132)`; the median alone where all are equal; `-` of none."""
    if not values:
        return "-"
    # z: what rounds to zero has no sign
    median, least, most = (f"{f(values):z.{digits}f}" for f in (statistics.median, min, max))
    return median if least == most else f"{median} ({least}-{most})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median of the rounds' ratios: what slows a whole round slows both."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))
