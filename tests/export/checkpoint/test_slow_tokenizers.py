"""Tokenizers that exist only as slow classes keep them: converted by transformers, with the ids of the slow class."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import BertTokenizer

import runtime
from export import build
from export.checkpoint import hub, tokenizer_conversion
from export.checkpoint.checkpoint import open_checkpoint
from tests.support.building import QUICK, error_line, run_here
from tests.support.checkpoints import write_checkpoint
from tests.support.optional import optional

pytestmark = pytest.mark.filterwarnings("ignore")
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"从前有一只小老鼠它住在山里。，",
    *"abcdefg",
    "##a",
    "##b",
    "##c",
]
TEXTS = ["从前有一只小老鼠，它住在山里。", "abc 从前 ABC", "山\n里", "x"]


def write_words(folder: Path, **settings: Any) -> Path:
    """A Chinese GPT-2: BERT's vocab.txt and no other file of a tokenizer."""
    write_checkpoint(folder, vocab_size=48, bos_token_id=2, eos_token_id=3)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join([*WORDS, ""]), encoding="utf-8")
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "settings",
    [{}, {"tokenizer_class": "BertTokenizer"}, {"tokenizer_class": "BertTokenizer", "do_lower_case": False}],
    ids=str,
)
def test_a_vocab_txt_gives_the_ids_of_bert(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = write_words(tmp_path / "chinese", **settings)
    build.main([str(folder), "--precision", "fp32", *QUICK, "--output", str(tmp_path / "model")])
    slow = BertTokenizer.from_pretrained(folder)
    ours = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    for text in TEXTS:
        assert ours.encode(text).ids == slow(text)["input_ids"]
    assert not (folder / "tokenizer.json").exists()
    assert runtime.generate("从前", model=tmp_path / "model", max_new_tokens=3) is not None


def test_the_class_may_be_named_in_the_config(tmp_path: Path) -> None:
    folder = write_words(tmp_path / "chinese")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"tokenizer_class": "BertTokenizer"}), encoding="utf-8")
    assert (open_checkpoint(str(folder), tmp_path).tokenizer_folder / "tokenizer.json").is_file()


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.model"])
def test_a_sentencepiece_model(tmp_path: Path, name: str) -> None:
    sentencepiece = optional("sentencepiece")
    optional("google.protobuf")
    from transformers import T5Tokenizer

    folder = tmp_path / "pieces"
    write_checkpoint(folder, vocab_size=400)
    (folder / "tokenizer.json").unlink()
    text = Path(__file__).with_name("test_slow_tokenizers.py")
    train = sentencepiece.SentencePieceTrainer.train
    about = {"unk_id": 2, "bos_id": -1, "eos_id": 1, "pad_id": 0, "hard_vocab_limit": False, "minloglevel": 2}
    train(input=str(text), model_prefix=str(tmp_path / "spiece"), vocab_size=200, **about)
    (tmp_path / "spiece.model").rename(folder / "spiece.model")
    slow = T5Tokenizer.from_pretrained(folder, extra_ids=0, legacy=False)
    (folder / "spiece.model").rename(folder / name)
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "legacy": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    if name != "spiece.model":
        with pytest.raises(ValueError, match=r"T5Tokenizer reads spiece\.model, .* tokenizer\.model"):
            open_checkpoint(str(folder), tmp_path)
        return
    build.main([str(folder), "--precision", "fp32", *QUICK, "--output", str(tmp_path / "model")])
    ours = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    for sample in ("A tokenizer that is converted", "def test_a_sentencepiece_model", "  two  spaces"):
        assert ours.encode(sample).ids == slow(sample)["input_ids"]


def test_another_folders_tokenizer_is_converted_too(tmp_path: Path) -> None:
    write_words(tmp_path / "chinese")
    write_checkpoint(tmp_path / "other", vocab_size=48, bos_token_id=2, eos_token_id=3)
    (tmp_path / "other" / "tokenizer.json").unlink()
    (tmp_path / "work").mkdir()
    opened = open_checkpoint(str(tmp_path / "other"), tmp_path / "work", tokenizer=tmp_path / "chinese")
    assert Tokenizer.from_file(str(opened.tokenizer_folder / "tokenizer.json")).token_to_id("鼠") == WORDS.index("鼠")


@pytest.mark.parametrize("missing", ["transformers", "sentencepiece"])
def test_what_converts_it_is_named_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    folder = write_words(tmp_path / "chinese")
    file = "vocab.txt"
    if missing == "sentencepiece":
        file = "spiece.model"
        (folder / "vocab.txt").rename(folder / file)
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == missing else find(name, *rest))
    assert run_here(monkeypatch, folder, *QUICK, "--output", tmp_path / "model") == 1
    line = error_line(capsys.readouterr().err)
    assert f"{folder / file} is converted by {missing}, which is not installed: pip install -e '.[export]'" in line


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenizer_class": "CPMAntTokenizer"}, "tokenizer_class 'CPMAntTokenizer' has no fast form"),
        ({"tokenizer_class": "NoSuchTokenizer"}, "tokenizer_class 'NoSuchTokenizer' has no fast form"),
    ],
)
def test_a_class_without_a_fast_form_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer_conversion.convert(write_words(tmp_path / "chinese", **settings), tmp_path / "new")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    folder = write_words(tmp_path / "chinese")
    (folder / "vocab.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match=r"vocab\.txt: transformers does not convert this tokenizer"):
        tokenizer_conversion.convert(folder, tmp_path / "new")


def test_of_a_hub_repository_these_files_are_fetched() -> None:
    assert hub._tokenizer_files({"config.json", "vocab.txt"}) == ("vocab.txt",)
    assert hub._tokenizer_files({"config.json", "spiece.model"}) == ("spiece.model",)
    assert hub._tokenizer_files({"vocab.txt", "tokenizer.json"}) == ("tokenizer.json",)
