"""The ratio table: which peer ours is compared with, and when a target is met."""

from __future__ import annotations

import pytest

from tests.benchmarks import targets
from tests.benchmarks.contenders import CONTENDERS, OURS
from tests.benchmarks.results import Results
from tests.benchmarks.targets import INT8_PEERS, TARGETS, judge, ratio_table

DECODE, PREFILL = TARGETS[0], TARGETS[2]


def results_of(samples: dict[str, dict[str, list[float]]]) -> Results:
    results = Results("GPT-2", "a machine")
    results.samples[2] = {CONTENDERS[name].title: measures for name, measures in samples.items()}
    return results


def test_peers_are_the_runtimes_that_quantize_by_themselves() -> None:
    assert {"llama.cpp-q8_0", "openvino-int8", "executorch-int8", "torchao-int8"} < set(INT8_PEERS)
    assert not {"onnxruntime-genai", "llama.cpp-q4_0", "torchao-int4", OURS, "gpt2-edge-int8-cache-fp32"} & set(
        INT8_PEERS
    )


def test_the_best_peer_is_named_and_each_round_counts() -> None:
    results = results_of(
        {
            OURS: {"decode 32": [300, 150, 280]},
            "openvino-int8": {"decode 32": [250, 100, 200]},
            "ctranslate2-int8": {"decode 32": [80, 90, 85]},
        }
    )
    verdict = judge(results, DECODE)
    assert verdict.peer == "openvino-int8"
    assert verdict.ratios == [1.2, 1.5, 1.4]  # a round at half speed slows both
    assert verdict.is_met is True


def test_less_is_better_for_seconds() -> None:
    results = results_of({OURS: {"prefill 512": [0.1]}, "openvino-int8": {"prefill 512": [0.109]}})
    verdict = judge(results, PREFILL)
    assert verdict.ratio == pytest.approx(1.09)
    assert verdict.is_met is False


def test_a_peer_given_up_on_the_way_is_compared_by_medians() -> None:
    assert targets.ratios([200, 300, 400], [100], more_is_better=True) == [3]
    assert targets.ratios([2], [5, 6, 7], more_is_better=False) == [3]


@pytest.mark.parametrize("samples", [{}, {OURS: {"decode 32": [300]}}, {"openvino-int8": {"decode 32": [300]}}])
def test_what_was_not_measured_is_neither_met_nor_missed(samples: dict[str, dict[str, list[float]]]) -> None:
    assert judge(results_of(samples), DECODE).is_met is None


def test_the_table_has_quality_beside_speed() -> None:
    results = results_of(
        {
            OURS: {"decode 32": [300.0] * 5, "peak": [290e6] * 5},
            "openvino-int8": {"decode 32": [275.0] * 5},
            "llama.cpp-q4_0": {"peak": [279e6] * 5},
        }
    )
    results.quality = {CONTENDERS[OURS].title: {"kl demo": 0.0015}, "OpenVINO GenAI int8": {"kl demo": 0.00179}}
    text = ratio_table(results)
    row = "| decode at 32 | 300 tok/s | OpenVINO GenAI int8 275 tok/s | 1.09 | 1.2 | **no** | 1.50 | 1.79 |"
    assert row in text
    assert "| peak memory at 1,000 tokens | 290 MB | llama.cpp Q4_0 279 MB | 0.96 | 1.0 | **no** | 1.50 | - |" in text
    assert text.endswith("0 of 12 targets are met, 10 were not measured.")
    assert targets.as_json(results)[0]["ratio"] == pytest.approx(1.0909, abs=1e-4)


def test_too_few_rounds_are_said() -> None:
    results = results_of({OURS: {"decode 32": [300, 301]}, "openvino-int8": {"decode 32": [200, 200]}})
    assert "1 of 12 targets are met, 11 were not measured. Only 2 rounds: 5 or more are wanted." in ratio_table(results)
