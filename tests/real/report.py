"""One table of all that was measured, beside what others have published."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks.statistic import table
from tests.real.published import PUBLISHED


class Column(NamedTuple):
    """A measure by its name, and how it is shown: multiplied, so many digits."""

    measure: str
    head: str
    scale: float
    digits: int


@dataclass
class Row:
    """One precision: measures by name, and what went wrong."""

    name: str
    measures: dict[str, float] = field(default_factory=dict)
    kernel: str = ""
    upgraded: list[dict[str, Any]] = field(
        default_factory=list
    )  # products with a better kernel: product, kernel, error
    problem: str | None = None  # a sentence: why it was not built, or not measured in full


@dataclass
class Report:
    """What a run has measured so far."""

    checkpoint: str
    machine: str
    n_positions: int | None = None
    size: str | None = None  # OpenAI's name of the shape, whose published figures stand beside
    weights: str | None = None  # the build's word for weights that it knows
    limit: int | None = None
    missing: list[str] = field(default_factory=list)  # texts that are not there, each with what to do
    rows: list[Row] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """report.json and report.md, each replaced in one step."""
        folder.mkdir(parents=True, exist_ok=True)
        published = {source.title: asdict(source) for source in PUBLISHED.get(self.size or "", ())}
        content = json.dumps(asdict(self) | {"published": published}, indent=1) + "\n"
        for name, text in (("report.json", content), ("report.md", self.markdown() + "\n")):
            partial = folder / f"partial-{name}"
            partial.write_text(text, encoding="utf-8")
            partial.replace(folder / name)

    def markdown(self) -> str:
        """The table, the products with another kernel, and where published figures stand."""
        sources = PUBLISHED.get(self.size or "", ())
        measured = [self._cells(row.name, row.measures, row.kernel) for row in self.rows if row.measures]
        published = [self._cells(source.title, source.figures, "") for source in sources]
        head = ["", *(column.head for column in self._columns()), "kernel"]
        parts = [f"{self.checkpoint}\n{self.machine}", self._about()]
        parts += [table(head, [*measured, *published])] if measured else []
        parts += [upgrades(row) for row in self.rows if row.upgraded]
        parts += [row.problem for row in self.rows if row.problem]
        parts += self.missing
        parts += [f"{source.title}: {source.url}" for source in sources]
        return "\n\n".join(part for part in parts if part)

    def _about(self) -> str:
        """What a reader must know before the figures."""
        said = [f"The weights are {self.weights}."] if self.weights else []
        if self.size and not self.weights:
            said.append(f"The weights have the shape of OpenAI's {self.size}; whether they are OpenAI's is not known.")
        if self.limit:
            said.append(f"Only the first {self.limit} lines of each text were read: not to be compared with others.")
        return " ".join(said)

    def _columns(self) -> list[Column]:
        size = self.n_positions or 0
        every = [
            Column("strided full", f"WikiText-2, stride {size}", 1, 2),
            Column("strided half", f"stride {size // 2}", 1, 2),
            Column("rolling", "a word (lm-eval)", 1, 2),
            Column("lambada word", "LAMBADA, %", 100, 2),
            Column("lambada stop words", "stop words, %", 100, 2),
            Column("lambada last token", "last token, %", 100, 2),
            Column("lambada perplexity", "perplexity", 1, 2),
            Column("recorded likeliest", "recorded ids", 1, 0),
            Column("recorded difference", "recorded log-probabilities, off by", 1, 4),
            Column("mean_kl", "mean KL, 10⁻³", 1e3, 2),
            Column("p99_kl", "99th percentile", 1e3, 1),
            Column("top1_agreement", "top-1, %", 100, 2),
            Column("loss_percent", "perplexity, loss %", 1, 3),
            Column("decode", "decode at 32, tok/s", 1, 0),
            Column("prefill rate", "prefill, tok/s", 1, 0),
            Column("peak", "peak memory, MB", 1e-6, 0),
            Column("disk", "disk, MB", 1e-6, 1),
            Column("build", "build, s", 1, 0),
        ]
        sources = PUBLISHED.get(self.size or "", ())
        measures = set().union(*(row.measures for row in self.rows), *(source.figures for source in sources))
        return [column for column in every if column.measure in measures]

    def _cells(self, name: str, measures: dict[str, float], kernel: str) -> list[str]:
        return [name, *(cell(column, measures) for column in self._columns()), kernel or "-"]


def cell(column: Column, measures: dict[str, float]) -> str:
    """A measure as it is shown; `-` where there is none."""
    if column.measure not in measures:
        return "-"
    text = f"{column.scale * measures[column.measure]:z.{column.digits}f}"
    return f"{text} of {measures['recorded n']:.0f}" if column.measure == "recorded likeliest" else text


def upgrades(row: Row) -> str:
    """The products that the build gave a better kernel, with the error that each had."""
    products = [f"{one['product']}: {one['kernel']}" for one in row.upgraded]
    return f"{row.name}, products with a better kernel than {row.kernel}: {', '.join(products)}"
