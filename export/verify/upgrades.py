"""Choose which products get a more exact kernel when the model loses too much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from export.quantize.calibration import Calibration
from export.quantize.choice import Errors
from export.quantize.kernels import better_kernels

MARGIN = 1.5
"""A safety factor: the sum of errors, which only predicts the loss, is reduced by the measured excess times this."""
GAIN = 0.9
"""A more exact kernel is slower, so it is taken only if it reduces the error of its product to this share or less."""


def upgrade_worst(calibration: Calibration, upgraded: dict[str, str], excess: float) -> dict[str, str]:
    """The kernels of the next attempt: the products with the largest errors get the next more exact kernel.

    upgraded: product -> kernel, where it already differs from the usual one. excess: the measured loss divided by the
    allowed one. Returns `upgraded` unchanged where no product has a more exact kernel left.
    """
    kernels = {name: upgraded.get(name, next(iter(errors))) for name, errors in calibration.errors.items()}
    target = _total_error(calibration, kernels) / (excess * MARGIN)
    result = dict(upgraded)
    while _total_error(calibration, kernels) > target or result == upgraded:
        following = {name: _next_kernel(calibration.errors[name], kernel) for name, kernel in kernels.items()}
        candidates = {name: kernel for name, kernel in following.items() if kernel is not None}
        if not candidates:
            break
        worst = max(candidates, key=lambda name: calibration.errors[name][kernels[name]])
        kernels[worst] = candidates[worst]
        result[worst] = candidates[worst]
    return result


def upgrade_all(usual: Mapping[str, str], upgraded: dict[str, str], widths: Sequence[int]) -> dict[str, str]:
    """The kernels of the next attempt without calibration: every product gets the next more exact kernel.

    Without calibration the errors of the products are not known. usual: the usual kernel of every product. widths: the
    row lengths of all products.
    """
    result = dict(upgraded)
    for name, kernel in usual.items():
        better = better_kernels(upgraded.get(name, kernel), widths)
        if better:
            result[name] = better[0]
    return result


def _total_error(calibration: Calibration, kernels: Mapping[str, str]) -> float:
    return sum(calibration.errors[name][kernel] for name, kernel in kernels.items())


def _next_kernel(errors: Errors, kernel: str) -> str | None:
    """The next more exact kernel that reduces the error enough; None if there is none."""
    kernels = list(errors)
    following = kernels[kernels.index(kernel) + 1 :]
    return next((candidate for candidate in following if errors[candidate] <= GAIN * errors[kernel]), None)
