"""Surprisal of tokens and words, beside a plain loop over transformers' own probabilities."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2LMHeadModel

import runtime
from runtime.model.model import Model
from runtime.scoring.surprisal import Alternative
from runtime.scoring.words import vocabulary
from tests.conftest import DEMO
from tests.support import oracle
from tests.support.checkpoints import Floats, build_model, open_checkpoint, torch_logits, write_checkpoint
from tests.support.vocabularies import KINDS

STORY = (DEMO / "evaluation.txt").read_text(encoding="utf-8")
TEXTS = [
    "The old king slept in his bed.",
    "Once upon a time there was a little mouse, who isn't here any more.",
    "¿Dónde está el niño? 😀 said the ñandú",
    " A  space\nand a line.\n",
    "The",
    "unfathomableness",
]
# Bits: what fp32 sums over 8,192 tokens in another order differ by.
CLOSE = 2e-4


# Bytes that are white space, and the mark of a space, in a byte-fallback vocabulary.
SPACES = ["▁", "<0x20>", *(f"<0x{byte:02X}>" for byte in (*range(9, 14), *range(28, 32)))]


def _distributions(model: GPT2LMHeadModel, ids: list[int], stride: int) -> Floats:
    """log2 of the probabilities [len(ids), n_vocab] after each id, each in the first window that reaches it."""
    size = model.config.n_positions
    rows: list[Any] = []
    begin = 0
    while len(rows) < len(ids):
        end = min(begin + size, len(ids))
        first = max(0, end - size)
        found = torch.from_numpy(torch_logits(model, ids[first:end])).double().log_softmax(-1) / math.log(2)
        rows += found[len(rows) - first :]
        begin += stride
    return torch.stack(rows).numpy()


def _check_tokens(
    found: runtime.Surprisal, lead: list[int], ids: list[int], bits: Floats, *, top: int = 0, close: float = CLOSE
) -> None:
    assert [token.id for token in found.tokens] == ids
    for at, token in enumerate(found.tokens):
        row = at + len(lead) - 1
        if row < 0:
            assert (token.surprisal, token.rank, token.entropy, token.top) == (None, None, None, ())
            continue
        assert token.surprisal == pytest.approx(-bits[row, token.id], abs=close)
        assert token.entropy == pytest.approx(-(np.exp2(bits[row]) * bits[row]).sum(), abs=close)
        # Tokens that are as likely, up to rounding, may stand before or after.
        least = 1 + (bits[row] > bits[row, token.id] + close).sum()
        most = 1 + (bits[row] > bits[row, token.id] - close).sum() - 1
        assert token.rank is not None
        assert least <= token.rank <= max(least, most)
        assert [one.surprisal for one in token.top] == pytest.approx(np.sort(-bits[row])[:top].tolist(), abs=close)
        assert [one.surprisal for one in token.top] == pytest.approx(
            [-bits[row, one.id] for one in token.top], abs=close
        )


@pytest.mark.parametrize("bos", [True, False])
def test_tokens_are_those_of_transformers(demo_fp32: Model, bos: bool) -> None:
    found = runtime.surprisal(TEXTS, model=demo_fp32, top=3, bos=bos)
    for text, one in zip(TEXTS, found, strict=True):
        ids = oracle.demo_tokenizer().encode(text)
        lead = [oracle.demo_tokenizer().bos_token_id] if bos else []
        assert one.text == text
        _check_tokens(one, lead, ids, _distributions(oracle.demo(), lead + ids, 256), top=3)
        assert one.total == pytest.approx(sum(token.surprisal or 0 for token in one.tokens))


def test_tokens_say_where_they_are(demo_fp32: Model) -> None:
    one = runtime.surprisal("¿Sí? ran", model=demo_fp32, top=1)
    assert [(token.text, token.span) for token in one.tokens] == [
        ("¿", (0, 1)), ("¿", (0, 1)), ("S", (1, 2)), ("í", (2, 3)), ("í", (2, 3)), ("?", (3, 4)), (" ran", (4, 8)),
    ]  # fmt: skip
    assert [(word.text, word.span, word.tokens) for word in one.words] == [
        ("¿Sí?", (0, 4), (0, 6)),
        ("ran", (5, 8), (6, 7)),
    ]
    for token in one.tokens:
        (likeliest,) = token.top
        assert isinstance(likeliest, Alternative)
        shown = demo_fp32.tokenizer.decode([likeliest.id], skip_special_tokens=False)
        assert likeliest.text == shown
    assert repr(one).startswith("<Surprisal: 2 words, 7 tokens, ")


def _beginning_ids() -> list[int]:
    """Ids of the demo that begin with white space, or end a text: by transformers' own decoder."""
    tokenizer = oracle.demo_tokenizer()
    texts = {id_: tokenizer.decode([id_], clean_up_tokenization_spaces=False) for id_ in range(len(tokenizer))}
    return [id_ for id_, text in texts.items() if text[:1].isspace() or id_ == tokenizer.eos_token_id]


