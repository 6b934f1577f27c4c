"""Lines of decode, prefill and rows from growth.json; run by path, in an environment with matplotlib alone.

python growth_plot.py build/bench/growth.json docs
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, StrMethodFormatter

COLOURS = ("#c2410c", "#0f766e", "#1d4ed8", "#7c3aed", "#64748b")
PICTURES = {  # measure: its points, scale, axes
    "decode": ("contexts", 1, "tokens of context", "tokens a second"),
    "prefill": ("contexts", 1e3, "tokens of the prompt", "milliseconds"),
    "rows": ("rows", 1, "rows", "tokens a second, all rows"),
}


def main(source: Path, folder: Path) -> None:
    """One picture a measure: a panel for each number of threads, a line for each size, dashed: the limit."""
    found = json.loads(source.read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    for measure in PICTURES:
        draw(found, measure, folder / f"growth-{measure}.png")


def draw(found: dict[str, Any], measure: str, target: Path) -> None:
    points, _, below, beside = PICTURES[measure]
    samples = found["samples"]
    figure, axes = plt.subplots(
        1, len(samples), figsize=(6 * len(samples), 4.8), layout="constrained", sharey=True, squeeze=False
    )
    for axis, threads in zip(axes[0], sorted(samples, key=int), strict=True):
        for colour, size in zip(COLOURS, samples[threads], strict=False):
            line(axis, found, measure, threads, size, colour)
        axis.set_title(f"{threads} thread{'s' if threads != '1' else ''}", fontsize=10)
        axis.set(xscale="log", yscale="log", xlabel=below)
        axis.set_xticks(found[points], [f"{point:,}" for point in found[points]])
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axis.minorticks_off()
        axis.grid(visible=True, alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel(beside)
    axes[0][0].legend(fontsize=8)
    about = f"gpt2-edge int8, {found['cache']} cache: {measure}; dashed: the physical limit"
    figure.suptitle(f"{about}\n{found['machine']}", fontsize=10)
    figure.savefig(target, dpi=110)
    plt.close(figure)


def line(axis: plt.Axes, found: dict[str, Any], measure: str, threads: str, size: str, colour: str) -> None:
    """Medians with their range, and the limit."""
    points, scale, *_ = PICTURES[measure]
    samples, limits = found["samples"][threads][size], found["limits"][threads][size]
    at = [point for point in found[points] if f"{measure} {point}" in samples]
    values = [[scale * value for value in samples[f"{measure} {point}"]] for point in at]
    medians = [statistics.median(each) for each in values]
    axis.plot(at, medians, color=colour, marker="o", markersize=3, label=size)
    axis.fill_between(at, [min(each) for each in values], [max(each) for each in values], color=colour, alpha=0.15)
    axis.plot(at, [scale * limits[f"{measure} {point}"] for point in at], color=colour, linestyle="--", linewidth=1)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
