"""Does tokenizing a hostile text take time in proportion to its length? `python -m tests.trials.lengths`.

Texts of one letter, of spaces, digits, random ideograms and the like, up to 10 MB and as long again: a word without an
end is what byte-pair encoders have taken quadratic time for.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer

from tests.trials.table import Row, record

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo" / "tokenizer.json"
MEGABYTES, N_HALVINGS = 10.0, 3
ALLOWED = 1.6  # the power of the length that the time grows with; quadratic is 2
UNITS = {"one letter": "a", "spaces": " ", "line ends": "\n", "one digit": "7", "<|endoftext|>": "<|endoftext|>"}
UNITS |= {"accents": "\u0301", "emoji": "🙂", "NUL": "\0", "underscores": "_"}
ALPHABETS = {"random letters": (0x61, 0x7A), "random ideograms": (0x4E00, 0x9FFF), "any plane": (0x10000, 0x10FFFF)}


def main() -> int:
    """Print a row a kind of text; returns 1 where the time grows faster than the length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=MEGABYTES, help=f"of the longest (default: {MEGABYTES:.0f})")
    parser.add_argument("--tokenizer", type=Path, default=DEMO, help="tokenizer.json (default: the demo's)")
    given = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(given.tokenizer))
    tokenizer.encode_special_tokens = True
    print("| text | seconds | grows with the power |\n|---|---|---|")
    powers, slowest = [], 0.0
    for name, write in kinds().items():
        seconds, power = measure(tokenizer, write, int(given.megabytes * 1e6))
        powers.append(power)
        slowest = max(slowest, seconds)
        print(f"| {name} | {seconds:.1f} | {power:.2f} |", flush=True)
    tried = f"{given.megabytes:g} MB of one letter, spaces, digits, ideograms ... tokenized"
    told = f"at most {slowest:.0f} s; time grows with at most the power {max(powers):.2f} of the length"
    record("lengths", [Row(tried, len(powers), told)])
    return int(max(powers) > ALLOWED)


def kinds() -> dict[str, Callable[[int], str]]:
    """What makes a text of so many bytes."""
    repeated = {name: lambda n, unit=unit: unit * (n // len(unit.encode())) for name, unit in UNITS.items()}
    return repeated | {name: lambda n, ends=ends: _random(n, *ends) for name, ends in ALPHABETS.items()}


def _random(n_bytes: int, first: int, last: int) -> str:
    characters = random.Random(0).choices(range(first, last + 1), k=n_bytes // len(chr(first).encode()))
    return "".join(map(chr, characters))


def measure(tokenizer: Tokenizer, write: Callable[[int], str], n_bytes: int) -> tuple[float, float]:
    """Processor seconds for the longest text, and the power of the length that they grow with from an eighth of it."""
    seconds = []
    for halvings in range(N_HALVINGS, -1, -1):
        text, start = write(n_bytes >> halvings), time.process_time()
        tokenizer.encode(text, add_special_tokens=False)
        seconds.append(time.process_time() - start)
    return seconds[-1], math.log2(seconds[-1] / seconds[0]) / N_HALVINGS


if __name__ == "__main__":
    sys.exit(main())