@pytest.mark.parametrize("bos", [True, False])
def test_words_are_those_of_a_plain_loop(demo_fp32: Model, bos: bool) -> None:
    """P(word) = P(tokens) P(the next token begins a word | word) / P(the first token begins a word)."""
    beginning = _beginning_ids()
    for correction in (True, False):
        found = runtime.surprisal(TEXTS[:2], model=demo_fp32, bos=bos, word_correction=correction)
        for text, one in zip(TEXTS[:2], found, strict=True):
            words = text.split()
            assert [word.text for word in one.words] == words
            lead = [oracle.demo_tokenizer().bos_token_id] if bos else []
            ids = list(lead)
            for at, (word, given_word) in enumerate(zip(one.words, words, strict=True)):
                begin = len(ids)
                ids += oracle.demo_tokenizer().encode(f" {given_word}" if at else given_word)
                if begin == 0:
                    assert word.surprisal is None
                    continue
                rows = _distributions(oracle.demo(), ids, 256)
                bits = -sum(rows[place - 1, ids[place]] for place in range(begin, len(ids)))
                if correction:
                    bits -= np.log2(np.exp2(rows[-1, beginning]).sum())
                    bits += np.log2(np.exp2(rows[begin - 1, beginning]).sum()) if at else 0
                assert word.surprisal == pytest.approx(bits, abs=CLOSE * (len(ids) - begin + 2))


def test_full_stops_go_on_without_a_space(demo_fp32: Model) -> None:
    """Where no space stands between two words, nothing is corrected."""
    words = ["The", "king", "slept", "."]
    plain = runtime.surprisal("The king slept.", model=demo_fp32, words=words, word_correction=False)
    whole = runtime.surprisal("The king slept.", model=demo_fp32)
    found = runtime.surprisal("The king slept.", model=demo_fp32, words=words)
    assert [word.text for word in found.words] == words
    assert found.tokens == whole.tokens == plain.tokens
    assert found.words[2].surprisal != plain.words[2].surprisal  # the space before it
    parts = [word.surprisal for word in found.words]
    assert None not in parts
    assert parts[2] + parts[3] == pytest.approx(whole.words[2].surprisal)  # type: ignore[operator]
    assert parts[:2] == [word.surprisal for word in whole.words[:2]]


