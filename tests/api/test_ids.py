"""Prompts and texts as token ids: the same results as of the text, and clear errors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime
from runtime.model.model import Model

TEXT = "Once upon a time there was a king"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")


def known(one: runtime.Completion) -> tuple[object, ...]:
    return one.text, one.ids, one.logprobs, one.tokens, one.n_prompt_tokens, one.finish_reason


def test_encode_and_decode(demo_int8: Model) -> None:
    ids = demo_int8.encode(TEXT)
    assert demo_int8.decode(ids) == demo_int8.decode(np.array(ids)) == TEXT
    assert demo_int8.encode("") == []
    end = demo_int8.encode("a<|endoftext|>", special_tokens=True)
    assert end[-1] == demo_int8.config.bos_token_id
    assert demo_int8.decode(end) == "a"
    assert demo_int8.decode(end, special_tokens=True) == "a<|endoftext|>"


@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_a_prompt_of_ids(demo_int8: Model, kind: Any) -> None:
    ids = kind(demo_int8.encode(TEXT))
    options: dict[str, Any] = {"model": demo_int8, "max_new_tokens": 8}
    assert runtime.generate(ids, **options) == runtime.generate(TEXT, **options)
    assert list(runtime.stream(ids, **options)) == list(runtime.stream(TEXT, **options))
    sampled = {**options, "temperature": 0.9, "seed": 3, "logprobs": 2}
    [one], [other] = runtime.complete(ids, **sampled), runtime.complete(TEXT, **sampled)
    assert known(one) == known(other)
    beams = {**options, "num_beams": 3}
    assert known(runtime.complete(ids, **beams)[0]) == known(runtime.complete(TEXT, **beams)[0])


def test_several_prompts_of_ids_and_texts(demo_int8: Model) -> None:
    texts = [TEXT, "The fox"]
    ids = [demo_int8.encode(text) for text in texts]
    options: dict[str, Any] = {"model": demo_int8, "max_new_tokens": 5}
    expected = list(map(known, runtime.complete(texts, **options)))
    assert list(map(known, runtime.complete(ids, **options))) == expected
    mixed: Any = [texts[0], ids[1]]
    assert list(map(known, runtime.complete(mixed, **options))) == expected
    assert list(runtime.stream_many(ids, **options)) == list(runtime.stream_many(texts, **options))


def test_scores_of_ids(demo_int8: Model) -> None:
    ids = demo_int8.encode(TEXT)
    whole = runtime.score_text(ids, model=demo_int8)
    assert whole == runtime.score_text(TEXT, model=demo_int8)
    assert whole.tokens == [demo_int8.decode([id_]) for id_ in ids[1:]]
    assert runtime.score_text([ids], model=demo_int8) == [whole]
    expected = runtime.score(" was a king", context="Once upon a time there", model=demo_int8)
    assert runtime.score(ids[-3:], context=ids[:-3], model=demo_int8) == expected
    assert runtime.score(" was a king", context=ids[:-3], model=demo_int8) == expected
    assert runtime.score([ids[-3:]], context="Once upon a time there", model=demo_int8) == [expected]
    assert runtime.score(ids, model=demo_int8) == runtime.score(TEXT, model=demo_int8)
    assert "".join(expected.tokens) == " was a king"


@pytest.mark.parametrize("text", [TEXT, "¿Niño? 😀 and 漢字", " a  b\n\nc "])
def test_surprisal_of_ids(demo_int8: Model, text: str) -> None:
    ids = demo_int8.encode(text)
    found = runtime.surprisal(ids, model=demo_int8)
    expected = runtime.surprisal(text, model=demo_int8)
    assert found.text == text
    assert [(token.id, token.surprisal) for token in found.tokens] == [
        (token.id, token.surprisal) for token in expected.tokens
    ]
    assert found.words == expected.words
    assert runtime.surprisal([ids], model=demo_int8, words=[text.split()])[0].words == expected.words


def test_spans_of_ids_are_those_of_the_text(demo_int8: Model) -> None:
    text = "¿Niño? 😀 and 漢字."
    found = runtime.surprisal(demo_int8.encode(text), model=demo_int8)
    expected = runtime.surprisal(text, model=demo_int8)
    assert [token.span for token in found.tokens] == [token.span for token in expected.tokens]


def test_a_prefix_of_ids(demo_int8: Model, tmp_path: Path) -> None:
    ids = demo_int8.encode("The old king had three sons." + " The end." * 99)
    prefix = runtime.prefix(ids, model=demo_int8)
    assert prefix.text is None
    assert prefix.n_kept >= 256
    prompt = [*ids, *demo_int8.encode(" One day")]
    options: dict[str, Any] = {"model": demo_int8, "max_new_tokens": 5}
    plain = runtime.generate(prompt, **options)
    assert runtime.generate(prompt, prefix=prefix, **options) == plain
    assert runtime.generate(demo_int8.decode(prompt), prefix=prefix, **options) == plain
    prefix.save(tmp_path / "prefix")
    loaded = runtime.load_prefix(tmp_path / "prefix", model=demo_int8)
    assert loaded.ids == prefix.ids
    assert loaded.text is None
    assert np.array_equal(loaded.keys_values, prefix.keys_values)
    assert repr(prefix).startswith("<Prefix of ids: ")
    with pytest.raises(ValueError, match=r"at index 0 the prefix has \d+ and the prompt has 5; give .* \[\*prefix.ids"):
        runtime.generate([5], prefix=prefix, **options)
    of_text = runtime.prefix("The old king", model=demo_int8)
    assert runtime.generate([*of_text.ids, 9], prefix=of_text, **options)


CALLS: dict[str, Any] = {
    "generate": lambda given, model: runtime.generate(given, model=model),
    "stream": lambda given, model: runtime.stream(given, model=model),
    "stream_many": lambda given, model: runtime.stream_many(given, model=model),
    "complete": lambda given, model: runtime.complete(given, model=model),
    "score": lambda given, model: runtime.score(given, model=model),
    "score_text": lambda given, model: runtime.score_text(given, model=model),
    "surprisal": lambda given, model: runtime.surprisal(given, model=model),
    "prefix": lambda given, model: runtime.prefix(given, model=model),
    "decode": lambda given, model: model.decode(given),
}
NAMES = {
    "generate": "prompt",
    "stream": "prompt",
    "stream_many": "prompts",
    "complete": "prompts",
    "score": "continuation",
    "decode": "ids",
}
ONE = ("generate", "stream", "prefix", "decode")


@pytest.mark.parametrize("call", CALLS)
def test_what_is_wrong_with_ids_is_said(demo_int8: Model, call: str) -> None:
    name = NAMES.get(call, "text")
    last = demo_int8.config.vocab_size - 1
    told = rf"^{name}\[1\] is {last + 1}; the ids of this model's vocabulary are 0 to {last}$"
    with pytest.raises(ValueError, match=told):
        CALLS[call]([5, last + 1], demo_int8)
    with pytest.raises(ValueError, match=rf"^{name}\[0\] is -1; the ids"):
        CALLS[call]([-1], demo_int8)
    with pytest.raises(TypeError, match=rf"^{name}\[1\] is 1.5; a token id is expected, a whole number$"):
        CALLS[call]([5, 1.5], demo_int8)
    with pytest.raises(TypeError, match=rf"^{name} is 5; "):
        CALLS[call](5, demo_int8)


@pytest.mark.parametrize("call", [name for name in CALLS if name not in ONE])
def test_several_of_which_one_is_wrong(demo_int8: Model, call: str) -> None:
    name = NAMES.get(call, "text")
    with pytest.raises(ValueError, match=rf"^{name}\[1\]\[0\] is 999999; the ids"):
        CALLS[call]([[5, 6], [999999]], demo_int8)
    with pytest.raises(ValueError, match=rf"^{name}\[1\] has no token ids; at least one"):
        CALLS[call]([[5, 6], []], demo_int8)


@pytest.mark.parametrize("call", ["generate", "prefix"])
def test_no_ids(demo_int8: Model, call: str) -> None:
    with pytest.raises(ValueError, match="has no token ids; at least one is expected"):
        CALLS[call]([], demo_int8)


def test_special_tokens_has_no_effect_on_ids(demo_int8: Model) -> None:
    with pytest.raises(runtime.OptionError, match="special_tokens=True is about what is written in a text"):
        runtime.complete([[5]], model=demo_int8, special_tokens=True)


# without a tokenizer --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nameless(demo_int8_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The demo without any file of a tokenizer, with checksums of what is left."""
    folder = tmp_path_factory.mktemp("nameless") / "model"
    shutil.copytree(demo_int8_folder, folder)
    for name in TOKENIZER_FILES:
        (folder / name).unlink(missing_ok=True)
    sums = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in sums if not line.rstrip("\n").endswith(TOKENIZER_FILES)]
    (folder / "SHA256SUMS").write_text("".join(kept), encoding="utf-8")
    with runtime.load(folder) as model:
        yield model


