"""The ratio table that `make bench` ends with: ours against the best peer of the same kind, and what is to be reached.

A ratio is how many times ours is better: tokens per second over tokens per second, the peer's seconds or bytes over
ours. It is the median of the rounds' ratios, since what slows a whole round slows both.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tests.benchmarks.contenders import CONTENDERS, OURS
from tests.benchmarks.results import Results
from tests.benchmarks.statistic import describe, table

THREADS = 2
LEAST_ROUNDS = 5
INT4, Q4_0, Q8_0 = "gpt2-edge-int4", "llama.cpp-q4_0", "llama.cpp-q8_0"
# Runtimes that quantize by themselves; onnxruntime-genai opens our own folder.
INT8_PEERS = tuple(
    name for name in CONTENDERS if name.endswith(("int8", "q8_0")) and CONTENDERS[name].peer not in ("edge",)
)


@dataclass(frozen=True)
class Target:
    """A row: a measure of one of ours against the best of its peers."""

    label: str
    measure: str
    least: float  # of the ratio
    ours: str = OURS
    peers: tuple[str, ...] = INT8_PEERS
    more_is_better: bool = False
    scale: float = 1
    digits: int = 0
    unit: str = ""


TARGETS = (
    Target("decode at 32", "decode 32", 1.2, more_is_better=True, unit="tok/s"),
    Target("decode at 900", "decode 900", 1.2, more_is_better=True, unit="tok/s"),
    Target("prefill of 512", "prefill 512", 1.1, scale=1e3, unit="ms"),
    Target("prefill of 1,000", "prefill 1000", 1.0, scale=1e3, unit="ms"),
    Target("4 rows", "rows 4", 1.0, more_is_better=True, unit="tok/s"),
    Target("16 rows", "rows 16", 1.2, more_is_better=True, unit="tok/s"),
    Target("int4 decode at 32", "decode 32", 1.2, INT4, (Q4_0,), more_is_better=True, unit="tok/s"),
    Target("int4 decode at 900", "decode 900", 1.1, INT4, (Q4_0,), more_is_better=True, unit="tok/s"),
    Target("int4 on disk", "disk", 1.0, INT4, (Q4_0,), scale=1e-6, digits=1, unit="MB"),
    Target("peak memory at 1,000 tokens", "peak", 1.0, peers=(Q8_0, Q4_0), scale=1e-6, unit="MB"),
    Target("cold start to the first token", "cold", 1.0, peers=(Q8_0, Q4_0), digits=2, unit="s"),
    Target("processor time a token", "cpu", 1.0, scale=1e3, digits=1, unit="ms"),
)


@dataclass(frozen=True)
class Verdict:
    """What a run says about a target. peer and ratio: None where one of both was not measured."""

    target: Target
    ours: Sequence[float]
    peer: str | None
    theirs: Sequence[float]
    ratios: Sequence[float]

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def is_met(self) -> bool | None:
        """None where it was not measured."""
        return None if self.ratio is None else self.ratio >= self.target.least


def judge(results: Results, target: Target, threads: int = THREADS) -> Verdict:
    """Compare with the peer whose median is best."""
    samples = results.samples.get(threads, {})

    def values(name: str) -> list[float]:
        return samples.get(CONTENDERS[name].title, {}).get(target.measure, [])

    ours = values(target.ours)
    medians = {name: statistics.median(values(name)) for name in target.peers if values(name)}
    if not ours or not medians:
        return Verdict(target, ours, None, [], [])
    peer = (max if target.more_is_better else min)(medians, key=lambda name: medians[name])
    return Verdict(target, ours, peer, values(peer), ratios(ours, values(peer), target.more_is_better))


def ratios(ours: Sequence[float], theirs: Sequence[float], more_is_better: bool) -> list[float]:
    """One for each round that both have; of the medians where one was given up on the way."""
    if len(ours) != len(theirs):
        ours, theirs = [statistics.median(ours)], [statistics.median(theirs)]
    pairs = zip(ours, theirs, strict=True)
    return [our / their if more_is_better else their / our for our, their in pairs]


def ratio_table(results: Results, threads: int = THREADS) -> str:
    """Every target with its verdict, the quality of both beside it, and a line that sums up."""
    verdicts = [judge(results, target, threads) for target in TARGETS]
    head = ["", "ours", "best peer", "ratio", "target", "met", "mean KL, 10⁻³: ours", "peer"]
    lines = [
        f"{results.title}, {threads} threads\n{results.machine}",
        table(head, [_row(results, verdict) for verdict in verdicts]),
        _summary(verdicts),
    ]
    return "\n\n".join(lines)


def _row(results: Results, verdict: Verdict) -> list[str]:
    target = verdict.target
    met = {True: "yes", False: "**no**", None: "not measured"}[verdict.is_met]
    kls = [_kl(results, target.ours), _kl(results, verdict.peer)]
    ratio = describe(verdict.ratios, 2)
    return [target.label, _said(target, verdict.ours), _peer(verdict), ratio, f"{target.least:.1f}", met, *kls]


def _peer(verdict: Verdict) -> str:
    if verdict.peer is None:
        return "-"
    return f"{CONTENDERS[verdict.peer].title} {_said(verdict.target, verdict.theirs)}"


def _said(target: Target, values: Sequence[float]) -> str:
    scaled = [target.scale * value for value in values]
    return f"{describe(scaled, target.digits)} {target.unit}" if scaled else "-"


def _kl(results: Results, name: str | None) -> str:
    measured = results.quality.get(CONTENDERS[name].title, {}) if name else {}
    return describe([1e3 * measured["kl demo"]], 2) if "kl demo" in measured else "-"


def _summary(verdicts: Sequence[Verdict]) -> str:
    n_met = sum(verdict.is_met is True for verdict in verdicts)
    n_measured = sum(verdict.is_met is not None for verdict in verdicts)
    rounds = min((len(verdict.ratios) for verdict in verdicts if verdict.ratios), default=0)
    few = f" Only {rounds} rounds: {LEAST_ROUNDS} or more are wanted." if 0 < rounds < LEAST_ROUNDS else ""
    return f"{n_met} of {len(verdicts)} targets are met, {len(verdicts) - n_measured} were not measured.{few}"


def as_json(results: Results, threads: int = THREADS) -> list[dict[str, object]]:
    """The verdicts, for results.json."""
    return [
        {
            "target": verdict.target.label,
            "ours": statistics.median(verdict.ours) if verdict.ours else None,
            "peer": verdict.peer,
            "peer's": statistics.median(verdict.theirs) if verdict.theirs else None,
            "ratio": verdict.ratio,
            "least": verdict.target.least,
            "met": verdict.is_met,
        }
        for verdict in (judge(results, target, threads) for target in TARGETS)
    ]