@settings(max_examples=15, deadline=None)
@given(st.text("abé the .ñ\n😀", min_size=1, max_size=40))
def test_words_and_tokens_of_any_text_agree(demo_fp32: Model, text: str) -> None:
    """The corrections cancel but for the end of the last word, and no probability is above 1."""
    one = runtime.surprisal(text, model=demo_fp32)
    plain = runtime.surprisal(text, model=demo_fp32, word_correction=False)
    assert [word.text for word in one.words] == text.split()
    n_in_words = one.words[-1].tokens[1] if one.words else 0
    of_tokens = math.fsum(token.surprisal or 0.0 for token in one.tokens[:n_in_words])
    assert math.fsum(word.surprisal or 0.0 for word in plain.words) == pytest.approx(of_tokens)
    of_words = math.fsum(word.surprisal or 0.0 for word in one.words)
    assert of_words >= of_tokens - CLOSE
    if one.words and n_in_words == len(one.tokens):
        # What comes after the text, by the model itself: a word's end, or not.
        ids = [oracle.demo_tokenizer().bos_token_id, *(token.id for token in one.tokens)]
        row = _distributions(oracle.demo(), ids, 256)[-1]
        end = -np.log2(np.exp2(row[_beginning_ids()]).sum())
        assert of_words == pytest.approx(of_tokens + end, abs=1e-2)
    assert all(word.surprisal is not None and word.surprisal > -CLOSE for word in one.words)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, GPT2LMHeadModel]:
    """96 positions; its tokens are bytes."""
    folder = tmp_path_factory.mktemp("surprisal") / "tiny"
    write_checkpoint(folder)
    return Model(build_model(folder), threads=1), open_checkpoint(folder)


@pytest.mark.parametrize("stride", [None, 96, 7])
@pytest.mark.parametrize("n", [1, 94, 95, 96, 97, 300])
def test_texts_of_any_length(tiny: tuple[Model, GPT2LMHeadModel], n: int, stride: int | None) -> None:
    model, expected = tiny
    text = STORY.encode("ascii", "ignore").decode()[:n]
    ids = model.tokenizer.encode(text).ids
    one = runtime.surprisal(text, model=model, stride=stride, top=2)
    bits = _distributions(expected, [256, *ids], stride or 48)
    _check_tokens(one, [256], ids, bits, top=2, close=1e-3)


def test_a_long_text_of_the_demo_in_overlapping_windows(demo_fp32: Model) -> None:
    text = STORY[:5000]
    ids = oracle.demo_tokenizer().encode(text)
    assert len(ids) > 1100
    one = runtime.surprisal(text, model=demo_fp32)
    _check_tokens(one, [0], ids, _distributions(oracle.demo(), [0, *ids], 256))


