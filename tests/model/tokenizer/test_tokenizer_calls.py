"""Calls into tokenizers: failures and Rust panics are ValueErrors on one line, and nothing calls it beside them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.decoders import DecodeStream

import runtime
from runtime.model.tokenizer import calls
from tests.support.vocabularies import byte_level, chess_moves


def panicking() -> Tokenizer:
    """Its decoder counts back from the end of a token that is shorter."""
    tokenizer = byte_level()
    tokenizer.decoder = decoders.Strip("a", 1, 1)
    return tokenizer


def raises_a_panic(tokenizer: Tokenizer, ids: list[int]) -> bool:
    try:
        tokenizer.decode(ids)
    except BaseException as error:
        return not isinstance(error, Exception) and calls.is_panic(error)
    return False


def test_a_panic_is_a_value_error() -> None:
    tokenizer = panicking()
    a = tokenizer.token_to_id("a")
    assert raises_a_panic(tokenizer, [a])
    with pytest.raises(
        ValueError, match=rf"^the tokenizer cannot decode the ids {a}: .*\(a panic of the tokenizers library\)$"
    ):
        calls.decode(tokenizer, [a])
    with pytest.raises(ValueError, match=rf"^the tokenizer cannot decode the ids {a}: "):
        calls.stream(tokenizer, DecodeStream(), a)


def test_what_ends_a_program_stays_what_it_is() -> None:
    for error in (KeyboardInterrupt, SystemExit, MemoryError):

        def end(error: type[BaseException] = error) -> None:
            raise error

        with pytest.raises(error):
            calls.guard(lambda: "", end)


@pytest.mark.parametrize("id_", [-1, 2**32, 2**70])
def test_ids_that_no_tokenizer_has_are_value_errors(id_: int) -> None:
    with pytest.raises(ValueError, match=f"^{id_} is not a token id: "):
        calls.token_of(byte_level(), id_)
    with pytest.raises(ValueError, match=f"^the tokenizer cannot decode the ids 1, {id_}: "):
        calls.decode(byte_level(), [1, id_])


def test_a_word_without_a_token_is_named() -> None:
    with pytest.raises(ValueError, match=r"no token for 'zebra', and none for unknown words \(WordLevel error"):
        calls.encode(chess_moves(), "e2e4 zebra", whole=True)
    with pytest.raises(ValueError, match=r"no token for 'zzzzzzzzzzzzzzzzzzzzzzzz\.\.\.', and none"):
        calls.encode(chess_moves(), "z" * 100, whole=True)


class Refusing:
    """A pre-tokenizer that fails."""

    def pre_tokenize(self, _: object) -> None:
        raise RuntimeError("two\nlines")


def test_a_text_that_is_refused_for_another_reason_is_named() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(Refusing())
    with pytest.raises(ValueError, match=r"^the tokenizer cannot encode the text 'b{24}\.\.\.': \S+.*two lines"):
        calls.encode(tokenizer, "b" * 100, whole=True)


def test_what_is_no_tokenizer_names_its_file() -> None:
    with pytest.raises(ValueError, match=r"^some/file is not a tokenizer: \S"):
        calls.open_tokenizer(Path("some/file"), b"{")


# methods of a Tokenizer that may fail
METHODS = {
    "decode_batch",
    "encode_batch",
    "from_buffer",
    "from_file",
    "from_pretrained",
    "from_str",
    "get_added_tokens_decoder",
    "get_vocab",
    "id_to_token",
    "normalize_str",
    "pre_tokenize_str",
    "token_to_id",
}


def direct_calls(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Attribute):
            continue
        owner = re.search(r"(^|[._])tokenizer$", ast.unparse(node.value))
        is_of_tokenizer = owner and node.attr in ("encode", "decode")
        is_of_ctypes = ast.unparse(node.value).startswith("ctypes.")
        if (node.attr in METHODS and not is_of_ctypes) or is_of_tokenizer:
            yield f"{path.name}:{node.lineno}: {ast.unparse(node)}"


def test_nothing_in_the_runtime_calls_tokenizers_unguarded() -> None:
    folder = Path(runtime.__file__).parent
    guarded = folder / "model" / "tokenizer" / "calls.py"
    assert list(direct_calls(guarded))
    found = [call for path in sorted(folder.rglob("*.py")) if path != guarded for call in direct_calls(path)]
    assert found == []
