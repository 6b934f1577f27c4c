"""How the command line prints results: JSON for machines, a table for people."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from runtime.completion import Completion


def as_json(value: Any, **more: object) -> str:
    """A dataclass, and more facts."""
    return json.dumps(dataclasses.asdict(value) | more, ensure_ascii=False, indent=2)


def say_speed(completions: Sequence[Completion], seconds: float) -> None:
    """On standard error."""
    n_prompt, n_new = sum(c.n_prompt_tokens for c in completions), sum(c.n_tokens for c in completions)
    print(f"{n_prompt} prompt tokens, {n_new} new in {seconds:.2f} s: {n_new / seconds:.1f} tokens/s", file=sys.stderr)


def as_table(facts: dict[str, Any]) -> str:
    """A fact a line."""
    width = max(map(len, facts)) + 2
    return "\n".join(f"{name:<{width}}{_shown(value)}" for name, value in facts.items())


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(part)}" for name, part in value.items())
    return f"{value:.6g}" if isinstance(value, float) else "none" if value is None else str(value)
