"""Which products get a more exact kernel where a model loses too much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from export.quantize.calibration import Calibration
from export.quantize.choice import Errors
from export.quantize.kernels import better_kernels

MARGIN = 1.5
"""The sum of errors is brought this much below what the measured loss asks for: it only predicts the loss."""
GAIN = 0.9
"""A better kernel is worth its price where the error of the product shrinks to this part at least."""


def climb(found: Calibration, upgraded: dict[str, str], excess: float) -> dict[str, str]:
    """The kernels to build the next attempt with: those of the products with the largest errors become better.

    upgraded: products that have another kernel than usual already. excess: how many times more than allowed the model
    loses, as measured. Returns `upgraded` itself where no product has a better kernel left.
    """
    kernels = {name: upgraded.get(name, next(iter(errors))) for name, errors in found.errors.items()}
    target = _total(found, kernels) / (excess * MARGIN)
    climbed = dict(upgraded)
    while _total(found, kernels) > target or climbed == upgraded:
        steps = {name: step for name in kernels if (step := _next(found.errors[name], kernels[name]))}
        if not steps:
            break
        worst = max(steps, key=lambda name: found.errors[name][kernels[name]])
        kernels[worst] = steps[worst]
        climbed[worst] = steps[worst]
    return climbed


def climb_together(usual: Mapping[str, str], upgraded: dict[str, str], widths: Sequence[int]) -> dict[str, str]:
    """The same without calibration, which knows the errors: every product gets the next kernel.

    usual: the usual kernel of every product. widths: of the rows of all products.
    """
    climbed = dict(upgraded)
    for name, kernel in usual.items():
        better = better_kernels(upgraded.get(name, kernel), widths)
        if better:
            climbed[name] = better[0]
    return climbed


def _total(found: Calibration, kernels: dict[str, str]) -> float:
    return sum(found.errors[name][kernel] for name, kernel in kernels.items())


def _next(errors: Errors, kernel: str) -> str | None:
    """The next kernel after this one that is worth it; None at the end of the ladder."""
    kernels = list(errors)
    following = kernels[kernels.index(kernel) + 1 :]
    return next((step for step in following if errors[step] <= GAIN * errors[kernel]), None)
