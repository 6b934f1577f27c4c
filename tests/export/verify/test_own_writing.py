"""Vocabularies that cannot write our texts: what is measured and recorded is the model's own writing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

import runtime
from export.verify import golden, own_writing
from runtime.diagnostics.check import check_folder
from runtime.model.integrity import GOLDEN
from runtime.scoring.scoring import score_ids
from tests.support.building import error_line, run_here
from tests.support.checkpoints import open_checkpoint, torch_greedy, write_checkpoint
from tests.support.vocabularies import KINDS, chess_moves, proteins

ENGLISH = "the old man sat down, and looked at the sea."


def unknown_words() -> Tokenizer:
    """Words, with a token for unknown ones."""
    words = ["[UNK]", "one", "two", "three"]
    tokenizer = Tokenizer(models.WordLevel({word: id_ for id_, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def unigrams() -> Tokenizer:
    """Pieces with probabilities, whose unknown token has an id only."""
    pieces = [("<unk>", 0.0), *((letter, -2.0) for letter in "abc")]
    tokenizer = Tokenizer(models.Unigram(pieces, 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "text", "share"),
    [
        (KINDS["byte-level"](), f"{ENGLISH} ñ 日 🙂", 1.0),
        (KINDS["byte-fallback"](), f"{ENGLISH} ñ 日 🙂", 1.0),
        (KINDS["word pieces"](), ENGLISH, 1.0),
        (chess_moves(), ENGLISH, 0.0),
        (chess_moves(), "e2e4 e7e5", 1.0),
        (proteins(), "MALEGA\nKLM\n", 1.0),
        (proteins(), "MALEga", 4 / 6),
        (unknown_words(), "one four two", 6 / 10),
        (unigrams(), "abc xyz", 3 / 6),
        (unigrams(), " \n", 0.0),
    ],
)
def test_the_share_of_a_text_that_a_vocabulary_can_write(tokenizer: Tokenizer, text: str, share: float) -> None:
    assert own_writing.written_share(tokenizer, text) == pytest.approx(share)


def checkpoint(folder: Path, tokenizer: Tokenizer, **config: object) -> Path:
    write_checkpoint(
        folder, **{"vocab_size": tokenizer.get_vocab_size(), "bos_token_id": 0, "eos_token_id": 0, **config}
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("make", [chess_moves, proteins, unknown_words], ids=lambda make: make.__name__)
@pytest.mark.parametrize("reference", [["--no-reference"], []], ids=["fused", "optimum"])
def test_a_model_of_another_vocabulary_is_measured_on_what_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: object, reference: list[str]
) -> None:
    assert callable(make)
    folder, built = checkpoint(tmp_path / "other", make()), tmp_path / "built"
    assert run_here(monkeypatch, folder, *reference, "--output", built, "--precision", "fp32") == 0
    quality = json.loads((built / "quality.json").read_text(encoding="utf-8"))
    assert quality["text"] == "the model's own writing"
    assert quality["n_tokens"] >= own_writing.N_TOKENS - 1
    assert abs(quality["loss_percent"]) < 0.01
    assert quality["top1_agreement"] == 1
    assert "tokens of `the model's own writing`" in (built / "README.md").read_text(encoding="utf-8")
    assert check_folder(built).passed
    oracle = open_checkpoint(folder)
    records = json.loads((built / GOLDEN).read_text(encoding="utf-8"))["records"]
    assert len(records) == len(golden.PROMPTS)
    assert len({tuple(record["prompt_ids"]) for record in records}) > 1
    for record in records:
        assert record["ids"] == torch_greedy(oracle, record["prompt_ids"], record["ids"])


def test_what_is_measured_on_is_as_likely_as_the_model_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples of its own distribution: the mean log-probability is the negative of the mean entropy, about."""
    folder, built = checkpoint(tmp_path / "proteins", proteins()), tmp_path / "built"
    assert run_here(monkeypatch, folder, "--no-reference", "--output", built, "--precision", "fp32") == 0
    ids = own_writing.write_text(built)
    with runtime.load(built) as model:
        measured = json.loads((built / "quality.json").read_text(encoding="utf-8"))["perplexity"]
        assert score_ids(model, ids).perplexity == pytest.approx(measured, rel=1e-4)


def test_a_text_of_the_users_that_the_vocabulary_cannot_write_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint(tmp_path / "words", unknown_words())
    text = tmp_path / "english.txt"
    text.write_text(f"{ENGLISH} " * 300, encoding="utf-8")
    assert run_here(monkeypatch, folder, "--eval-text", text, "--output", tmp_path / "built") == 1
    assert f"has tokens for 0% of {text}, and 90% are needed" in error_line(capsys.readouterr().err)
    text.write_text("one two three " * 1000, encoding="utf-8")
    arguments = [folder, "--eval-text", text, "--no-reference", "--output", tmp_path / "built"]
    assert run_here(monkeypatch, *arguments) == 0
    assert json.loads((tmp_path / "built" / "quality.json").read_text(encoding="utf-8"))["text"] == "english.txt"


def test_a_text_that_the_tokenizer_refuses_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint(tmp_path / "chess", chess_moves())
    text = tmp_path / "moves.txt"
    text.write_text("e2e4 e7e5 resigns " * 1000, encoding="utf-8")
    assert run_here(monkeypatch, folder, "--eval-text", text, "--output", tmp_path / "built") == 1
    assert "no token for 'resigns', and none for unknown words" in error_line(capsys.readouterr().err)


def test_a_word_that_the_vocabulary_does_not_have_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, built = checkpoint(tmp_path / "chess", chess_moves()), tmp_path / "built"
    arguments = [folder, "--no-reference", "--verify", "none", "--precision", "fp32", "--output", built]
    assert run_here(monkeypatch, *arguments) == 0
    with runtime.load(built) as model:
        assert runtime.complete("e2e4 e7e5", model=model, max_new_tokens=4)[0].n_prompt_tokens == 2
        for call in (runtime.generate, runtime.score_text, runtime.score):
            with pytest.raises(ValueError, match="no token for 'resigns'"):
                call("e2e4 resigns", model=model)  # type: ignore[operator]


def test_a_prompt_of_which_nothing_is_left_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, built = checkpoint(tmp_path / "proteins", proteins()), tmp_path / "built"
    arguments = [folder, "--no-reference", "--verify", "none", "--precision", "fp32", "--output", built]
    assert run_here(monkeypatch, *arguments) == 0
    with runtime.load(built) as model:
        assert len(runtime.generate("MALE", model=model, max_new_tokens=4)) >= 1
        with pytest.raises(ValueError, match="has no token for anything in the prompt 'hello'"):
            runtime.generate("hello", model=model)
        with pytest.raises(ValueError, match="the continuation 'hello' has no token"):
            runtime.score("hello", context="MALE", model=model)
