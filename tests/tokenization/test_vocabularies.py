"""Vocabularies of every kind through the whole of the runtime, against transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast, pipeline

import runtime
from runtime.model.model import Model
from runtime.prefixes.prefix import make
from runtime.tokenization.encode import encode, encode_prompt, encode_whole
from tests.support.checkpoints import build_model, torch_logits, write_checkpoint
from tests.support.vocabularies import KINDS

calm = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
PROMPTS = {"words": "e2e4 e7e5", "residues": "MALEGA\nKLM"}
PROMPT = "the cat sat"


@dataclasses.dataclass(frozen=True)
class Case:
    """A model folder, and its checkpoint and tokenizer in transformers."""

    kind: str
    model: Model
    oracle: GPT2LMHeadModel
    tokenizer: PreTrainedTokenizerFast

    @property
    def prompt(self) -> str:
        """A text that the vocabulary can write."""
        return PROMPTS.get(self.kind.split(",", maxsplit=1)[0], PROMPT)


def put_around(tokenizer: Tokenizer, kind: str) -> None:
    """What a post-processor puts around a text."""
    begin, end = {"word pieces": ("[CLS]", "[SEP]"), "byte-fallback": ("<s>", "</s>")}.get(
        kind, ("<|user|>", "<|end|>")
    )
    ids = [(name, tokenizer.token_to_id(name)) for name in (begin, end)]
    single = f"{begin} $A {end}" if kind == "word pieces" else f"{begin} $A"
    tokenizer.post_processor = processors.TemplateProcessing(single, None, ids)


CASES = [*KINDS, "byte-level, begun", "byte-fallback, begun", "word pieces, begun"]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    kind, _, begun = request.param.partition(", ")
    folder, tokenizer = tmp_path_factory.mktemp("vocabularies") / "checkpoint", KINDS[kind]()
    if begun:
        put_around(tokenizer, kind)
    n = max(tokenizer.get_vocab().values()) + 1
    oracle = write_checkpoint(folder, vocab_size=n + 3, bos_token_id=1, eos_token_id=n)  # beyond the tokenizer
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8")
    with Model(build_model(folder)) as model:
        yield Case(request.param, model, oracle, PreTrainedTokenizerFast.from_pretrained(folder))


def test_a_prompt_is_what_transformers_pipeline_feeds(case: Case) -> None:
    writer = pipeline("text-generation", model=case.oracle, tokenizer=case.tokenizer, device="cpu")
    expected = writer(case.prompt, do_sample=False, max_new_tokens=12, return_tensors=True)[0]["generated_token_ids"]
    n = len(case.tokenizer(case.prompt)["input_ids"])
    done = runtime.complete(case.prompt, model=case.model, max_new_tokens=12)[0]
    assert done.n_prompt_tokens == n
    assert done.ids == [id_ for id_ in expected[n:] if id_ not in case.model.config.eos_token_ids]
    if "begun" in case.kind:
        assert encode_prompt(case.model, case.prompt)[0] != encode(case.model, case.prompt)[0]


def test_the_text_is_transformers_decode(case: Case) -> None:
    options: dict[str, Any] = {"max_new_tokens": 40, "min_new_tokens": 40, "temperature": 1.5, "seed": 1}
    done = runtime.complete(case.prompt, model=case.model, **options)[0]
    ids, added = encode_prompt(case.model, case.prompt), case.tokenizer.added_tokens_decoder
    assert "".join(runtime.stream(case.prompt, model=case.model, **options)) == done.text
    if not any(id_ in added and not added[id_].special for id_ in done.ids):  # of which their fast decoders make bytes
        before, whole = (case.tokenizer.decode(some, skip_special_tokens=True) for some in (ids, ids + done.ids))
        assert whole == before + done.text


TEXTS = st.text("ab <|>/", max_size=30) | st.lists(
    st.sampled_from(["<|user|>", "<|end|>", "<s>", "</s>", "[CLS]", "[SEP]", " ", "\n", "a", "Word", "[niño]", "the"])
).map("".join)


@calm
@given(text=TEXTS)
def test_written_special_tokens_are_found_as_transformers_finds_them(case: Case, text: str) -> None:
    if case.kind == "words":
        return
    assert encode_whole(case.model, text, special_tokens=True) == case.tokenizer(text)["input_ids"]
    expected = case.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert encode(case.model, text, special_tokens=True) == expected
    expected = case.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert encode(case.model, text) == expected


def test_a_score_is_of_what_is_written_after_the_context(case: Case) -> None:
    """The context has the ids of a prompt, with what stands around it; the continuation follows."""
    ids, head = encode_prompt(case.model, case.prompt), encode(case.model, case.prompt)
    more = f" {case.prompt}"
    own = encode(case.model, case.prompt + more)[len(head) :]
    score = runtime.score(more, context=case.prompt, model=case.model)
    logprobs = torch.log_softmax(torch.from_numpy(torch_logits(case.oracle, ids + own)).double(), -1).numpy()
    expected = logprobs[np.arange(len(ids) - 1, len(ids) + len(own) - 1), own]
    assert score.ids == own
    assert score.logprobs == pytest.approx(expected.tolist(), abs=2e-3)


def test_a_whole_text_is_scored_as_transformers_reads_it(case: Case) -> None:
    ids = case.tokenizer(case.prompt)["input_ids"]
    score = runtime.score_text(case.prompt, model=case.model)
    logprobs = torch.log_softmax(torch.from_numpy(torch_logits(case.oracle, ids)).double(), -1).numpy()
    assert score.ids == ids[1:]
    assert score.logprobs == pytest.approx(logprobs[np.arange(len(ids) - 1), ids[1:]].tolist(), abs=2e-3)


def test_a_prefix_changes_nothing(case: Case) -> None:
    prefix = make(case.model, case.prompt)
    whole = f"{case.prompt} {case.prompt}"
    plain, sooner = (
        runtime.complete(whole, model=case.model, max_new_tokens=5, prefix=one)[0] for one in (None, prefix)
    )
    assert plain.ids == sooner.ids


# over the server -----------------------------------------------------------------------------------------------------

PARTS = "bytes:"


def values_of(tokens: list[str]) -> bytes:
    return b"".join(
        bytes.fromhex(token.removeprefix(PARTS).replace("\\x", "")) if token.startswith(PARTS) else token.encode()
        for token in tokens
    )


def test_tokens_join_to_the_text_and_each_alternative_has_an_entry(case: Case) -> None:
    serving = pytest.importorskip("tests.support.serving")
    n_top = min(20, case.model.config.vocab_size - 2)
    ids = encode_prompt(case.model, case.prompt)
    with serving.running(case.model) as server:
        for prompt in (case.prompt, ids, f"{case.prompt} "):
            fields = {
                "prompt": prompt,
                "max_tokens": 30,
                "temperature": 1.5,
                "seed": 2,
                "logprobs": n_top,
                "echo": True,
            }
            (choice,) = server.post(**fields).json["choices"]
            told = choice["logprobs"]
            if "\ufffd" not in choice["text"]:
                joined = values_of(told["tokens"]).decode()
                # a token that shows nothing at the end is not shown, nor is a space that a tokenizer makes of none
                assert joined.strip() == choice["text"].strip()
            for token, offset in zip(told["tokens"], told["text_offset"], strict=True):
                in_an_invalid_run = "byte-fallback" in case.kind and "\ufffd" in choice["text"]
                if not token.startswith(PARTS) and not in_an_invalid_run:
                    assert choice["text"][offset:].startswith(token), (token, offset)
            tops = [top for top in told["top_logprobs"] if top is not None]
            assert {len(top) for top in tops} <= {n_top, n_top + 1}
            for token, top, logprob in zip(told["tokens"], told["top_logprobs"], told["token_logprobs"], strict=True):
                assert top is None or top[token] == logprob
