"""Hostile tokenizer files: `python -m tests.trials.tokenizer_files --count 20000`.

Tokenizers of every kind are changed at random. Values, parts and whole sections are replaced, repeated, nested and
taken out, by what is odd or huge, and bytes are flipped. Each file is opened as a load does it. Where it opens, texts
are encoded and decoded by a process that may die of it. None may crash, hang, need much memory, or raise anything but
a ValueError on one line.
"""

from __future__ import annotations

import argparse
import collections
import copy
import faulthandler
import json
import random
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.vocabularies import KINDS
from tests.trials.table import Row, record

# of one file: a process that takes longer hangs
SECONDS = 20
MEMORY = 4 << 30
# characters of a text that was encoded and decoded again
LONGEST = 10_000_000
REFUSED, OPENED, CRASHED, WRONG = "refused", "opened", "crashed or hung", "raised something else"
N_VOCAB = 400
TEXTS = [
    "",
    "a" * 3_000,
    " " * 3_000,
    "the cat sat ",
    "鼠 é \U0001f642 ﷺ İ\n",
    "e2e4 e7e5",
    "<s>[CLS]<|end|> [niño]",
    "\0",
]
ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    1,
    3,
    2**31,
    2**32,
    2**63,
    10**30,
    0.5,
    1e308,
    "",
    "a",
    " ",
    "aa",
    "a" * 100,
    "a" * 100_000,
    "\0",
    "é",
    "▁",
    [],
    {},
    [["a", 0.0]],
    {"String": "a"},
    {"Regex": r"\s+"},
    {"Regex": "(a|aa)*$x"},
    {"Regex": "[^a]"},
]
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
_METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
_REPLACES: list[dict[str, Any]] = [
    {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaa"},
    {"type": "Replace", "pattern": {"Regex": "."}, "content": "aé"},
    {"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": ""},
]
_BERT = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
PARTS: dict[str, list[dict[str, Any]]] = {
    "normalizer": [
        *_REPLACES,
        {"type": "Prepend", "prepend": "aaa"},
        {"type": "NFKD"},
        {"type": "NFC"},
        {"type": "Nmt"},
        {"type": "Lowercase"},
        {"type": "StripAccents"},
        {"type": "Strip", "strip_left": True, "strip_right": True},
        {"type": "BertNormalizer", **_BERT},
        {"type": "Precompiled", "precompiled_charsmap": "CAAAAAAAAAAAAAAAYWIAYWJjAA=="},
        {"type": "ByteLevel"},
    ],
    "pre_tokenizer": [
        _BYTE_LEVEL,
        _METASPACE,
        {"type": "BertPreTokenizer"},
        {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}"}, "behavior": "Isolated", "invert": False},
        {"type": "Split", "pattern": {"String": "a"}, "behavior": "MergedWithNext", "invert": True},
        {"type": "Digits", "individual_digits": True},
        {"type": "Punctuation", "behavior": "Contiguous"},
        {"type": "CharDelimiterSplit", "delimiter": "a"},
        {"type": "FixedLength", "length": 2},
        {"type": "UnicodeScripts"},
        {"type": "Whitespace"},
    ],
    "post_processor": [
        _BYTE_LEVEL,
        {"type": "BertProcessing", "sep": ["a", 0], "cls": ["b", 399]},
        {"type": "RobertaProcessing", "sep": ["a", 0], "cls": ["b", 9], "trim_offsets": True, "add_prefix_space": True},
        {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "a", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [],
            "special_tokens": {"a": {"id": "a", "ids": [1, 2], "tokens": ["x", "y"]}},
        },
    ],
    "decoder": [
        *_REPLACES,
        _BYTE_LEVEL,
        _METASPACE,
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": "a", "start": 3, "stop": 0},
        {"type": "Strip", "content": "a", "start": 9, "stop": 9},
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "BPEDecoder", "suffix": "a"},
        {"type": "CTC", "pad_token": "a", "word_delimiter_token": "b", "cleanup": True},
    ],
}
MODELS: list[dict[str, Any]] = [
    {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0], ["aa", -1e30]], "byte_fallback": True},
    {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0, "the": 5}},
    {
        "type": "WordPiece",
        "unk_token": "a",
        "continuing_subword_prefix": "é",
        "max_input_chars_per_word": 100,
        "vocab": {"a": 0, "éa": 1},
    },
    {
        "type": "BPE",
        "dropout": 0.5,
        "unk_token": None,
        "continuing_subword_prefix": "é",
        "end_of_word_suffix": "a",
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": True,
        "vocab": {"a": 0, "é": 1, "aa": 2},
        "merges": [["a", "a"], ["a", "é"]],
    },
]
SECTIONS = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}


