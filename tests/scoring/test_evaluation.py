"""What is reported of a model, against the same figures by transformers alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime
from runtime.model.model import Model
from runtime.scoring.wikitext import detokenize, join_lines, split_pages
from tests.conftest import shared_data
from tests.support import oracle

TEXTS = [
    "Once upon a time there was a king, and the king had a daughter who loved the king",
    "The fox ran after the hare, and the hare ran after the fox's",
    'She looked at the old man and said, "Unfathomable',
    "Once upon a time",
]


def _write(path: Path, examples: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(example) for example in examples) + "\n", encoding="utf-8")
    return path


def test_lambada_is_transformers(demo_fp32: Model, tmp_path: Path) -> None:
    path = _write(tmp_path / "lambada.jsonl", [{"text": text} for text in TEXTS])
    report = runtime.evaluate("lambada", path, model=demo_fp32)
    logprobs, greedy, last = [], [], []
    for text in TEXTS:
        context, word = text.rsplit(" ", 1)
        ids, of_ids, is_greedy = oracle.harness(context, f" {word}")
        logprobs.append(float(of_ids.sum()))
        greedy.append(is_greedy)
        before = oracle.demo_tokenizer().encode(text)[:-1]
        last.append(int(oracle.logprobs(oracle.demo(), before)[-1].argmax()) == ids[-1])
    predicted = [runtime.perform("last_word", text.rsplit(" ", 1)[0], model=demo_fp32).text for text in TEXTS]
    right = [word == text.rsplit(" ", 1)[1].strip('"') for word, text in zip(predicted, TEXTS, strict=True)]
    assert report == {
        "task": "lambada",
        "file": "lambada.jsonl",
        "limit": None,
        "n": 4,
        "n_truncated": 0,
        "accuracy": sum(greedy) / 4,
        "accuracy_stop_words": sum(right) / 4,
        "accuracy_last_token": sum(last) / 4,
        "perplexity": pytest.approx(math.exp(-sum(logprobs) / 4), rel=1e-3),
    }
    assert 0 < report["accuracy"] < 1  # "time" at least
    assert 0 < report["accuracy_stop_words"] < 1
    assert json.loads(json.dumps(report)) == report


def test_lambada_cuts_what_is_too_long(demo_fp32: Model, tmp_path: Path) -> None:
    path = _write(tmp_path / "long.jsonl", [{"text": "a fox " * 400 + "ran"}, {"text": "a fox ran"}, {"text": "word"}])
    report = runtime.evaluate("lambada", path, model=demo_fp32)
    assert (report["n"], report["n_truncated"]) == (3, 1)


def test_choices_are_transformers(demo_fp32: Model, tmp_path: Path) -> None:
    examples: list[dict[str, Any]] = [
        {"context": "The fox saw the _ and ran away from it.", "options": ["hare", "king"], "answer": 0},
        {"context": "The fox saw the _ and ran away from it.", "options": ["hare", "king"], "answer": "king"},
        {"context": "Once upon a", "options": ["king", "time"], "answer": 1},
    ]
    full, partial = [], []
    for example in examples:
        before, blank, after = example["context"].partition("_")
        before = before if blank else f"{before} "
        answer = (
            example["options"].index(example["answer"]) if isinstance(example["answer"], str) else example["answer"]
        )
        scores = [oracle.harness(before, option + after)[1].sum() for option in example["options"]]
        full.append(int(np.argmax(scores)) == answer)
        if after:
            scores = [oracle.harness(before + option, after)[1].sum() for option in example["options"]]
            partial.append(int(np.argmax(scores)) == answer)
    report = runtime.evaluate("choose", _write(tmp_path / "choose.jsonl", examples), model=demo_fp32)
    assert report == {
        "task": "choose",
        "file": "choose.jsonl",
        "limit": None,
        "n": 3,
        "accuracy_full": pytest.approx(sum(full) / 3),
        "n_partial": 2,
        "accuracy_partial": pytest.approx(0.5),
    }
    assert sum(partial) == 1  # the same sentence, either answer
    only_ends = runtime.evaluate("choose", _write(tmp_path / "ends.jsonl", examples[2:]), model=demo_fp32)
    assert (only_ends["accuracy_full"], only_ends["n_partial"], only_ends["accuracy_partial"]) == (1, 0, None)


def test_perplexity_of_a_file(demo_fp32: Model, tmp_path: Path) -> None:
    """One window, so every protocol scores what transformers does in one pass."""
    text = "The fox ran.\r\nThe hare sat, and the king slept.\n"
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    report = runtime.evaluate("perplexity", path, model=demo_fp32)
    ids = oracle.demo_tokenizer().encode(text)
    without, _ = oracle.score(oracle.demo(), ids[:1], ids[1:])
    begun, _ = oracle.score(oracle.demo(), [0], ids)
    assert report["strided"] == {
        "512": pytest.approx(math.exp(-without.mean()), rel=1e-3),
        "256": pytest.approx(math.exp(-without.mean()), rel=1e-3),
    }
    rolling = report["rolling"]
    n_words = len(text.split()) + 1
    assert (rolling["n_tokens"], rolling["n_words"], rolling["n_bytes"]) == (len(ids), n_words, len(text.encode()))
    assert rolling["token_perplexity"] == pytest.approx(math.exp(-begun.mean()), rel=1e-3)
    assert rolling["word_perplexity"] == pytest.approx(math.exp(-begun.sum() / n_words), rel=1e-3)
    assert rolling["bits_per_byte"] == pytest.approx(-begun.sum() / len(text.encode()) / math.log(2), rel=1e-3)


def test_wikitext_has_its_own_protocol(demo_fp32: Model, tmp_path: Path) -> None:
    text = " = Fox = \n \n The fox , it ran . \n = Hare = \n \n The hare 's ears @-@ long . \n"
    path = tmp_path / "wiki"
    path.write_text(text, encoding="utf-8")
    report = runtime.evaluate("wikitext", path, model=demo_fp32)
    ids = oracle.demo_tokenizer().encode(join_lines(text))
    logprobs, _ = oracle.score(oracle.demo(), ids[:1], ids[1:])
    assert report["strided"]["512"] == pytest.approx(math.exp(-logprobs.mean()), rel=1e-3)
    pages = split_pages(text)
    of_pages = [
        oracle.score(oracle.demo(), [0], oracle.demo_tokenizer().encode(detokenize(page)))[0].sum() for page in pages
    ]
    assert len(pages) == 2
    assert report["rolling"]["n_bytes"] == sum(len(page.encode()) for page in pages)
    assert report["rolling"]["byte_perplexity"] == pytest.approx(
        math.exp(-sum(of_pages) / report["rolling"]["n_bytes"]), rel=1e-3
    )


def test_limit_and_progress(demo_fp32: Model, tmp_path: Path) -> None:
    path = _write(tmp_path / "x.jsonl", [{"text": text} for text in TEXTS])
    seen: list[tuple[int, int]] = []
    report = runtime.evaluate("lambada", path, model=demo_fp32, limit=2, progress=lambda *at: seen.append(at))
    assert (report["n"], report["limit"]) == (2, 2)
    assert seen == [(1, 2), (2, 2)]
    assert runtime.evaluate("lambada", path, model=demo_fp32, limit=9)["n"] == 4


@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        ("lambada", "", "holds no examples"),
        ("lambada", '{"text": "a b"}\nnonsense', "line 2: "),
        ("lambada", '{"texts": "a b"}', "line 1: 'text' is missing"),
        ("lambada", '"a b"', 'line 1: "a b" is no JSON object'),
        ("choose", "# a title", "line 1: no JSON .* an example a line is expected"),
        ("lambada", '{"text": 5}', "line 1: text is 5"),
        ("lambada", '{"text": " "}', "line 1: text is ' '"),
        ("lambada", '"text"', "line 1: "),
        ("choose", '{"context": "a _", "options": ["b"], "answer": 0}', "line 1: .*two or more"),
        ("choose", '{"context": "a _", "options": ["b", "c"], "answer": 2}', "line 1: answer 2 is none of"),
        ("choose", '{"context": "a _", "options": ["b", "c"], "answer": "d"}', "line 1: answer 'd' is none of"),
        ("choose", '{"context": "a _", "options": ["b", "c"]}', "line 1: 'answer' is missing"),
        ("perplexity", "", "two are needed"),
        ("hellaswag", "", "no evaluation 'hellaswag'; there are lambada, choose, perplexity, wikitext"),
    ],
)
def test_wrong_files(demo_fp32: Model, tmp_path: Path, task: str, content: str, message: str) -> None:
    path = tmp_path / "file"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        runtime.evaluate(task, path, model=demo_fp32)


def test_wrong_arguments(demo_fp32: Model, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        runtime.evaluate("lambada", tmp_path / "nowhere", model=demo_fp32)
    path = _write(tmp_path / "x.jsonl", [{"text": "a b"}])
    for limit, error in ((0, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match=f"limit is {limit}"):
            runtime.evaluate("lambada", path, model=demo_fp32, limit=limit)  # type: ignore[arg-type]


def test_published_data_end_to_end(demo_int8: Model) -> None:
    lambada = shared_data("lambada") / "lambada_test.jsonl"
    report = runtime.evaluate("lambada", lambada, model=demo_int8, limit=8)
    assert (report["n"], report["n_truncated"]) == (8, 0)
    assert 1 < report["perplexity"] < math.inf
    wikitext = shared_data("wikitext2") / "wiki.test.raw"
    report = runtime.evaluate("wikitext", wikitext, model=demo_int8, limit=12)
    assert 1 < report["strided"]["256"] <= report["strided"]["512"] < 8192
    assert report["rolling"]["n_bytes"] < len(
        "".join(wikitext.read_text(encoding="utf-8").splitlines(True)[:12]).encode()
    )
