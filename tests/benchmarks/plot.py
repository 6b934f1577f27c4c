"""Bars of decode and prefill from results.json; run by path, in an environment with matplotlib alone.

python plot.py build/bench/results.json docs/bench.png
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

OURS, PEER = "#c2410c", "#94a3b8"
PANELS = (
    ("decode 32", 1, "decode at 32, tokens a second: longer is better"),
    ("prefill 512", 1e3, "prompt of 512, milliseconds: shorter is better"),
)


def main(source: Path, target: Path) -> None:
    """Draw the results with the most threads."""
    results = json.loads(source.read_text(encoding="utf-8"))
    threads = max(results["samples"], key=int)
    samples = results["samples"][threads]
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained", sharey=True)
    for axis, (measure, scale, title) in zip(axes, PANELS, strict=True):
        draw(axis, {name: [scale * v for v in s[measure]] for name, s in samples.items() if measure in s}, title)
    figure.suptitle(f"{results['title']}, {threads} threads\n{results['machine']}", fontsize=10)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)


def draw(axis: plt.Axes, values: dict[str, list[float]], title: str) -> None:
    """A bar a contender, in the order of the results; a line from the least to the most."""
    names = list(values)[::-1]
    medians = [statistics.median(values[name]) for name in names]
    below = [median - min(values[name]) for name, median in zip(names, medians, strict=True)]
    above = [max(values[name]) - median for name, median in zip(names, medians, strict=True)]
    colours = [OURS if name.startswith("gpt2-edge") else PEER for name in names]
    bars = axis.barh(names, medians, xerr=[below, above], color=colours, ecolor="#334155", capsize=2)
    axis.bar_label(bars, [f"{median:.0f}" for median in medians], padding=6, fontsize=9)
    axis.set_title(title, fontsize=10)
    axis.margins(x=0.12)
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
