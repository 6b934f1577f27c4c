"""Prompt caching: replies are the same with it and without it, only the rest is computed, and memory is bounded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.model.kv_cache import KeysValues
from runtime.model.model import Model
from runtime.model.prefill import PREFILL_STEP
from runtime.prefixes.prefix import known
from tests.conftest import count_passes
from tests.support.prefixing import folders as folders
from tests.support.prefixing import letters
from tests.support.prefixing import tiny as tiny
from tests.support.serving import Running, running

LONG = letters(2 * PREFILL_STEP + 40)
few = settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def server(tiny: Model) -> Iterator[Running]:
    with running(tiny) as one:
        yield one


def block_bytes(model: Any) -> int:
    config = model.config
    item = 1 if model.cache == "int8" else 4
    return item * config.n_layer * 2 * config.n_head * config.head_dim * PREFILL_STEP


def ask(server: Running, prompt: str, **fields: Any) -> dict[str, Any]:
    reply = server.post(**{"prompt": prompt, "max_tokens": 4, "temperature": 0, **fields})
    assert reply.status == 200, reply.body
    whole: dict[str, Any] = reply.json
    return whole


def facts(reply: dict[str, Any]) -> list[dict[str, Any]]:
    """The choices, without the times."""
    for choice in reply["choices"]:
        del choice["gpt2_edge"]["prefill_seconds"], choice["gpt2_edge"]["decode_seconds"]
    choices: list[dict[str, Any]] = reply["choices"]
    return choices


def n_cached(reply: dict[str, Any]) -> int:
    n: int = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
    return n


def clear(server: Running) -> None:
    server.engine._scheduler._prompt_cache.clear()


def ask_without(server: Running, prompt: str, **fields: Any) -> dict[str, Any]:
    """The reply of a server whose cache has no room."""
    return ask_with(make_cache(server.engine.model, 0), server, prompt, **fields)


def ask_with(cache: Any, server: Running, prompt: str, **fields: Any) -> dict[str, Any]:
    """The reply with another cache in place of the server's own."""
    scheduler = server.engine._scheduler
    own = scheduler._prompt_cache
    scheduler._prompt_cache = cache
    try:
        return ask(server, prompt, **fields)
    finally:
        scheduler._prompt_cache = own


