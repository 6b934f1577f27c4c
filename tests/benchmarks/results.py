"""What a benchmark has measured so far: kept in a file, shown as tables."""

from __future__ import annotations

import json
import statistics
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.statistic import describe, table

BANDWIDTH = "read bandwidth"  # of the machine, among the contenders' samples


class Column(NamedTuple):
    """A measure by the name its samples have, and how it is shown: multiplied, so many digits."""

    measure: str
    head: str
    scale: float
    digits: int
    more_is_better: bool | None = False  # None: no best one is marked


def speed_columns(prefills: Sequence[int], decodes: Sequence[int], batches: Sequence[int]) -> list[Column]:
    """A column for each context and batch that is measured."""
    return [
        *(Column(f"decode {n}", f"decode at {n}, tok/s", 1, 0, more_is_better=True) for n in decodes),
        *(Column(f"prefill {n}", f"prefill {n}, ms", 1e3, 0) for n in prefills),
        *(Column(f"rows {n}", f"{n} rows, tok/s", 1, 0, more_is_better=True) for n in batches),
        *QUALITY_COLUMNS,
    ]


# what speed costs, measured by quality.py; a loss of perplexity below zero is noise, so none is marked as the best
QUALITY_COLUMNS = [
    Column("kl demo", "demo: mean KL, 10⁻³", 1e3, 2, more_is_better=None),
    Column("loss demo", "demo: loss, %", 1, 2, more_is_better=None),
    Column("kl demo-stressed", "stressed: mean KL, 10⁻³", 1e3, 2, more_is_better=None),
    Column("loss demo-stressed", "stressed: loss, %", 1, 2, more_is_better=None),
]
WEIGHT_COLUMNS = [
    Column("cold", "cold start, s", 1, 2),
    Column("load", "load, s", 1, 2),
    Column("peak", "peak memory at 1,000, MB", 1e-6, 0),
    Column("cpu", "CPU ms a token", 1e3, 1),
    Column("disk", "disk, MB", 1e-6, 1),
    Column("share", "of read bandwidth, %", 100, 0, more_is_better=True),
]
README_COLUMNS = [
    Column("decode 32", "decode, tok/s", 1, 0, more_is_better=True),
    Column("prefill 512", "prompt of 512, ms", 1e3, 0),
    Column("rows 16", "16 rows, tok/s", 1, 0, more_is_better=True),
    Column("peak", "peak memory, MB", 1e-6, 0),
    Column("cold", "cold start, s", 1, 2),
    Column("disk", "disk, MB", 1e-6, 1),
    Column("kl demo", "mean KL", 1e3, 1, more_is_better=None),
    Column("kl demo-stressed", "with outliers", 1e3, 1, more_is_better=None),
]


@dataclass
class Results:
    """Samples of each measure, a value a round, by threads and contender's title."""

    title: str
    machine: str
    samples: dict[int, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    quality: dict[str, dict[str, float]] = field(default_factory=dict)  # title: measures, the same in every round
    missing: dict[str, str] = field(default_factory=dict)  # title: reason
    notes: list[str] = field(default_factory=list)  # how ours was built
    targets: list[dict[str, object]] = field(default_factory=list)  # what the ratio table says

    def add(self, threads: int, title: str, measured: dict[str, float]) -> None:
        """The samples of one turn."""
        kept = self.samples.setdefault(threads, {}).setdefault(title, {})
        for measure, value in measured.items():
            kept.setdefault(measure, []).append(value)

    def write(self, path: Path) -> None:
        """Replace the file in one step: an interrupted benchmark leaves the rounds that are done."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"partial-{path.name}")
        partial.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        partial.replace(path)

    def markdown(self, columns: Sequence[Column]) -> str:
        """A table of speed and one of weight for each number of threads, and who is missing."""
        parts = [f"{self.title}\n{self.machine}"]
        for threads in self.samples:
            count = f"{threads} thread{'s' if threads > 1 else ''}"
            parts += [f"{count}: speed", self._table(threads, columns)]
            parts += [f"{count}: weight", self._table(threads, WEIGHT_COLUMNS)]
            read = [value / 1e9 for value in self.samples[threads].get(BANDWIDTH, {}).get(BANDWIDTH, [])]
            parts.append(f"Read bandwidth with {count}: {describe(read, 1)} GB/s.")
        parts += self.notes
        parts += [f"Missing: {title}: {reason}" for title, reason in self.missing.items()]
        return "\n\n".join(parts)

    def summary(self, threads: int, columns: Sequence[Column], without: Container[str] = ()) -> str:
        """One table of medians, and where they come from. without: titles of contenders that are left out."""
        title = self.title.replace(" (range)", "")
        shown = self._table(threads, columns, ranges=False, without=without)
        return f"{shown}\n\n{title}, {threads} threads: {self.machine}."

    def _table(
        self, threads: int, columns: Sequence[Column], *, ranges: bool = True, without: Container[str] = ()
    ) -> str:
        found = {
            title: samples | {measure: [value] for measure, value in self.quality.get(title, {}).items()}
            for title, samples in self.samples[threads].items()
            if title != BANDWIDTH and title not in without
        }
        best = {column: self._best(column, found) for column in columns}
        rows = []
        for title, samples in found.items():
            values = {column: [column.scale * value for value in samples.get(column.measure, [])] for column in columns}
            cells = [describe(_shown(values[column], ranges), column.digits) for column in columns]
            marked = [f"**{c}**" if best[k] == title else c for k, c in zip(columns, cells, strict=True)]
            rows.append([title, *marked])
        return table(["", *(column.head for column in columns)], rows)

    @staticmethod
    def _best(column: Column, found: dict[str, dict[str, list[float]]]) -> str | None:
        """Whose median leads, where several are measured."""
        if column.more_is_better is None:
            return None
        medians = {title: statistics.median(s[column.measure]) for title, s in found.items() if column.measure in s}
        choose = max if column.more_is_better else min
        return choose(medians, key=lambda title: medians[title]) if len(medians) > 1 else None


def _shown(values: Sequence[float], ranges: bool) -> Sequence[float]:
    return values if ranges or not values else [statistics.median(values)]
