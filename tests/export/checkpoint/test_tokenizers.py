"""Tokenizers of checkpoints: GPT-2's two older files become the tokenizer that transformers makes of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, GPT2TokenizerFast, PreTrainedTokenizerFast

from export.checkpoint import tokenizer as tokenizer_file
from runtime import generate
from runtime.model.model import Model
from tests.conftest import DEMO, shared_data
from tests.support.checkpoints import build_model, change_config, greedy, write_checkpoint

TEXTS = [
    "",
    "Once upon a time there was a little mouse.",
    "¿Qué tal? El niño comió una manzana; ¡qué rica! 1.234,5 €",
    "👩‍👩‍👧‍👦 🇪🇸 e\u0301 ﬁ 𝔊 中文 русский",
    "  two  spaces\n\n\ttabs \r\n and   the end   ",
    "I'll say we've, they'D  don't",
    "<|endoftext|>a text<|endoftext|> <|endoftext|>",
    "<pad> [USER] hi<|im_end|>\n",
]


def write_older_files(folder: Path, **others: Any) -> Path:
    """vocab.json and merges.txt of the demo's tokenizer; `others`: JSON files by name."""
    folder.mkdir()
    model = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    for name, value in others.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


def assert_same(ours: Tokenizer, theirs: PreTrainedTokenizerFast, text: str) -> None:
    ids = ours.encode(text).ids
    assert ids == theirs(text)["input_ids"]
    assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids, clean_up_tokenization_spaces=False)


def token(content: str, **flags: bool) -> dict[str, Any]:
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False} | flags


SETTINGS: dict[str, dict[str, Any]] = {
    "nothing more": {},
    "roles": {"special_tokens_map": {"bos_token": "<|endoftext|>", "pad_token": token("<pad>", lstrip=True)}},
    "prefix space": {"tokenizer_config": {"add_prefix_space": True, "tokenizer_class": "GPT2Tokenizer"}},
    "added tokens": {
        "added_tokens": {"<|im_end|>": 8193, "[USER]": 8192},
        "special_tokens_map": {"eos_token": "<|im_end|>", "additional_special_tokens": ["[USER]"]},
    },
    "added and plain": {"added_tokens": {"[USER]": 8192, "<pad>": 8193}, "special_tokens_map": {"pad_token": "<pad>"}},
    "decoder": {
        "tokenizer_config": {
            "added_tokens_decoder": {
                "0": token("<|endoftext|>", special=True),
                "8192": token("<pad>", special=True, rstrip=True),
                "8193": token("[USER]"),
            },
            "pad_token": "<pad>",
        }
    },
    "another beginning and end": {
        "special_tokens_map": {"bos_token": "<s>", "eos_token": token("</s>", rstrip=True), "unk_token": "<unk>"}
    },
    "no roles": {"special_tokens_map": dict.fromkeys(("bos_token", "eos_token", "unk_token"))},
    "the older map over the settings": {
        "special_tokens_map": {"pad_token": "<pad>", "additional_special_tokens": ["[USER]"]},
        "tokenizer_config": {"pad_token": "<other>", "additional_special_tokens": ["<|im_end|>"]},
    },
    "settings that describe the tokens, over the older map": {
        "special_tokens_map": {"pad_token": "<pad>"},
        "tokenizer_config": {"pad_token": "[USER]", "added_tokens_decoder": {"8192": token("[USER]")}},
    },
    "a beginning before every text": {"tokenizer_config": {"add_bos_token": True}},
    "another beginning before every text": {
        "tokenizer_config": {"add_bos_token": True, "bos_token": "<s>", "tokenizer_class": "GPT2Tokenizer"}
    },
}


@pytest.mark.parametrize("others", SETTINGS.values(), ids=SETTINGS)
def test_older_files_give_the_ids_of_transformers(tmp_path: Path, others: dict[str, Any]) -> None:
    folder = write_older_files(tmp_path / "older", **others)
    ours, theirs = tokenizer_file.read(folder), GPT2TokenizerFast.from_pretrained(folder)
    for text in TEXTS:
        assert_same(ours, theirs, text)
    special = {token.content for token in ours.get_added_tokens_decoder().values() if token.special}
    assert special == set(theirs.all_special_tokens)


