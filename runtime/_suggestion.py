"""What a misspelt name may have meant."""

from __future__ import annotations

from collections.abc import Iterable

CLOSE = 0.75  # share of letters that agree


def suggest(wrong: str, names: Iterable[str]) -> str:
    """` (did you mean NAME?)` for the closest of the names; "" where none is close."""
    import difflib  # only where something is wrong: importing the package stays quick

    found = difflib.get_close_matches(wrong, list(names), n=1, cutoff=CLOSE)
    return f" (did you mean {found[0]}?)" if found else ""
