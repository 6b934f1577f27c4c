"""The options of generation, checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

MAX_SEED = 2**64 - 1


@dataclasses.dataclass(frozen=True)
class Options:
    """See `runtime.generate` for the meanings. Raises ValueError or TypeError for a value that is not allowed."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    stop: str | Sequence[str] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_int("max_new_tokens", self.max_new_tokens, 1)
        _check_int("top_k", self.top_k, 0)
        if self.seed is not None:
            _check_int("seed", self.seed, 0, MAX_SEED)
        _check_number("temperature", self.temperature)
        _check_number("top_p", self.top_p)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; above 0 and at most 1 (1.0 is off)")
        if self.temperature == 0 and (self.top_k or self.top_p < 1):
            raise ValueError(
                f"top_k={self.top_k} and top_p={self.top_p} choose what to sample from, but temperature 0 does not "
                "sample; set temperature (1.0 is the model's own distribution) or leave them off"
            )
        if not all(isinstance(stop, str) and stop for stop in self.stops):
            raise ValueError(f"stop is {self.stop!r}; a string or several, none of them empty")

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


def _check_int(name: str, value: object, least: int, most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}; a whole number is expected")
    if value < least or (most is not None and value > most):
        limit = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} is {value}; it must be {limit}")


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is {value!r}; a number is expected")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} is {value}; a finite number of at least 0 is expected")