def test_a_model_without_a_tokenizer_works_in_ids(nameless: Model, demo_int8: Model) -> None:
    assert not nameless.has_tokenizer
    ids = demo_int8.encode(TEXT)
    for more in ({}, {"num_beams": 3}, {"temperature": 1.0, "seed": 1}):
        options: dict[str, Any] = {"max_new_tokens": 6, "logprobs": 1, **more}
        [found] = runtime.complete(ids, model=nameless, **options)
        [expected] = runtime.complete(ids, model=demo_int8, **options)
        assert (found.ids, found.logprobs) == (expected.ids, expected.logprobs)
        assert (found.text, found.tokens) == ("", [])
    assert runtime.score_text(ids, model=nameless).logprobs == runtime.score_text(TEXT, model=demo_int8).logprobs
    assert runtime.score(ids, model=nameless).logprobs == runtime.score(TEXT, model=demo_int8).logprobs
    measured = runtime.surprisal(ids, model=nameless, top=2)
    assert measured.total == runtime.surprisal(TEXT, model=demo_int8).total
    assert (measured.text, measured.words) == ("", [])
    assert runtime.prefix(ids, model=nameless).ids == tuple(ids)
    assert len(nameless.identity) == 64
    assert runtime.estimate(nameless.folder).tokenizer == 0
    assert runtime.complete("", model=nameless, max_new_tokens=1)[0].ids
    options = {"max_new_tokens": 3, "best_of": 2, "seed": 1}
    filled = [runtime.infill(ids, [5, 6], model=model, **options) for model in (nameless, demo_int8)]
    assert filled[0][0].completion.ids == filled[1][0].completion.ids
    assert filled[0][0].suffix.logprobs == filled[1][0].suffix.logprobs


