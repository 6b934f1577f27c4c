"""Quantization holds on checkpoints with outliers, as the demo and random weights have none and GPT-2 has.

Every checkpoint is built as a user would build it. Bounds are relative to the demo as it is, built in the same run.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from export import build
from export.verify.quality import Quality, Text, Verifier
from runtime.graph.attention import CacheType
from tests.conftest import DEMO
from tests.support import outliers
from tests.support.building import QUICK, error_line, run_here
from tests.support.checkpoints import Weights, edit_weights

pytestmark = pytest.mark.slow

KERNELS = {
    "dense": [],
    "static": ["--activations", "static"],
    "block": ["--kernel", "block"],
    "int4": ["--precision", "int4"],
}
MOST_KL = 1.2
"""Times the demo's own mean KL."""
# Another function than the demo's, with its own fp32 as reference. All positions attend to the first one, so how its
# key and value happen to round moves all of them: 1.09 (dense) and 1.42 (block), and 1.1 to 1.5 with other margins of
# the cache's scales. With the fp32 cache 1.16 and 1.18.
MOST_KL_LARGE_FIRST = 1.6
MOST_LOSS = {"dense": 0.3, "block": 0.3, "int4": 1.0}
# The peers that are most exact have 0.0018 (OpenVINO GenAI int8) and 0.0011 (llama.cpp Q8_0); at int4 none is near.
MOST_KL_OF_DEMO = {"dense": 0.0018, "block": 0.0011, "int4": 0.016}
# What the int8 key-value cache adds. With the fp32 cache a build is verified at the values above.
MOST_KL_OF_CACHE = 0.0004
# a tenth of what llama.cpp Q8_0 has with channels times 30
MOST_KL_AT_30 = 0.0033
ALL = ("ln_1", "ln_2", "value", "ln_f")
CASES: list[tuple[float, int, Collection[str]]] = [
    *((factor, 6, ("ln_1", "ln_2", "value")) for factor in (10, 30, 100)),
    *((100, 1, (place,)) for place in ALL),
    *((factor, 1, ALL) for factor in (10, 100)),
    (100, 6, ALL),
]


@dataclasses.dataclass(frozen=True)
class Builder:
    """Checkpoints and models, each made once."""

    place: Path

    @functools.cache  # noqa: B019  one builder, which lives as long as the module
    def measure(self, name: str, kernel: str) -> dict[str, Any]:
        """`quality.json` of a checkpoint under `place`, or of the demo."""
        checkpoint = DEMO if name == "demo" else self.place / name
        target = self.place / f"{name}-{kernel}"
        build.main([str(checkpoint), "--no-reference", *KERNELS[kernel], "--output", str(target)])
        found: dict[str, Any] = json.loads((target / "quality.json").read_text(encoding="utf-8"))
        return found

    def measure_again(self, name: str, kernel: str, cache: CacheType) -> Quality:
        """The quality of a model that `measure` built from the demo, with this cache."""
        reference = self.place / "reference"
        if not reference.exists():
            build.main([str(DEMO), "--precision", "fp32", *QUICK, "--output", str(reference)])
        verifier = Verifier(reference, "fp32", Text(DEMO / "evaluation.txt", "the demo's"), self.place)
        return verifier.measure(self.place / f"{name}-{kernel}", cache)


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    place = tmp_path_factory.mktemp("stress")
    outliers.write_relu(DEMO, place / "relu")
    outliers.write_large_first(DEMO, place / "large-first")
    return Builder(place)


@pytest.mark.parametrize("kernel", MOST_KL_OF_DEMO)
def test_the_demo_is_as_exact_as_the_peers(builder: Builder, kernel: str) -> None:
    measured = builder.measure("demo", kernel)
    with_fp32_cache = builder.measure_again("demo", kernel, cache="fp32")
    assert with_fp32_cache.mean_kl <= MOST_KL_OF_DEMO[kernel]
    assert measured["mean_kl"] <= with_fp32_cache.mean_kl + MOST_KL_OF_CACHE
    assert measured["loss_percent"] <= MOST_LOSS[kernel]
    assert measured["upgraded"] == []


