"""`gpt2-edge classify` and `gpt2-edge embed`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import runtime
from runtime.model.model import Model
from tests.support.checkpoints import build_model
from tests.support.classifiers import LABELS, write_classifier, write_tagger
from tests.support.command_line import Command

TEXTS = ["The old king slept.", "A fox isn't\there."]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "texts"
    write_classifier(folder)
    return build_model(folder)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "tokens"
    write_tagger(folder)
    return build_model(folder)


def test_a_table_of_labels(command: Command, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text(TEXTS[1], encoding="utf-8")
    status, out, err = command("classify", TEXTS[0], str(tmp_path / "one.txt"), "--model", str(texts), "--verbose")
    found = runtime.classify(TEXTS, model=texts)
    shown = [TEXTS[0], "A fox isn't here."]
    assert status == 0
    assert out.splitlines() == [f"{one.label}  {one.score:.4f}  {text}" for one, text in zip(found, shown, strict=True)]
    assert err.startswith("2 texts in ")
    assert command("classify", "--model", str(texts), stdin=TEXTS[0])[1] == out.splitlines()[0] + "\n"


def test_tsv_of_lines(command: Command, texts: Path) -> None:
    status, out, _ = command("classify", "-", "--lines", "--tsv", "--model", str(texts), stdin="\n\n".join(TEXTS))
    head, *rows = [line.split("\t") for line in out.splitlines()]
    assert (status, head) == (0, ["source", "label", "score", *LABELS])
    found = runtime.classify(TEXTS, model=texts)
    expected = [
        [f"-:{number}", one.label, *(f"{score:.6f}" for score in (one.score, *one.scores.values()))]
        for number, one in zip((1, 3), found, strict=True)
    ]
    assert rows == expected


def test_json_of_texts(command: Command, texts: Path) -> None:
    status, out, _ = command("classify", *TEXTS, "--jsonl", "--model", str(texts))
    assert status == 0
    for line, text, one in zip(out.splitlines(), TEXTS, runtime.classify(TEXTS, model=texts), strict=True):
        value = json.loads(line)
        assert (value["text"], value["label"]) == (text, one.label)
        assert {each["label"]: each["score"] for each in value["scores"]} == one.scores


def test_tokens_and_their_spans(command: Command, tokens: Path) -> None:
    found = runtime.classify(TEXTS[1], model=tokens)
    with Model(tokens):
        status, out, _ = command("classify", TEXTS[1], "--tsv", "--model", str(tokens))
    head, *rows = [line.split("\t") for line in out.splitlines()]
    assert (status, head) == (0, ["source", "index", "begin", "end", "token", "id", "label", "score"])
    assert [(row[6], row[7]) for row in rows] == [(one.label, f"{one.score:.6f}") for one in found.tokens]
    assert "\\t" in [row[4] for row in rows]
    value = json.loads(command("classify", TEXTS[1], "--jsonl", "--model", str(tokens))[1])
    assert [span["label"] for span in value["spans"]] == [span.label for span in found.spans]
    out = command("classify", TEXTS[1], "--model", str(tokens))[1]
    assert out.splitlines()[0] == "--- A fox isn't here."
    assert len(out.splitlines()) == 1 + len(found.spans)


def test_embeddings_as_json_and_as_an_array(command: Command, demo_fp32: Model, tmp_path: Path) -> None:
    expected = runtime.embed(TEXTS, model=demo_fp32, pooling="last")
    status, out, _ = command("embed", *TEXTS, "--jsonl", "--pooling", "last")
    found = np.array([json.loads(line)["embedding"] for line in out.splitlines()], np.float32)
    assert status == 0
    assert np.allclose(found, expected, atol=1e-5)
    status, out, err = command("embed", *TEXTS, "--npy", str(tmp_path / "found"), "--pooling", "last")
    assert (status, out, err) == (0, "", "")
    array = np.load(tmp_path / "found")
    assert array.dtype == np.float32
    assert np.allclose(array, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["classify", "reviews.txt"],
            "no file reviews.txt; a text that looks like a file's name goes to",
        ),
        (["classify", "a/b"], "no file a/b"),
        (["classify", "-", "--lines"], "there is no text: every line is blank"),
        (["classify", "word"], "is a language model, not a classifier"),
        (["embed", "", "--jsonl"], "text[0] is '', which has no tokens"),
    ],
)
def test_mistakes_are_one_line(command: Command, arguments: list[str], message: str) -> None:
    status, out, err = command(*arguments)
    assert (status, out) == (1, "")
    assert err.startswith("gpt2-edge: error: ")
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_classifier_generates_nothing(command: Command, texts: Path) -> None:
    status, _, err = command("generate", "Once", "--model", str(texts))
    assert status == 1
    assert "is a classifier, and writes, scores and embeds no text" in err


def test_embed_needs_a_format(command: Command) -> None:
    with pytest.raises(SystemExit, match="2"):
        command("embed", "a")