def make_cache(model: Any, n_blocks: int) -> Any:
    """A cache with room for so many blocks, and half of another."""
    from runtime.server.engine.prompt_cache import BlockStore, PromptCache

    return PromptCache(model, BlockStore(block_bytes(model) * n_blocks + block_bytes(model) // 2))


def metric(server: Running, name: str) -> float:
    found = re.search(rf"^{name}{{model=[^}}]*}} (\S+)$", server.request("GET", "/metrics").body.decode(), re.MULTILINE)
    assert found
    return float(found[1])


# as without ----------------------------------------------------------------------------------------------------------

STEP = PREFILL_STEP
# How much of a text a prompt begins with, and what follows.
PROMPTS = st.lists(
    st.tuples(
        st.sampled_from([0, 1]),
        st.sampled_from([0, 20, STEP - 1, STEP, STEP + 1, 2 * STEP, 2 * STEP + 60, 3 * STEP]),
        st.sampled_from([1, 2, 30, STEP - 30]) | st.integers(1, STEP - 30),
        st.integers(2, 9),
    ),
    min_size=2,
    max_size=6,
)


@pytest.fixture(scope="module")
def narrow(tiny: Model) -> Any:
    """Room for three blocks."""
    return make_cache(tiny, 3)


@few
@given(prompts=PROMPTS, temperature=st.sampled_from([0, 1]))
def test_replies_are_those_without_to_the_last_bit(
    server: Running, narrow: Any, prompts: list[tuple[int, int, int, int]], temperature: int
) -> None:
    """Log-probabilities are written with all their digits: equal numbers are equal bits."""
    for seed, n_shared, n_own, own in prompts:
        text = letters(3 * STEP, seed=seed)[:n_shared] + letters(n_own, seed=own)
        options = {"temperature": temperature, "seed": 3, "logprobs": 3}
        expected = facts(ask_without(server, text, **options))
        assert facts(ask(server, text, **options)) == expected
        assert facts(ask_with(narrow, server, text, **options)) == expected
        assert narrow.n_bytes <= 3 * block_bytes(server.engine.model)


def test_requests_together_are_as_alone(server: Running) -> None:
    prompts = [LONG[: PREFILL_STEP + 10 * at] + letters(17, seed=at) for at in range(12)] + [LONG] * 4
    expected = [facts(ask_without(server, prompt, max_tokens=20, logprobs=1)) for prompt in prompts]
    clear(server)
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda prompt: facts(ask(server, prompt, max_tokens=20, logprobs=1)), prompts)
        assert list(found) == expected


def test_long_texts_that_slide_are_those_without(server: Running) -> None:
    prompt = letters(3 * PREFILL_STEP + 5)
    options = {"max_tokens": 2 * PREFILL_STEP, "overflow": "slide", "pinned_tokens": PREFILL_STEP, "seed": 1}
    options |= {"min_new_tokens": 2 * PREFILL_STEP, "temperature": 1}
    expected = facts(ask_without(server, prompt, **options))
    assert expected[0]["gpt2_edge"]["n_slides"] > 0
    for _ in range(2):
        assert facts(ask(server, prompt, **options)) == expected


def test_a_plain_export_shares_too(demo_reference: Model) -> None:
    prompt: Any = [5] * (PREFILL_STEP + 9)
    with running(demo_reference) as server:
        expected = facts(ask_without(server, prompt, logprobs=2))
        for n in (0, PREFILL_STEP):
            found = ask(server, prompt, logprobs=2)
            assert n_cached(found) == n
            assert facts(found) == expected


# what is computed ---------------------------------------------------------------------------------------------------


def test_only_the_rest_is_computed(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    clear(server)
    passes = count_passes(monkeypatch, "extend")
    cases = [
        (LONG, [PREFILL_STEP, PREFILL_STEP, 40], 0),
        (LONG, [40], 2 * PREFILL_STEP),
        (LONG + "more", [44], 2 * PREFILL_STEP),
        (LONG[: PREFILL_STEP + 1] + letters(30, seed=9), [31], PREFILL_STEP),
        # At least one id is left to predict from.
        (LONG[: 2 * PREFILL_STEP], [PREFILL_STEP], PREFILL_STEP),
        (LONG[: PREFILL_STEP - 1], [PREFILL_STEP - 1], 0),
        ("b" + LONG, [PREFILL_STEP, PREFILL_STEP, 41], 0),
    ]
    for prompt, computed, cached in cases:
        passes.clear()
        reply = ask(server, prompt)
        assert (passes, n_cached(reply)) == (computed, cached)
        assert reply["usage"]["prompt_tokens"] == len(prompt)


def test_without_room_nothing_is_shared(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tiny, prompt_cache_bytes=0) as server:
        passes = count_passes(monkeypatch, "extend")
        for _ in range(2):
            assert n_cached(ask(server, LONG)) == 0
        assert passes == [PREFILL_STEP, PREFILL_STEP, 40] * 2
        assert server.engine._scheduler.n_prompt_cache_bytes == 0


def test_what_is_told_of_it(server: Running, tiny: Model) -> None:
    """The usage counts each prompt once, in a stream as well; the metrics count every continuation."""
    clear(server)
    ask(server, LONG)
    assert metric(server, "gpt2_edge_prompt_cache_bytes") == 2 * block_bytes(tiny)
    before = metric(server, "gpt2_edge_cached_prompt_tokens_total")
    reply = ask(server, LONG, n=2, temperature=1, seed=1)
    assert n_cached(reply) == 2 * PREFILL_STEP
    counted = metric(server, "gpt2_edge_cached_prompt_tokens_total") - before
    assert counted in (4 * PREFILL_STEP, 4 * PREFILL_STEP + 40)
    many: Any = [LONG, "a", LONG]
    assert n_cached(ask(server, many)) >= 4 * PREFILL_STEP
    streamed = server.post(prompt=LONG, max_tokens=2, stream=True, stream_options={"include_usage": True})
    last = json.loads(streamed.body.split(b"\n\n")[-3].removeprefix(b"data: "))
    assert n_cached(last) == 2 * PREFILL_STEP


# too little memory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["read", "find"])
def test_where_memory_is_short_all_is_computed(server: Running, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    from runtime.generation.batch import Batch
    from runtime.server.engine import prompt_cache

    expected = facts(ask_without(server, LONG))
    clear(server)
    if where == "find":
        ask(server, LONG)

    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch:
        if where == "read":
            patch.setattr(Batch, "read_row", fail)
        else:
            patch.setattr(prompt_cache.np, "concatenate", fail)
        reply = ask(server, LONG)
        assert n_cached(reply) == 0
        assert facts(reply) == expected
    assert server.engine._scheduler.n_prompt_cache_bytes == (
        0 if where == "read" else 2 * block_bytes(server.engine.model)
    )


def test_a_failed_pass_gives_the_memory_back(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.generation.batch import Batch

    ask(server, LONG)

    def fail(_: Batch) -> Any:
        monkeypatch.undo()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Batch, "advance", fail)
    assert server.post(prompt="a", max_tokens=3).status == 500
    assert server.engine._scheduler.n_prompt_cache_bytes == 0
    assert n_cached(ask(server, LONG)) == 0


# the cache alone -----------------------------------------------------------------------------------------------------


def small_cache(n_blocks: int) -> Any:
    """A cache of a model with one value for a key."""
    config = SimpleNamespace(n_layer=1, n_head=1, head_dim=1, n_embd=1)
    return make_cache(SimpleNamespace(config=config, cache="fp32"), n_blocks)


def values_of(ids: list[int]) -> KeysValues:
    """Keys and values [1, 2, 1, n, 1], each of which depends on all ids up to its own."""
    running_hash = np.zeros(len(ids), np.int64)
    value = 0
    for at, id_ in enumerate(ids):
        value = (value * 31 + id_ + 1) % 1_000_003
        running_hash[at] = value
    return np.stack([running_hash, -running_hash]).astype(np.float32)[None, :, None, :, None]


def keep(cache: Any, ids: list[int]) -> None:
    cache.keep(ids, lambda end: values_of(ids[:end]))


def blocks(*names: int) -> list[int]:
    """Ids of several blocks, each of one id."""
    return [name for name in names for _ in range(PREFILL_STEP)]


@settings(deadline=None, max_examples=100)
@given(
    n_blocks=st.integers(0, 6),
    prompts=st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=4), st.integers(0, 3)), max_size=14),
)
def test_what_is_found_is_what_was_computed(n_blocks: int, prompts: list[tuple[list[int], int]]) -> None:
    cache = small_cache(n_blocks)
    for names, n_more in prompts:
        ids = [*blocks(*names), *range(7, 7 + n_more)] or [1]
        found = cache.find(ids)
        values = known(found, ids)
        n = 0 if values is None else values.shape[3]
        assert n < len(ids)
        assert n == 0 or np.array_equal(values, values_of(ids[:n]))
        assert found is None or found.n_kept == n > 0
        keep(cache, ids)
        again = cache.find([*ids, 1])
        assert (again.n_kept if again else 0) == min(len(names), n_blocks) * PREFILL_STEP
        assert cache.n_bytes <= n_blocks * 2 * PREFILL_STEP * 4
        # No block is left without those before it.
        kept = cache._store.ids_of(cache)
        assert all(key[:-PREFILL_STEP] in kept for key in kept if len(key) > PREFILL_STEP)


