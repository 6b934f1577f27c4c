"""The committed ratios of ours to optimum, and whether a run still reaches them."""

from __future__ import annotations

import json
from pathlib import Path

from runtime.hardware.cpu_features import processor_features

BASELINE = Path(__file__).with_name("baseline.json")
LEAST = 0.75  # of the baseline: noise is under a quarter, and a third lost is seen
KINDS = (
    "avx512_vnni",
    "avx_vnni",
    "avx512f",
    "avx2",
    "i8mm",
    "asimddp",
)  # the best first: kernels differ, so do ratios


def processor_kind() -> str:
    """The instructions for int8 that this processor has; `other` where it has none or the system does not tell."""
    features = processor_features() or set()
    return next((kind for kind in KINDS if kind in features), "other")


def key(threads: int) -> str:
    """What a baseline holds for."""
    return f"{processor_kind()}, {threads} threads"


def record(ratios: dict[str, float], threads: int, path: Path = BASELINE) -> None:
    """Keep ratios for this kind of processor."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    kept[key(threads)] = {name: round(ratio, 2) for name, ratio in ratios.items()}
    path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def compare(ratios: dict[str, float], threads: int, path: Path = BASELINE) -> tuple[list[str], bool]:
    """A line for each ratio, and whether all are reached; true where there is nothing to compare with."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    baseline = kept.get(key(threads))
    if baseline is None:
        return [f"no baseline for {key(threads)}; --record makes one"], True
    lines, reached = [], True
    for name, ratio in ratios.items():
        least = LEAST * baseline[name]
        verdict = "reached" if ratio >= least else "LOST"
        lines.append(f"{name}: {ratio:.2f}, baseline {baseline[name]:.2f}, at least {least:.2f}: {verdict}")
        reached &= ratio >= least
    return lines, reached
