"""tokenizer.json, opened: what was saved with it, and ids against the model's vocabulary."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, processors

import runtime
from runtime.model.dynamic_kv_cache import GrowingCache
from runtime.model.kv_cache import Cache
from runtime.model.model import Model
from runtime.model.tokenizer import file
from runtime.model.tokenizer.file import read_tokenizer
from runtime.tokenization.encode import encode
from tests.conftest import DEMO
from tests.support.building import END
from tests.support.damaging import copy_aged, list_again
from tests.support.hostile import tiny_folder
from tests.support.vocabularies import byte_level

N_VOCAB = 257


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder whose tokenizer may be changed. Its ids are bytes, and the last ends a text."""
    return copy_aged(tiny_folder(), tmp_path)


def change(folder: Path, **changes: Any) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    list_again(folder)
    return path


def model_part(folder: Path) -> Any:
    return json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]


def added(*tokens: tuple[int, str]) -> list[dict[str, Any]]:
    """Added tokens after the folder's own."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return [{"id": id_, "content": content, **flags} for id_, content in ((256, END), *tokens)]


def test_what_is_opened_is_the_tokenizer() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer = read_tokenizer(DEMO / "tokenizer.json", 8192)
    assert tokenizer.to_str() == Tokenizer.from_file(str(DEMO / "tokenizer.json")).to_str()


def test_a_hostile_part_is_refused_unless_the_folder_is_trusted(folder: Path) -> None:
    path = change(folder, decoder={"type": "Strip", "content": " ", "start": 0, "stop": 9})
    cure = r"save it again with .*, or load a folder that you trust with verify='off'"
    message = rf"{path} is refused: decoder.stop is 9; a whole number from 0 to 0 is allowed; {cure}"
    with pytest.raises(ValueError, match=message):
        runtime.load(folder)
    with runtime.load(folder, verify="off") as model:
        assert len(encode(model, "abc")) == 3


def test_a_checkpoint_is_not_told_of_an_option_that_it_does_not_have(folder: Path) -> None:
    path = change(folder, decoder={"type": "Strip", "content": " ", "start": 0, "stop": 9})
    with pytest.raises(ValueError, match=r"decoder\.stop is 9") as error:
        read_tokenizer(path)
    assert "verify" not in str(error.value)


def test_truncation_and_padding_are_off(folder: Path) -> None:
    """As transformers has it for each call that does not ask for them."""
    tokenizer = byte_level()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(folder / "tokenizer.json"))
    opened = read_tokenizer(folder / "tokenizer.json")
    assert len(opened.encode("abcdef").ids) == 6


@pytest.mark.parametrize("verify", [None, "off"])
def test_dropout_is_off_and_told(folder: Path, verify: Any) -> None:
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"model": tokenizer["model"] | {"dropout": 0.5}}))
    with pytest.warns(UserWarning, match=r"tokenizer.json has a dropout of 0.5, which is for training: it is off"):
        opened = read_tokenizer(folder / "tokenizer.json", trusted=verify == "off")
    plain = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    text = "Once upon a time there was a king"
    assert {tuple(opened.encode(text).ids) for _ in range(20)} == {tuple(plain.encode(text).ids)}


def test_the_warning_is_at_the_line_that_loads(folder: Path) -> None:
    change(folder, added_tokens=[*added((257, "[PAD]"))])
    with pytest.warns(UserWarning) as caught:
        runtime.load(folder).close()
    assert {Path(warning.filename).name for warning in caught} == {Path(__file__).name}


def test_a_large_file_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"tokenizer\.json is larger than 1,000 bytes"):
        read_tokenizer(folder / "tokenizer.json")


# ids -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id_", [N_VOCAB, 2_000_000_000])
def test_an_id_of_the_vocabulary_beyond_the_model_is_refused(folder: Path, id_: int) -> None:
    part = model_part(folder)
    part["vocab"]["!"] = id_
    change(folder, model=part)
    message = rf"is not of this model: model.vocab gives '!' the id {id_:,}, and config.json's vocab_size is 257"
    with pytest.raises(ValueError, match=message):
        runtime.load(folder)


def test_an_id_of_the_vocabulary_beyond_the_model_is_never_fed(folder: Path) -> None:
    part = model_part(folder)
    part["vocab"]["!"] = 300
    change(folder, model=part)
    with runtime.load(folder, verify="off") as model:
        with pytest.raises(ValueError, match=r"the token '!' has id 300, and this model's vocabulary has 257 ids"):
            runtime.generate("Hi!", model=model)
        assert runtime.complete("Hi", model=model, max_new_tokens=2)


def test_ids_around_a_text_beyond_the_model_are_refused(folder: Path) -> None:
    written = json.loads(processors.TemplateProcessing("<s> $A", None, [("<s>", 257)]).__getstate__())
    change(folder, post_processor=written)
    with pytest.raises(ValueError, match=r"post_processor adds the id 257, and config\.json's vocab_size is 257"):
        runtime.load(folder)


def test_an_added_token_beyond_the_model_is_told_and_refused_in_a_text(folder: Path) -> None:
    """Fine-tunes add `[PAD]` without a row of its own in the embedding; transformers crashes at such an id."""
    change(folder, added_tokens=added((257, "[PAD]"), (258, "[X]")))
    message = r"2 added tokens, from '\[PAD\]' with id 257, are beyond config.json's vocab_size of 257"
    with pytest.warns(UserWarning, match=message):
        model = runtime.load(folder)
    with model:
        for call in (runtime.generate, runtime.score_text, encode):
            with pytest.raises(ValueError, match=r"the token '\[X\]' has id 258.*Leave it out of the text"):
                if call is encode:
                    call(model, "a [X]")
                else:
                    call("a [X]", model=model)
        assert runtime.complete("a", model=model, max_new_tokens=2)


def test_an_added_token_whose_id_is_not_the_files_is_told(folder: Path) -> None:
    path = change(folder, added_tokens=added((400, "[X]")))
    with pytest.warns(UserWarning, match=r"'\[X\]' has id 257, not 400 as the file says"):
        tokenizer = read_tokenizer(path)
    assert tokenizer.token_to_id("[X]") == 257


def extended(cache: Cache, id_: int) -> Any:
    return cache.extend([65, id_])


def stepped(cache: Cache, id_: int) -> Any:
    cache.extend([65])
    return cache.step([id_])


@pytest.mark.parametrize("call", [extended, stepped])
@pytest.mark.parametrize("id_", [-(2**63), -257, -1, 257, 2**31, 2**62, 2**64])
def test_no_id_outside_the_vocabulary_reaches_the_graph(demo_int8: Model, call: Any, id_: int) -> None:
    """Some kernels read zeros for one that is too large, and count from the end for a negative one."""
    n_vocab = demo_int8.config.vocab_size
    id_ = n_vocab if id_ == 257 else id_
    with pytest.raises(ValueError, match=rf"token id {id_} is outside the vocabulary of {n_vocab:,}"):
        call(demo_int8.new_cache(4), id_)


def test_nor_that_of_a_plain_export(demo_int8: Model) -> None:
    session: Any = SimpleNamespace(get_inputs=list)
    with pytest.raises(ValueError, match=r"token id -1 is outside the vocabulary of 8,192"):
        GrowingCache(session, demo_int8.config).extend([0, -1])
