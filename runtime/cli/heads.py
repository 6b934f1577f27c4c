"""The commands `gpt2-edge classify` and `gpt2-edge embed`: texts from arguments, files or lines."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.cli.output import ProgressBar, print_line
from runtime.cli.surprisal import Source, print_cells, read_file
from runtime.heads.classification import Classification, TokenClassification, as_json, classify
from runtime.heads.embedding import check_pooling, embed
from runtime.model.model import Model

TOKEN_COLUMNS = ("source", "index", "begin", "end", "token", "id", "label", "score")
# An argument of one word with one of these ends is meant as a file.
_SUFFIXES = {".csv", ".json", ".jsonl", ".md", ".tsv", ".txt"}
# Characters of a text in a table.
_SHOWN = 60


def read_texts(given: argparse.Namespace, read_input: Callable[[], str]) -> list[Source]:
    """The texts of the arguments, or of the lines of files. Raises ValueError where there is none."""
    sources: list[Source] = []
    for argument in given.texts or ["-"]:
        source = _read(argument, read_input)
        if not given.lines:
            sources.append(source)
            continue
        numbered = enumerate(source.text.splitlines(), 1)
        sources += [Source(f"{source.name}:{number}", line) for number, line in numbered if line.strip()]
    if not sources:
        raise ValueError("there is no text: every line is blank")
    return sources


def _read(argument: str, read_input: Callable[[], str]) -> Source:
    """What `-`, the name of a file, or a text itself stands for."""
    if argument == "-":
        return Source("-", read_input())
    if _is_file(argument):
        return Source(argument, read_file(Path(argument)))
    if len(argument.split()) == 1 and (os.sep in argument or Path(argument).suffix in _SUFFIXES):
        raise FileNotFoundError(f"no file {argument}; a text that looks like a file's name goes to standard input: -")
    return Source("text", argument)


def _is_file(argument: str) -> bool:
    try:
        return Path(argument).is_file()
    except (OSError, ValueError):
        # Longer than a name may be, or with a null character.
        return False


def print_labels(given: argparse.Namespace, sources: Sequence[Source], model: Model) -> int:
    """Print the labels of every text as they are known; returns the number of texts."""
    bar = ProgressBar(len(sources), "texts")
    found = classify(model, [source.text for source in sources], name="text", progress=bar.add)
    if given.tsv:
        head = model.check_classifier()
        columns = ("source", "label", "score", *head.labels)
        print_cells(columns if head.kind == "sequence" else TOKEN_COLUMNS)
    for source, one in zip(sources, found, strict=True):
        bar.clear()
        if given.jsonl:
            print_line({"source": source.name, "text": source.text, **as_json(one)})
        elif given.tsv:
            _print_tsv(source, one)
        else:
            _print_table(source, one)
    bar.clear()
    return len(sources)


def _print_tsv(source: Source, one: Classification | TokenClassification) -> None:
    if isinstance(one, Classification):
        print_cells([source.name, one.label, one.score, *one.scores.values()])
        return
    for index, token in enumerate(one.tokens):
        print_cells([source.name, index, *token.span, token.text, token.id, token.label, token.score])


def _print_table(source: Source, one: Classification | TokenClassification) -> None:
    if isinstance(one, Classification):
        print(f"{one.label}  {one.score:.4f}  {_short(source.text)}")
        return
    print(f"--- {_short(source.text)}")
    for span in one.spans:
        print(f"{span.label}  {span.score:.4f}  {_short(span.text)}")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."


def write_embeddings(given: argparse.Namespace, sources: Sequence[Source], model: Model) -> int:
    """Print the embedding of every text as a line of JSON, or write all to a file; returns the number of texts."""
    bar = ProgressBar(len(sources), "texts")
    texts = [source.text for source in sources]
    found = embed(model, texts, check_pooling(given.pooling), name="text", progress=bar.add)
    if given.npy is not None:
        _write_array(given.npy, found)
    else:
        for source, one in zip(sources, found, strict=True):
            bar.clear()
            print_line({"source": source.name, "embedding": one.tolist()})
    bar.clear()
    return len(sources)


def _write_array(path: Path, found: Iterator[NDArray[np.float32]]) -> None:
    array = np.stack(list(found))
    # Opened by us: numpy would add a suffix to the name.
    with path.open("wb") as file:
        np.save(file, array)
