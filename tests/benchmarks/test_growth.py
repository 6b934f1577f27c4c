"""Growth: the physical limits, and what is kept and printed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from export.checkpoint.random_weights import SIZES
from runtime.model.memory import cache_bytes
from tests.benchmarks import growth, limits

GPT2 = SIZES["gpt2"]
N_WEIGHTS = 12 * 12 * 768**2 + 50257 * 768


def test_decoding_one_row_is_bound_by_bandwidth() -> None:
    position = 2 * 12 * 768 * 4
    expected = 50e9 / (N_WEIGHTS + 900 * position)
    assert limits.decode_limit(GPT2, 900, 1, "fp32", 50e9, peak=1e15) == pytest.approx(expected)
    assert limits.decode_limit(GPT2, 900, 1, "int8", 50e9, peak=1e15) > expected
    assert limits.position_bytes(GPT2, "fp32") == cache_bytes(GPT2, 1, 1)


def test_many_rows_are_bound_by_products() -> None:
    assert limits.decode_limit(GPT2, 32, 64, "int8", 1e15, peak=1e12) == pytest.approx(1e12 / N_WEIGHTS)


def test_prefill_reads_the_output_layer_for_one_token() -> None:
    products = 512 * 12 * 12 * 768**2 + 50257 * 768
    assert limits.prefill_limit(GPT2, 512, 1e15, peak=1e12) == pytest.approx(products / 1e12)
    assert limits.prefill_limit(GPT2, 1, 1e9, peak=1e15) == pytest.approx(N_WEIGHTS / 1e9)


def test_the_peak_is_of_this_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "N_RUNS", 2)
    monkeypatch.setattr(limits, "N_ROWS", 64)
    assert 1e8 < limits.int8_peak(1) < 1e14


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """`growth.main` with models that exist, measured by a stand-in; returns the path of the JSON."""
    output = tmp_path / "new" / "growth.json"
    monkeypatch.setattr(growth, "build", lambda size: tmp_path / size)
    monkeypatch.setattr(growth.runtime, "estimate", lambda folder, **_: Needed(1e9 if "xl" not in str(folder) else 9e9))
    monkeypatch.setattr(growth, "free_memory", lambda: 8_000_000_000)
    monkeypatch.setattr(growth, "read_bandwidth", lambda _: 50e9)
    monkeypatch.setattr(growth.limits, "int8_peak", lambda _: 1e12)
    monkeypatch.setattr(
        sys,
        "argv",
        ["growth", "--sizes", "gpt2", "gpt2-xl", "--threads", "2", "--rounds", "2", "--output", str(output)],
    )
    return output


class Needed:
    def __init__(self, total: float) -> None:
        self.total = total


def measured(number: int) -> dict[str, float]:
    """One turn at half of the limit of prefill."""
    found = {f"decode {n}": 200.0 + number for n in growth.CONTEXTS} | {f"rows {n}": 100.0 * n for n in growth.ROWS}
    return found | {f"prefill {n}": 2 * limits.prefill_limit(GPT2, n, 50e9, 1e12) for n in growth.CONTEXTS}


def test_a_run_writes_medians_limits_and_who_does_not_fit(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(growth, "ask", lambda *_, seed, **__: measured(seed))
    with pytest.raises(SystemExit) as ended:
        growth.main()
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "Missing: gpt2-xl: it needs 9.0 GB of memory, and 8.0 GB is free" in text
    assert "2 threads: read bandwidth 50.0 GB/s, int8 products 1000 billion a second." in text
    rows = [line.count("(50 %)") for line in text.splitlines() if line.startswith("| gpt2 | ")]
    assert len(rows) == 3 and rows[1] == len(growth.CONTEXTS)  # prefill
    kept = json.loads(run.read_text(encoding="utf-8"))
    assert kept["samples"]["2"]["gpt2"]["decode 32"] == [200, 201]
    assert kept["limits"]["2"]["gpt2"]["decode 32"] == pytest.approx(
        limits.decode_limit(GPT2, 32, 1, kept["cache"], 50e9, 1e12)
    )


def test_an_interrupt_keeps_the_first_turn(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object, seed: int, **__: object) -> dict[str, float]:
        if seed:
            raise KeyboardInterrupt
        return measured(seed)

    monkeypatch.setattr(growth, "ask", ask)
    with pytest.raises(SystemExit) as ended:
        growth.main()
    assert ended.value.code == 130
    assert json.loads(run.read_text(encoding="utf-8"))["samples"]["2"]["gpt2"]["decode 32"] == [200]


def test_a_size_that_fails_is_given_up(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ask(*_: object, **given: object) -> dict[str, float]:
        asked.append(given)
        raise RuntimeError("killed")

    monkeypatch.setattr(growth, "ask", ask)
    with pytest.raises(SystemExit):
        growth.main()
    assert json.loads(run.read_text(encoding="utf-8"))["missing"]["gpt2"] == "killed"
    assert len(asked) == 1