def test_the_least_recently_used_goes_first() -> None:
    cache = small_cache(3)
    for name in (1, 2, 3):
        keep(cache, [*blocks(name), 9])
    assert cache.find([*blocks(1), 9])
    keep(cache, [*blocks(4), 9])
    assert [bool(cache.find([*blocks(name), 9])) for name in (1, 2, 3, 4)] == [True, False, True, True]


def test_of_one_prompt_the_end_goes_first() -> None:
    cache = small_cache(3)
    keep(cache, blocks(1, 2, 3))
    keep(cache, blocks(5))
    assert cache.find([*blocks(1, 2, 3), 9]).n_kept == 2 * PREFILL_STEP


def test_a_prompt_that_has_no_room_is_kept_in_part() -> None:
    cache = small_cache(2)
    keep(cache, blocks(1, 2, 3, 4))
    assert cache.find(blocks(1, 2, 3, 4)).n_kept == 2 * PREFILL_STEP


def test_models_share_the_memory_and_no_block() -> None:
    from runtime.server.engine.prompt_cache import BlockStore, PromptCache

    config = SimpleNamespace(n_layer=1, n_head=1, head_dim=1, n_embd=1)
    store = BlockStore(3 * 2 * PREFILL_STEP * 4)
    one = PromptCache(SimpleNamespace(config=config, cache="fp32"), store)  # type: ignore[arg-type]
    other = PromptCache(SimpleNamespace(config=config, cache="fp32"), store)  # type: ignore[arg-type]
    keep(one, blocks(1, 2))
    assert other.find([*blocks(1, 2), 9]) is None
    keep(other, blocks(1))
    assert [one.n_bytes, other.n_bytes] == [2 * 2 * PREFILL_STEP * 4, 2 * PREFILL_STEP * 4]
    keep(other, blocks(1, 3))
    # The end of what the first model used goes first.
    assert one.find([*blocks(1, 2), 9]).n_kept == PREFILL_STEP  # type: ignore[union-attr]
    assert other.find([*blocks(1, 3), 9]).n_kept == 2 * PREFILL_STEP  # type: ignore[union-attr]
    assert one.n_bytes + other.n_bytes <= store.max_bytes