MERGES: dict[str, Callable[[str], str]] = {
    "without a heading": lambda merges: merges.split("\n", 1)[1],
    "without an end": lambda merges: merges.rstrip("\n"),
    "with the line ends of Windows": lambda merges: merges.replace("\n", "\r\n"),
    "some of them twice": lambda merges: merges + "\n".join(merges.split("\n")[1:9]) + "\n",
}


@pytest.mark.parametrize("edit", MERGES.values(), ids=MERGES)
def test_merges_are_read_as_transformers_reads_them(tmp_path: Path, edit: Callable[[str], str]) -> None:
    folder = write_older_files(tmp_path / "older")
    path = folder / "merges.txt"
    path.write_bytes(edit(path.read_text(encoding="utf-8")).encode())
    ours, theirs = tokenizer_file.read(folder), GPT2TokenizerFast.from_pretrained(folder)
    for text in [*TEXTS, "the he in er an  t  the"]:
        assert_same(ours, theirs, text)


IN_JSON: dict[str, dict[str, Any]] = {
    "nothing more": {},
    "a role for a token that is there": {"tokenizer_config": {"eos_token": "[USER]"}},
    "a role for a new token": {"tokenizer_config": {"pad_token": "<pad>", "tokenizer_class": "GPT2Tokenizer"}},
    "a class without roles": {"tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast"}},
    "the older map": {"special_tokens_map": {"sep_token": token("<|im_end|>", lstrip=True)}},
    "space": {"tokenizer_config": {"add_prefix_space": True}},
    "a beginning that the file does not have": {"tokenizer_config": {"add_bos_token": True}},
    "tokens in the settings": {"tokenizer_config": {"added_tokens_decoder": {"8193": token("<pad>", special=True)}}},
}


