"""Checks of arguments, each written once. A message says what was given and what is expected."""

from __future__ import annotations

import math
import numbers
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard

Prompt = str | list[int]  # a text, or token ids
MAX_COUNT = 2**63 - 1  # of whole numbers that have no smaller limit
_PROMPT = "a text (str) or a list of token ids"
_SHOWN = 120  # characters of a value in a message
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = _SHOWN
_repr.maxlist = _repr.maxtuple = _repr.maxdict = 8


def shown(value: object) -> str:
    """The value as Python writes it, cut where it is long."""
    try:
        return _repr.repr(value)
    except ValueError:
        # Python refuses to write an int of more than 4,300 digits.
        return "a number of thousands of digits"


def check_count(name: str, value: object, least: int = 1, most: int = MAX_COUNT) -> int:
    """The value as a plain int. Raises TypeError or ValueError unless it is a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} is {shown(value)}; a whole number is expected")
    count = int(value)
    if not least <= count <= most:
        # The largest count is a limit of this check, not of the option: it is named only where it is passed.
        high = f" and at most {most}" if most != MAX_COUNT or count > most else ""
        raise ValueError(f"{name} is {_written(value)}; it must be at least {least}{high}")
    return count


def check_number(
    name: str, value: object, *, least: float | None = None, above: float | None = None, most: float | None = None
) -> float:
    """The value as a plain, finite float.

    Raises TypeError for what is no number; ValueError for one that is not finite, is under `least`, not above
    `above`, or over `most`.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {shown(value)}; a number is expected")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    too_small = (least is not None and number < least) or (above is not None and number <= above)
    if not math.isfinite(number) or too_small or (most is not None and number > most):
        limits = [
            "" if math.isfinite(number) else "finite",
            "" if least is None else f"at least {least}",
            "" if above is None else f"above {above}",
            "" if most is None else f"at most {most}",
        ]
        expected = " and ".join(limit for limit in limits if limit)
        raise ValueError(f"{name} is {_written(value)}; it must be {expected}")
    return number


def _written(number: object) -> str:
    """A number as text, without the name of its type that numpy's repr has."""
    try:
        return str(number)
    except ValueError:
        return shown(number)


def check_flag(name: str, value: object) -> bool:
    """The value itself. Raises TypeError unless it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {shown(value)}; True or False is expected")
    return value


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> str:
    """The value itself. Raises ValueError unless it is one of the allowed texts."""
    names = list(allowed)
    if not isinstance(value, str) or value not in names:
        raise ValueError(f"{name} is {shown(value)}; it must be one of {', '.join(names)}")
    return value


def check_text(name: str, value: object) -> str:
    """The value itself. Raises TypeError unless it is a str."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is {shown(value)}; a text (str) is expected")
    return value


def check_texts(name: str, value: object, least: int = 1) -> list[str]:
    """Several texts as a list, from any iterable of them; a single text is refused.

    Raises TypeError for what is something else; ValueError where there are fewer than `least`, 0 or 1.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(f"{name} is {shown(value)}; several texts are expected")
    return _as_texts(name, value, least)


def check_one_or_several_texts(name: str, value: object) -> list[str]:
    """One text or several as a list. Raises TypeError for what is something else; ValueError where there are none."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, bytes) or not isinstance(value, Iterable):
        raise TypeError(f"{name} is {shown(value)}; a text or several are expected")
    return _as_texts(name, value)


def check_ids(name: str, value: object, n_vocab: int | None = None) -> list[int]:
    """Token ids as a list of plain ints, from any iterable of whole numbers.

    n_vocab: ids are 0 to n_vocab - 1; None checks that they are whole numbers.
    Raises TypeError for what is something else; ValueError for an id outside the vocabulary.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(f"{name} is {shown(value)}; token ids are expected, a list of whole numbers")
    ids = list(value)
    # Lists of a million plain ints are common, and the checks one by one are slow.
    if not all(type(id_) is int for id_ in ids):
        ids = [_check_id(f"{name}[{index}]", id_) for index, id_ in enumerate(ids)]
    if n_vocab is not None:
        check_vocabulary(name, ids, n_vocab)
    return ids


def _check_id(name: str, value: object) -> int:
    if not _is_id(value):
        raise TypeError(f"{name} is {shown(value)}; a token id is expected, a whole number")
    return int(value)


def _is_id(value: object) -> TypeGuard[numbers.Integral]:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_vocabulary(name: str, ids: Sequence[int], n_vocab: int) -> None:
    """Raise ValueError for an id that is not 0 to n_vocab - 1."""
    if len(ids) and not (min(ids) >= 0 and max(ids) < n_vocab):
        index = next(index for index, id_ in enumerate(ids) if not 0 <= id_ < n_vocab)
        raise ValueError(
            f"{name}[{index}] is {_written(ids[index])}; the ids of this model's vocabulary are 0 to {n_vocab - 1}"
        )


def check_prompt(name: str, value: object) -> Prompt:
    """A text as it is, or token ids as a list of plain ints.

    Raises TypeError for what is neither, ValueError for no ids.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bytes) or not isinstance(value, Iterable):
        raise TypeError(f"{name} is {shown(value)}; {_PROMPT} is expected")
    ids = check_ids(name, value)
    if not ids:
        raise ValueError(f"{name} has no token ids; at least one is expected, such as that of bos_token")
    return ids


def check_prompts(name: str, value: object) -> tuple[list[Prompt], bool]:
    """One prompt or several as a list, and whether it is one. A prompt is a text, or a sequence of token ids.

    Raises TypeError for what is something else; ValueError where there are none, and for one of no ids.
    """
    if isinstance(value, str):
        return [value], True
    if isinstance(value, bytes) or not isinstance(value, Iterable):
        raise TypeError(f"{name} is {shown(value)}; {_PROMPT}, or several of them, are expected")
    given = list(value)
    if not given:
        raise ValueError(f"{name} is empty; at least one text or token id is expected")
    if _is_id(given[0]):
        return [check_prompt(name, given)], True
    return [check_prompt(f"{name}[{index}]", one) for index, one in enumerate(given)], False


def check_prompt_ids(name: str, prompts: Sequence[Prompt], n_vocab: int, *, is_one: bool = False) -> None:
    """Raise ValueError for an id outside the vocabulary, in those of the prompts that are token ids."""
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            check_vocabulary(name if is_one else f"{name}[{index}]", prompt, n_vocab)


def _as_texts(name: str, value: Iterable[object], least: int = 1) -> list[str]:
    texts = list(value)
    if len(texts) < least:
        raise ValueError(f"{name} is empty; at least one text is expected")
    return [check_text(f"{name}[{index}]", text) for index, text in enumerate(texts)]


def check_unicode(name: str, text: str) -> str:
    """The text itself. Raises ValueError for a lone surrogate, which UTF-8 cannot hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} has a lone surrogate in {shown(text)}, at {error.start}: it is not valid Unicode"
        ) from None
    return text


def check_valid_text(text: object) -> None:
    """Raise TypeError for what is not a str, ValueError for one that is not valid Unicode.

    >>> check_valid_text("Once upon a time")
    """
    if not isinstance(text, str):
        raise TypeError(f"a text is a str, not {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"the text has a lone surrogate at character {error.start}: it is not valid Unicode") from None