@pytest.mark.parametrize("name", ["demo_fp32", "demo_int8", "demo_reference"])
def test_texts_together_are_as_alone(name: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(name)
    texts = [*TEXTS, STORY[:2400], *STORY[:500].split(".")[:4]]
    texts = [text for text in texts if text]
    found = runtime.surprisal(texts, model=model, top=2)
    assert found == [runtime.surprisal(text, model=model, top=2) for text in texts]
    assert found == runtime.surprisal(tuple(texts), model=model, top=2)


def test_int8_is_near_fp32(demo_int8: Model, demo_fp32: Model) -> None:
    int8 = runtime.surprisal(STORY[:3000], model=demo_int8)
    fp32 = runtime.surprisal(STORY[:3000], model=demo_fp32)
    pairs = [(one.surprisal, other.surprisal) for one, other in zip(int8.words, fp32.words, strict=True)]
    assert 0 < np.mean([abs((one or 0) - (other or 0)) for one, other in pairs]) < 0.3


@pytest.mark.parametrize("kind", ["metaspace", "word pieces", "byte-fallback", "word endings", "words"])
def test_words_of_other_vocabularies(kind: str, tmp_path: Path) -> None:
    """The tokens that begin a word are those with the space's mark, or without that of a continuation."""
    tokenizer = KINDS[kind]()
    write_checkpoint(tmp_path / "tiny", bos_token_id=1, eos_token_id=1, vocab_size=300)
    tokenizer.save(str(tmp_path / "tiny" / "tokenizer.json"))
    expected = open_checkpoint(tmp_path / "tiny")
    text = "e2e4 e7e5 g1f3" if kind == "words" else "the cat ate"
    vocab = tokenizer.get_vocab()
    beginning = {
        "metaspace": [id_ for token, id_ in vocab.items() if token.startswith("▁")],
        "byte-fallback": [id_ for token, id_ in vocab.items() if token in SPACES],
        "word pieces": [id_ for token, id_ in vocab.items() if not token.startswith(("##", "["))],
    }.get(kind)  # fmt: skip
    with Model(build_model(tmp_path / "tiny"), threads=1) as model:
        one = runtime.surprisal(text, model=model)
        ids = [token.id for token in one.tokens]
        assert ids == tokenizer.encode(text, add_special_tokens=False).ids
        assert [word.text for word in one.words] == text.split()
        bits = _distributions(expected, [1, *ids], 48)
        for at, word in enumerate(one.words):
            begin, end = word.tokens
            assert end > begin
            surprisal = -sum(bits[place, ids[place]] for place in range(begin, end))
            if beginning is not None:
                surprisal -= np.log2(np.exp2(bits[end, [*beginning, 1]]).sum())
                surprisal += np.log2(np.exp2(bits[begin, [*beginning, 1]]).sum()) if at else 0
            assert word.surprisal == pytest.approx(surprisal, abs=1e-3)


def test_word_lists_of_several_texts(demo_fp32: Model) -> None:
    texts = ["The king slept.", "A fox ran"]
    lists = [["The king", "slept", "."], ["A", "fox", "ran"]]
    found = runtime.surprisal(texts, model=demo_fp32, words=lists)
    assert [[word.text for word in one.words] for one in found] == lists
    assert found[1] == runtime.surprisal(texts[1], model=demo_fp32)
    assert found[0] == runtime.surprisal(texts[0], model=demo_fp32, words=lists[0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"text": ""}, ValueError, "the text '' has no tokens"),
        ({"text": ["a", ""]}, ValueError, "the text '' has no tokens"),
        ({"text": []}, ValueError, "text is empty; at least one text or token id"),
        ({"text": 5}, TypeError, r"text is 5; a text \(str\) or a list of token ids"),
        ({"text": "\ud800"}, ValueError, "lone surrogate"),
        (
            {"text": "a fox", "words": ["a", "dog"]},
            ValueError,
            "word 2 of the list is 'dog', but .*'fox' at character 2",
        ),
        ({"text": "a fox", "words": "a fox"}, TypeError, "words is 'a fox'; a list of words"),
        ({"text": ["a fox"], "words": ["a", "fox"]}, TypeError, "a list of words for each text"),
        ({"text": ["a", "b"], "words": [["a"]]}, ValueError, "2 texts and 1 lists of words"),
        ({"text": "don't", "words": ["do", "n't"]}, ValueError, "the token 'don' is part of two words"),
        ({"text": "a", "top": -1}, ValueError, "top is -1"),
        ({"text": "a", "top": 8193}, ValueError, "top is 8193; the model has 8192"),
        ({"text": "a", "top": 1.5}, TypeError, "top is 1.5"),
        ({"text": "a", "bos": 1}, TypeError, "bos is 1; True or False"),
        ({"text": "a", "word_correction": "yes"}, TypeError, "word_correction is 'yes'; True or False"),
        ({"text": "a", "stride": 0}, ValueError, "stride is 0; it must be from 1 to n_positions, 512"),
        ({"text": "a", "model": "nowhere"}, FileNotFoundError, "nowhere"),
    ],
)
def test_wrong_arguments(demo_fp32: Model, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        runtime.surprisal(**{"model": demo_fp32} | arguments)


def test_a_model_without_a_beginning_of_text(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "tiny")
    path = build_model(tmp_path / "tiny") / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"bos_token_id": None}), encoding="utf-8")
    (path.parent / "generation_config.json").unlink()
    with Model(path.parent, threads=1, verify="off") as model:
        with pytest.raises(ValueError, match=r"no beginning-of-text token .*bos=False"):
            runtime.surprisal("a fox", model=model)
        one = runtime.surprisal("a fox", model=model, bos=False)
        assert one.tokens[0].surprisal is None
        assert one.words[0].surprisal is None
        assert one.words[1].surprisal is not None


def test_a_vocabulary_is_read_once(demo_fp32: Model) -> None:
    assert vocabulary(demo_fp32) is vocabulary(demo_fp32)