@pytest.mark.parametrize("has_beginning", [False, True])
@pytest.mark.parametrize("others", IN_JSON.values(), ids=IN_JSON)
def test_a_tokenizer_json_gives_the_ids_of_transformers(
    tmp_path: Path, others: dict[str, Any], has_beginning: bool
) -> None:
    folder = tmp_path / "json"
    write_older_files(folder, config={"model_type": "gpt2", "vocab_size": 9000}, **others)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    tokenizer.add_tokens(["[USER]"])
    if has_beginning:
        tokenizer.post_processor = processors.TemplateProcessing("<|endoftext|> $A", None, [("<|endoftext|>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    ours, theirs = tokenizer_file.read(folder), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert_same(ours, theirs, text)
    special = {token.content for token in ours.get_added_tokens_decoder().values() if token.special}
    assert special >= set(theirs.all_special_tokens)
    target = tmp_path / "written"
    target.mkdir()
    tokenizer_file.write(folder, target)
    same = (target / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert same or others
    assert Tokenizer.from_file(str(target / "tokenizer.json")).to_str() == ours.to_str()


def test_a_token_beyond_the_vocabulary_of_the_model_is_left_out(tmp_path: Path) -> None:
    folder = write_older_files(
        tmp_path / "older", config={"vocab_size": 8192}, special_tokens_map={"pad_token": "<pad>"}
    )
    assert tokenizer_file.read(folder).token_to_id("<pad>") is None


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, PreTrainedTokenizerFast]:
    folder = write_older_files(tmp_path_factory.mktemp("tokenizers") / "older")
    return tokenizer_file.read(folder), GPT2TokenizerFast.from_pretrained(folder)


@given(text=st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_has_the_ids_of_transformers(both: tuple[Tokenizer, PreTrainedTokenizerFast], text: str) -> None:
    assert_same(*both, text)


def test_openais_own_files(tmp_path: Path) -> None:
    data = shared_data("tokenizer")
    shutil.copyfile(data / "encoder.json", tmp_path / "vocab.json")
    shutil.copyfile(data / "vocab.bpe", tmp_path / "merges.txt")
    ours, published = tokenizer_file.read(tmp_path), Tokenizer.from_file(str(data / "tokenizer.json"))
    for text in TEXTS:
        assert ours.encode(text).ids == published.encode(text).ids


def test_model_folder_has_the_tokenizer_made_from_the_older_files(tmp_path: Path) -> None:
    checkpoint = tmp_path / "older"
    write_older_files(checkpoint, tokenizer_config={"tokenizer_class": "GPT2Tokenizer"})
    write_checkpoint(checkpoint, vocab_size=8192, bos_token_id=0, eos_token_id=0)
    (checkpoint / "tokenizer.json").unlink()
    folder = build_model(checkpoint)
    theirs = GPT2TokenizerFast.from_pretrained(checkpoint)
    for text in TEXTS:
        assert_same(Tokenizer.from_file(str(folder / "tokenizer.json")), theirs, text)
        assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == theirs(text)["input_ids"]
    assert generate("Once upon", model=folder, max_new_tokens=3)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"added_tokens": {"[USER]": 8200}}, r"the added token '\[USER\]' cannot have id 8200: ids have gaps"),
        ({"tokenizer_config": {"tokenizer_class": "CLIPTokenizer"}}, r"tokenizer_class is 'CLIPTokenizer'; .* only"),
        ({"special_tokens_map": ["<pad>"]}, r"special_tokens_map.json is not a JSON object"),
        ({"vocab": {"a": "b"}}, r"vocab.json is not a tokenizer: "),
    ],
)
def test_older_files_that_make_no_tokenizer_are_refused(tmp_path: Path, others: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer_file.read(write_older_files(tmp_path / "older", **others))


def test_a_missing_tokenizer_and_one_beyond_the_vocabulary(tmp_path: Path) -> None:
    folder = write_older_files(tmp_path / "older", added_tokens={"<pad>": 8192})
    with pytest.raises(ValueError, match=r"vocab.json has token id 8192 \('<pad>'\), but config.json has vocab_size"):
        tokenizer_file.check(folder, 8192)
    (folder / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer.json is missing, and so are vocab.json and merges.txt"):
        tokenizer_file.check(folder, 8192)


def write_chinese_tokenizer(folder: Path) -> None:
    """As Chinese fine-tunes of GPT-2 carry: BERT's, with [CLS] and [SEP] around a text."""
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *"从前有一只小老鼠它住在山里。，",
        *"abcdefg",
        *(f"##{c}" for c in "abcdefg"),
    ]
    tokenizer = Tokenizer(models.WordPiece({word: id_ for id_, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.enable_truncation(8)
    tokenizer.save(str(folder / "tokenizer.json"))


def test_bert_tokenizer_of_a_chinese_model(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "chinese", vocab_size=40, tie_word_embeddings=False, bos_token_id=2, eos_token_id=3)
    write_chinese_tokenizer(tmp_path / "chinese")
    text = "从前有一只小老鼠，它住在山里。"
    with Model(build_model(tmp_path / "chinese")) as model:
        theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "chinese" / "tokenizer.json"))
        ids = theirs(text, truncation=False)["input_ids"]  # between [CLS] and [SEP], as the pipeline feeds it
        written = generate(text, model=model, max_new_tokens=10)
        n_until_end = [*greedy(model, ids, 10), 3].index(3)
        assert len(ids) == 17 and n_until_end > 3
        assert written.strip() == theirs.decode(greedy(model, ids, 10)[:n_until_end], skip_special_tokens=True).strip()


def test_chat_model_ends_at_its_own_token(tmp_path: Path) -> None:
    folder = tmp_path / "chat"
    write_checkpoint(folder, tie_word_embeddings=False)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    with Model(build_model(folder)) as model:
        prompt = model.tokenizer.encode("One day").ids
        ids = greedy(model, prompt, 8)
        text = model.tokenizer.decode(ids[: ids.index(ids[5])])
        assert text
    change_config(folder, eos_token_id=[256, ids[5]])
    (folder / "generation_config.json").unlink()
    assert generate("One day", model=build_model(folder), max_new_tokens=8) == text
