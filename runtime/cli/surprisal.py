"""The command `gpt2-edge surprisal`: texts from files or lines, and their words or tokens as table, TSV or JSON."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from runtime.cli.output import ProgressBar, print_line, say
from runtime.model.model import Model
from runtime.scoring.surprisal import Settings, Surprisal, measure

WORD_COLUMNS = ("source", "index", "begin", "end", "word", "surprisal")
REFERENCE_COLUMNS = ("reference", "difference")
TOKEN_COLUMNS = ("source", "index", "begin", "end", "token", "id", "surprisal", "rank", "entropy")


class Source(NamedTuple):
    """A text and where it comes from: a file's name, or that and the number of the line."""

    name: str
    text: str


def read_texts(given: argparse.Namespace, read_input: Callable[[], str]) -> list[Source]:
    """The texts of the files, or of their lines. Raises ValueError where there is none."""
    if given.tokens and given.reference is not None and not given.jsonl:
        raise ValueError("--reference compares words: leave --tokens out")
    sources: list[Source] = []
    for name in given.files or ["-"]:
        text = read_input() if name == "-" else read_file(Path(name))
        if not given.lines:
            sources.append(Source(name, text))
            continue
        numbered = enumerate(text.splitlines(), 1)
        sources += [Source(f"{name}:{number}", line) for number, line in numbered if line.strip()]
    if not sources:
        raise ValueError("there is no text: every line is blank")
    return sources


def read_file(path: Path) -> str:
    """The text of a file. Raises ValueError, naming it, where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None


def print_surprisals(
    given: argparse.Namespace, sources: Sequence[Source], model: Model, reference: Model | None
) -> int:
    """Print every text as it is measured, and at the end how far the reference is; returns the number of tokens."""
    settings = Settings(
        top=given.top, bos=not given.no_bos, word_correction=not given.no_word_correction, stride=given.stride
    )
    texts = [source.text for source in sources]
    n_models = 1 if reference is None else 2
    bar = ProgressBar(n_models * sum(map(len, texts)), "characters")
    found = measure(model, texts, settings, progress=bar.add)
    others: Iterator[Surprisal | None] = itertools.repeat(None)
    if reference is not None:
        others = measure(reference, texts, dataclasses.replace(settings, top=0), progress=bar.add)
    printer = _printer(given, len(sources))
    differences = _Differences()
    n_tokens = 0
    for source, one, other in zip(sources, found, others, strict=False):
        bar.clear()
        printer(source, one, other)
        n_tokens += len(one.tokens)
        if other is not None:
            differences.add(one, other)
    bar.clear()
    if reference is not None:
        summary = differences.summary()
        print(summary) if _is_table(given) else say(summary)
    return n_tokens


Printer = Callable[[Source, Surprisal, Surprisal | None], None]


def _is_table(given: argparse.Namespace) -> bool:
    return not given.tsv and not given.jsonl


def _printer(given: argparse.Namespace, n_texts: int) -> Printer:
    if given.jsonl:
        return _print_json
    if given.tsv:
        columns = TOKEN_COLUMNS if given.tokens else WORD_COLUMNS
        more = ("top",) * bool(given.tokens and given.top) + REFERENCE_COLUMNS * (given.reference is not None)
        print("\t".join((*columns, *more)))
        print_tokens = functools.partial(_print_token_tsv, has_top=given.top > 0)
        return print_tokens if given.tokens else _print_word_tsv
    print_one = _print_token_table if given.tokens else _print_word_table

    def print_named(source: Source, one: Surprisal, other: Surprisal | None) -> None:
        if n_texts > 1:
            print(f"--- {source.name}")
        print_one(source, one, other)

    return print_named


def _print_json(source: Source, one: Surprisal, other: Surprisal | None) -> None:
    value = {"source": source.name, **dataclasses.asdict(one)}
    if other is not None:
        for word, reference in zip(value["words"], other.words, strict=True):
            word["reference"] = reference.surprisal
            word["difference"] = _minus(word["surprisal"], reference.surprisal)
    for token in value["tokens"]:
        token["top"] = [alternative._asdict() for alternative in token["top"]]
    print_line(value)


def _print_word_tsv(source: Source, one: Surprisal, other: Surprisal | None) -> None:
    for index, word in enumerate(one.words):
        cells = [source.name, index, *word.span, word.text, word.surprisal]
        if other is not None:
            reference = other.words[index].surprisal
            cells += [reference, _minus(word.surprisal, reference)]
        print_cells(cells)


def _print_token_tsv(source: Source, one: Surprisal, _other: Surprisal | None, *, has_top: bool) -> None:
    for index, token in enumerate(one.tokens):
        cells = [source.name, index, *token.span, token.text, token.id, token.surprisal, token.rank, token.entropy]
        if has_top:
            likeliest = [[alternative.text, alternative.surprisal] for alternative in token.top]
            cells.append(_Json(json.dumps(likeliest, ensure_ascii=False)) if likeliest else None)
        print_cells(cells)


class _Json(str):
    """JSON on one line, which has no tab or line end of its own."""


def print_cells(cells: Sequence[Any]) -> None:
    """Print a line of tab-separated values."""
    print("\t".join(map(_cell, cells)))


def _cell(value: object) -> str:
    """A value without a tab or a line end; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6f}"
    if isinstance(value, _Json):
        return value
    text = str(value).replace("\\", "\\\\")
    return text.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def _print_word_table(_source: Source, one: Surprisal, other: Surprisal | None) -> None:
    width = max((len(word.text) for word in one.words), default=0)
    print(f"{'word':<{width}}  {'bits':>7}" + ("" if other is None else "  difference"))
    for index, word in enumerate(one.words):
        line = f"{word.text:<{width}}  {_bits(word.surprisal):>7}"
        if other is not None:
            difference = _minus(word.surprisal, other.words[index].surprisal)
            line += f"  {'-' if difference is None else f'{difference:+.3f}':>10}"
        print(line)


