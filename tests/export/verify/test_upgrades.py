"""Which products are given better kernels, and how many."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.quantize.calibration import Calibration
from export.quantize.kernels import BETTER, better_kernels
from export.verify.upgrades import upgrade_all, upgrade_worst

KERNELS = ["dense", *BETTER]


def found(*errors: float, kernels: Sequence[str] = KERNELS) -> Calibration:
    """A calibration of products a, b, ... whose errors halve with each better kernel; of fp32 they vanish."""
    table = {}
    for name, error in zip("abcdefgh", errors, strict=False):
        table[name] = {kernel: 0.0 if kernel == "fp32" else error / 2**step for step, kernel in enumerate(kernels)}
    return Calibration(errors=table)


def test_the_worst_product_alone_is_upgraded_where_that_is_enough() -> None:
    assert upgrade_worst(found(1.0, 0.01, 0.01), {}, 1.2) == {"a": "block 64"}
    assert upgrade_worst(found(0.01, 1.0, 0.01), {}, 3.0) == {"b": "fp32"}


def test_something_is_upgraded_however_little_is_too_much() -> None:
    assert upgrade_worst(found(1.0, 0.9), {}, 1e-6) == {"a": "block 64"}


def test_what_was_upgraded_stays_and_goes_on() -> None:
    assert upgrade_worst(found(1.0, 0.01), {"a": "block 64"}, 1.01) == {"a": "block 32"}
    assert upgrade_worst(found(1.0, 0.4), {"a": "fp32"}, 1.01) == {"a": "fp32", "b": "block 64"}


def test_with_the_most_exact_kernels_nothing_changes() -> None:
    top = {"a": "fp32", "b": "fp32"}
    assert upgrade_worst(found(1.0, 1.0), top, 10) == top


def test_a_kernel_that_gains_nothing_is_left_out() -> None:
    calibration = Calibration(errors={"a": {"dense": 1.0, "block 64": 0.99, "block 32": 0.3, "fp32": 0.0}})
    assert upgrade_worst(calibration, {}, 1.1) == {"a": "block 32"}


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=8), st.floats(1.0, 1e6))
def test_it_always_ends_at_fp32(errors: list[float], excess: float) -> None:
    calibration, upgraded = found(*errors), dict[str, str]()
    for _ in range(len(errors) * len(KERNELS)):
        upgraded_more = upgrade_worst(calibration, upgraded, excess)
        if upgraded_more == upgraded:
            break
        upgraded = upgraded_more
    assert set(upgraded.values()) == {"fp32"}
    assert len(upgraded) == len(errors)


def test_infinitely_too_much_needs_fp32_everywhere() -> None:
    assert set(upgrade_worst(found(1.0, 0.5), {}, math.inf).values()) == {"fp32"}


def test_without_calibration_all_upgrade_all() -> None:
    usual = {"a": "dense", "output": "dense"}
    first = upgrade_all(usual, {}, [64])
    assert first == {"a": "block 64", "output": "block 64"}
    second = upgrade_all(usual, first, [64])
    assert set(second.values()) == {"block 32"}
    third = upgrade_all(usual, second, [64])
    assert set(third.values()) == {"fp32"}
    assert upgrade_all(usual, third, [64]) == third
    usual = {"a": "int4 32", "output": "frequent 32"}
    assert upgrade_all(usual, {}, [64]) == {"a": "block 64", "output": "block 64"}


@pytest.mark.parametrize(
    ("kernel", "widths", "only_dense", "expected"),
    [
        ("dense", [768, 3072], False, ["block 64", "block 32", "fp32"]),
        ("dense", [768, 3072], True, ["fp32"]),
        ("dense", [96], False, ["block 32", "fp32"]),
        ("dense", [40], False, ["fp32"]),
        ("block 256", [768], False, ["block 64", "block 32", "fp32"]),
        ("block 64", [768], False, ["block 32", "fp32"]),
        ("block 32", [768], False, ["fp32"]),
        ("int4 32", [768], False, ["block 64", "block 32", "fp32"]),
        ("int4 32", [96], False, ["block 32", "fp32"]),
        ("frequent 32", [768], False, ["block 64", "block 32", "fp32"]),
        ("frequent 32", [96], False, ["block 32", "fp32"]),
        ("static", [768], False, ["dense", "block 64", "block 32", "fp32"]),
        ("static", [768], True, ["dense", "fp32"]),
        ("fp32", [768], False, []),
    ],
)
def test_better_kernels(kernel: str, widths: list[int], only_dense: bool, expected: list[str]) -> None:
    assert better_kernels(kernel, widths, only_dense=only_dense) == expected