@pytest.mark.parametrize(
    "call",
    [
        lambda model: runtime.generate([5], model=model),
        lambda model: runtime.stream([5], model=model),
        lambda model: runtime.stream_many([[5]], model=model),
        lambda model: runtime.complete("Once", model=model),
        lambda model: runtime.complete([5], model=model, stop="the"),
        lambda model: runtime.complete([5], model=model, stop="the", num_beams=2),
        lambda model: runtime.complete([5, 6], model=model, token_healing=True),
        lambda model: runtime.infill("Once", [5], model=model),
        lambda model: runtime.infill([5], " upon", model=model),
        lambda model: runtime.infill([5], [6], model=model, stop="the"),
        lambda model: runtime.score("Once", model=model),
        lambda model: runtime.score([5], context="Once", model=model),
        lambda model: runtime.score_text("Once upon", model=model),
        lambda model: runtime.surprisal("Once", model=model),
        lambda model: runtime.surprisal([5], model=model, words=["a"]),
        lambda model: runtime.prefix("Once", model=model),
        lambda model: runtime.perform("summarize", "Once", model=model),
        lambda model: model.encode("Once"),
        lambda model: model.decode([5]),
    ],
)
def test_without_a_tokenizer_texts_are_refused(nameless: Model, call: Any) -> None:
    with pytest.raises(runtime.NoTokenizerError, match="has no tokenizer"):
        call(nameless)


def test_a_folder_that_lost_its_tokenizer_is_incomplete(demo_int8_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(demo_int8_folder, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        runtime.load(tmp_path / "model")
    (tmp_path / "model" / "SHA256SUMS").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        runtime.load(tmp_path / "model")