@pytest.mark.parametrize(
    ("factor", "channels", "places", "kernel"),
    # Dense products suffer most from outliers; blocks are built for the two cases that hold all others.
    [*((*case, "dense") for case in CASES), (*CASES[1], "block"), (*CASES[-1], "block")],
    ids=str,
)
def test_outlier_channels_cost_nothing(
    builder: Builder, factor: float, channels: int, places: Collection[str], kernel: str
) -> None:
    name = f"{'-'.join(places)}-{factor:g}-{channels}"
    if not (builder.place / name).exists():
        outliers.write(DEMO, builder.place / name, factor=factor, channels=channels, places=places)
    check(builder, name, "demo", kernel)


@pytest.mark.parametrize("factor", [30, 100])
def test_outlier_channels_cost_nothing_with_static_activations(builder: Builder, factor: float) -> None:
    """One scale for all rows is set by the largest channel of all, so equalization is needed most here."""
    outliers.write(DEMO, builder.place / f"static-{factor}", factor=factor, channels=6, places=ALL)
    usual, stressed = (builder.measure(name, "static") for name in ("demo", f"static-{factor}"))
    assert stressed["mean_kl"] <= MOST_KL * usual["mean_kl"]
    assert stressed["upgraded"] == []


def test_outlier_channels_cost_nothing_at_int4(builder: Builder) -> None:
    outliers.write(DEMO, builder.place / "int4", factor=100, channels=6, places=ALL)
    check(builder, "int4", "demo", "int4")


@pytest.mark.parametrize("kernel", ["dense", "block"])
@pytest.mark.parametrize("channels", [1, 6])
def test_outliers_in_the_hidden_layer_of_relu(builder: Builder, channels: int, kernel: str) -> None:
    name = f"hidden-{channels}"
    if not (builder.place / name).exists():
        places = ("hidden", *ALL)
        outliers.write(builder.place / "relu", builder.place / name, factor=100, channels=channels, places=places)
    check(builder, name, "relu", kernel)


@pytest.mark.parametrize("kernel", ["dense", "block"])
def test_a_first_position_that_is_much_larger(builder: Builder, kernel: str) -> None:
    check(builder, "large-first", "demo", kernel, MOST_KL_LARGE_FIRST)


def check(builder: Builder, name: str, base: str, kernel: str, most: float = MOST_KL) -> None:
    """Compare a stressed checkpoint with the one it was made from."""
    usual, stressed = builder.measure(base, kernel), builder.measure(name, kernel)
    assert stressed["mean_kl"] <= most * usual["mean_kl"]
    assert stressed["loss_percent"] <= MOST_LOSS[kernel] + 0.15  # so much perplexity moves for no reason
    if kernel != "int4":
        assert stressed["mean_kl"] <= MOST_KL_AT_30


def test_without_calibration_it_would_lose_far_more(builder: Builder) -> None:
    outliers.write(DEMO, builder.place / "bare", factor=30, channels=6, places=("ln_1", "ln_2", "value"))
    target = builder.place / "bare-model"
    loose = ["--no-calibration", "--max-loss", "1000", "--max-kl", "1000"]
    build.main([str(builder.place / "bare"), "--no-reference", *loose, "--output", str(target)])
    report = json.loads((target / "quality.json").read_text(encoding="utf-8"))
    assert report["mean_kl"] > 20 * builder.measure("demo", "dense")["mean_kl"]


def test_outliers_that_nothing_can_absorb_are_found(builder: Builder) -> None:
    """A hidden channel behind gelu that is always large: its product alone gets another kernel."""
    target = builder.place / "gelu"
    outliers.write(DEMO, target, factor=1.5, channels=1, places=("ln_1",))

    def enlarge(weights: Weights) -> None:
        bias, reader = (f"transformer.h.3.mlp.{part}" for part in ("c_fc.bias", "c_proj"))
        before = weights[f"{reader}.weight"][17].copy()
        weights[bias][17] = 400
        weights[f"{reader}.weight"][17] = before / 400
        weights[f"{reader}.bias"] -= before

    edit_weights(target, enlarge)
    measured = builder.measure("gelu", "dense")
    assert [one["product"] for one in measured["upgraded"]] == ["h.3.mlp.c_proj"]
    assert measured["mean_kl"] < 0.01
    assert measured["loss_percent"] < 0.5


def test_a_broken_checkpoint_is_refused(
    builder: Builder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = builder.place / "broken"
    outliers.write(DEMO, target, factor=1.5, channels=1, places=("ln_1",))
    edit_weights(target, lambda weights: weights["transformer.h.2.mlp.c_fc.weight"].fill(3e38))
    assert run_here(monkeypatch, target, "--no-reference", "--output", builder.place / "none") == 1
    assert "damaged" in error_line(capsys.readouterr().err)