def main() -> int:
    """Print how often each thing happened; returns 1 where a file did what none may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="files to try (default: 20,000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first file (default: 0)")
    parser.add_argument("--work", nargs=2, type=int, metavar=("BEGIN", "END"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(*given.work)
        return 0
    counts, bad = try_files(given.count, given.seed)
    told = ", ".join(f"{counts[outcome]:,} {outcome}" for outcome in (REFUSED, OPENED, CRASHED, WRONG))
    print(told, *bad, sep="\n")
    record("tokenizer_files", [Row("a tokenizer.json changed at random, opened and used", given.count, told)])
    return int(bool(bad))


def try_files(count: int, seed: int) -> tuple[collections.Counter[str], list[str]]:
    """How often each outcome came, and what was said of the bad ones, which begin with the seed that makes the file."""
    counts: collections.Counter[str] = collections.Counter()
    bad: list[str] = []
    begin = seed
    while begin < seed + count:
        command = [sys.executable, "-m", "tests.trials.tokenizer_files", "--work", str(begin), str(seed + count)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        for line in done.stdout.splitlines():
            outcome, _, said = line.partition("\t")
            counts[outcome] += 1
            if outcome == WRONG:
                bad.append(f"{begin}: {said}")
            begin += 1
        if done.returncode != 0:
            counts[CRASHED] += 1
            bad.append(f"{begin}: exit code {done.returncode}: {done.stderr[-500:]}")
            begin += 1
    return counts, bad


def work(begin: int, end: int) -> None:
    """Try the files of some seeds, and print a line of each."""
    _limit_memory()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        for seed in range(begin, end):
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            print(try_file(make_file(seed), Path(place) / "tokenizer.json"), flush=True)
            faulthandler.cancel_dump_traceback_later()


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def try_file(content: bytes, path: Path) -> str:
    """Open a file and use it: the outcome, and after a tab what was wrong."""
    from runtime.model.tokenizer import calls
    from runtime.model.tokenizer.detokenizer import PieceDecoder
    from runtime.model.tokenizer.file import read_tokenizer

    path.write_bytes(content)
    try:
        try:
            tokenizer = read_tokenizer(path, N_VOCAB)
        except ValueError as error:
            assert str(path) in str(error), f"the file is not named: {error}"
            assert "\n" not in str(error), f"more than one line: {error!r}"
            return REFUSED
        for text in TEXTS:
            try:
                ids = calls.encode(tokenizer, text, whole=True).ids
                decoder = PieceDecoder(tokenizer)
                pieces = [*map(decoder.push, ids), decoder.flush()]
                calls.decode(tokenizer, ids)
            except ValueError as error:
                assert "\n" not in str(error), f"more than one line: {error!r}"
                continue
            assert len("".join(pieces)) < LONGEST, f"a text of {len(''.join(pieces)):,} characters"
    except BaseException as error:
        return f"{WRONG}\t{type(error).__name__}: {' '.join(str(error).split())}"
    return OPENED


def make_file(seed: int) -> bytes:
    """A tokenizer.json with one to three changes."""
    rng = random.Random(seed)
    made = json.loads(rng.choice(list(_written()))) if rng.random() < 0.9 else _from_parts(rng)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        _change(rng, made)
    content = json.dumps(made).encode()
    if rng.random() < 0.05:
        at = rng.randrange(len(content))
        content = content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
    return content


def _written() -> Iterator[str]:
    for make in KINDS.values():
        yield make().to_str()


def _from_parts(rng: random.Random) -> dict[str, Any]:
    made: dict[str, Any] = {"version": "1.0", "added_tokens": [], "model": copy.deepcopy(rng.choice(MODELS))}
    for section, key in SECTIONS.items():
        parts = [copy.deepcopy(rng.choice(PARTS[section])) for _ in range(rng.randrange(4))]
        made[section] = {"type": "Sequence", key: parts} if parts else None
    return made


def _change(rng: random.Random, made: dict[str, Any]) -> None:
    """One change: in a section as a whole, or of a value anywhere."""
    kind = rng.randrange(6)
    section = rng.choice(list(SECTIONS))
    if kind == 0:
        made[section] = copy.deepcopy(rng.choice(PARTS[section]))
    elif kind == 1:
        parts = [*([made[section]] if made.get(section) else []), copy.deepcopy(rng.choice(PARTS[section]))]
        made[section] = {"type": "Sequence", SECTIONS[section]: parts * rng.choice([1, 1, 2, 40])}
    elif kind == 2:
        made["model"] = copy.deepcopy(rng.choice(MODELS))
    elif kind == 3:
        for _ in range(rng.choice([1, 3, 200])):
            made[section] = {"type": "Sequence", SECTIONS[section]: [made.get(section)]}
    else:
        _replace(rng, made)


def _replace(rng: random.Random, made: Any) -> None:
    """Replace or take out a value: the path to it is drawn at each level, so large tables do not hide the others."""
    while True:
        keys = list(made) if isinstance(made, dict) else list(range(len(made)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(made[key], dict | list) and made[key] and rng.random() < 0.85:
            made = made[key]
            continue
        if rng.random() < 0.15:
            del made[key]
        else:
            made[key] = copy.deepcopy(rng.choice(ODD))
        return


if __name__ == "__main__":
    sys.exit(main())
