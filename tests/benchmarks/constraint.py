"""What a form costs, beside the model's passes: `python -m tests.benchmarks.constraint`.

GPT-2 124M with random weights, for its vocabulary of 50,257: the time from logits to an id, sampled, with a form and
without, and what comes before the first token. The model is built once under build/bench.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import Any

from runtime import load
from runtime.generation.constrained.grammar import vocabulary
from runtime.generation.row import Place, Row
from runtime.model.model import Model
from runtime.options import Options
from runtime.tokenization.encode import encode
from tests.benchmarks.contenders import OURS, prepare

N_NEW = 128
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
FORMS: dict[str, dict[str, Any]] = {
    "none": {},
    "`choices`: 100 of up to 12 words": {"choices": [" ".join(["word"] * (n % 12 + 1)) + f" {n}" for n in range(100)]},
    "`regex`: a sentence": {"regex": "[A-Z][a-z ]{40,}[.]"},
    "`regex`: a date and a time": {"regex": "[0-9]{4}-[0-9]{2}-[0-9]{2} ([01][0-9]|2[0-3]):[0-5][0-9]"},
    "`json_schema`: a name and an age": {"json_schema": PERSON},
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="continuations of each form (default: 5)")
    given = parser.parse_args()
    with load(prepare(OURS, "gpt2"), threads=1) as model:
        start = time.perf_counter()
        vocabulary(model)
        print(f"the vocabulary, once a model: {time.perf_counter() - start:.2f} s\n")
        print("| form | before the first token, ms | again, ms | a token, ms | slowest of 100 tokens, ms |")
        print("|---|---|---|---|---|")
        for name, form in FORMS.items():
            (first, steps), *others = [measure(model, form, seed) for seed in range(given.rounds)]
            tokens = sorted([*steps, *(step for _, more in others for step in more)])
            again = statistics.median(one for one, _ in others)
            shown = [first, again, statistics.median(tokens), tokens[-1 - len(tokens) // 100]]
            print(f"| {name} | {' | '.join(f'{1000 * seconds:.1f}' for seconds in shown)} |", flush=True)


def measure(model: Model, form: dict[str, Any], seed: int) -> tuple[float, list[float]]:
    """Seconds until a row is made, and of each of its steps without the pass; the first of a form compiles it."""
    ids, options = encode(model, "Once upon a time"), Options(temperature=1.0, seed=seed, max_new_tokens=N_NEW, **form)
    start = time.perf_counter()
    row = Row(model, ids, options, Place())
    return time.perf_counter() - start, list(time_steps(model, row))


def time_steps(model: Model, row: Row) -> Iterator[float]:
    """Seconds of each step of a row, to its end."""
    cache = model.new_cache(row.prompt.capacity)
    logits = cache.extend(row.prompt.window)[-1]
    while row.finish_reason is None:
        start = time.perf_counter()
        row.accept(logits)
        yield time.perf_counter() - start
        if row.finish_reason is None:
            logits = cache.step(row.ids[-1:])[0]


if __name__ == "__main__":
    main()