def _print_token_table(_source: Source, one: Surprisal, _other: Surprisal | None) -> None:
    shown = [_cell(token.text) for token in one.tokens]
    width = max(map(len, shown))
    print(f"{'token':<{width}}  {'bits':>7}  {'rank':>6}  {'entropy':>7}" + "  likeliest" * bool(one.tokens[-1].top))
    for text, token in zip(shown, one.tokens, strict=True):
        rank = "-" if token.rank is None else token.rank
        line = f"{text:<{width}}  {_bits(token.surprisal):>7}  {rank:>6}  {_bits(token.entropy):>7}"
        likeliest = ", ".join(f"{one.text!r} {one.surprisal:.2f}" for one in token.top)
        print(f"{line}  {likeliest}".rstrip())


def _bits(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


class _Differences:
    """Surprisals of the same words by two builds."""

    def __init__(self) -> None:
        self._pairs: list[tuple[float, float]] = []
        self._words: list[str] = []

    def add(self, one: Surprisal, other: Surprisal) -> None:
        for word, reference in zip(one.words, other.words, strict=True):
            if word.surprisal is not None and reference.surprisal is not None:
                self._pairs.append((word.surprisal, reference.surprisal))
                self._words.append(word.text)

    def summary(self) -> str:
        """A line: how many words, mean and largest difference, correlation."""
        if not self._pairs:
            return "no word has a surprisal in both builds"
        one, other = np.array(self._pairs).T
        difference = np.abs(one - other)
        largest = int(difference.argmax())
        known = len(one) > 1 and one.std() > 0 and other.std() > 0
        correlation = float(np.corrcoef(one, other)[0, 1]) if known else math.nan
        return (
            f"{len(one)} words: mean absolute difference {difference.mean():.4f} bits, "
            f"largest {difference[largest]:.4f} ({self._words[largest]}), correlation {correlation:.6f}"
        )
