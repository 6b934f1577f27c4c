"""Lossless compression by arithmetic coding over the model's probabilities."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import runtime
from runtime.model.model import Model
from tests.conftest import DEMO, SHARED_DATA
from tests.examples.test_examples import EXAMPLES, run

N_CHARACTERS = 8000


def load_example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compress", EXAMPLES / "compress.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


compress: Any = load_example()


def corpus_text() -> str:
    """The beginning of a story that the demo was not trained to write, or of the demo's evaluation text."""
    story = SHARED_DATA / "corpus" / "corpus_en_children" / "Aesop_Aesop_s_Fables.txt"
    path = story if story.is_file() else DEMO / "evaluation.txt"
    return path.read_text(encoding="utf-8")[:N_CHARACTERS]


def test_a_corpus_text_with_other_rows_and_threads(demo_int8: Model, demo_int8_folder: Path) -> None:
    text = corpus_text()
    packed = compress.pack(demo_int8, text)
    assert compress.unpack(demo_int8, packed) == text
    with runtime.load(demo_int8_folder, threads=1) as other:
        assert compress.unpack(other, packed, rows=3) == text
    data = text.encode()
    assert len(packed) < 0.8 * min(compress.others(data).values())
    # The tokens take their surprisal, but for rounding; header, table and ends of streams come to it.
    ids = demo_int8.encode(text)
    size = compress.stream_size(demo_int8, len(ids))
    bos = demo_int8.config.bos_token_id
    streams = [[bos, *ids[begin : begin + size]] for begin in range(0, len(ids), size)]
    bits = -sum(runtime.score_text(stream, model=demo_int8).logprob for stream in streams) / np.log(2)
    assert 0.98 * bits <= 8 * len(packed) <= 1.02 * bits + 8 * (compress.HEADER.size + 8 * len(streams))


def test_what_the_program_prints(demo_int8_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "text.txt"
    source.write_text(corpus_text()[:1500], encoding="utf-8")
    printed = run("compress.py", demo_int8_folder, more=[str(source)])
    sizes = re.fullmatch(r"text.txt: \d+ bytes; bits per byte: model ([\d.]+), gzip ([\d.]+), xz ([\d.]+).*\n", printed)
    assert sizes
    assert float(sizes[1]) < min(float(sizes[2]), float(sizes[3]))
    packed = tmp_path / "packed"
    assert run("compress.py", "pack", more=[str(source), str(packed), str(demo_int8_folder)]) == ""
    assert run("compress.py", "unpack", more=[str(packed), str(tmp_path / "again"), str(demo_int8_folder)]) == ""
    assert (tmp_path / "again").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("text", ["", "a", "¿Niño? 😀\r\n\ttab", "<|endoftext|>", "a" * 3000, "\0"], ids=ascii)
def test_any_text(demo_int8: Model, text: str) -> None:
    packed = compress.pack(demo_int8, text)
    assert compress.unpack(demo_int8, packed) == text


def test_another_model_is_refused(demo_int8: Model, demo_fp32: Model) -> None:
    with pytest.raises(ValueError, match=r"packed with another model than .*, or another build of it"):
        compress.unpack(demo_fp32, compress.pack(demo_int8, "Once upon a time"))


def test_another_machine_is_refused(demo_int8: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = compress.pack(demo_int8, "Once upon a time")
    cumulate = compress.cumulate

    def in_other_bits(logits: Any) -> Any:
        # As a processor does that rounds one logit to the next float.
        other = logits.copy()
        other[int(other.argmax())] = np.nextafter(other.max(), np.float32(np.inf))
        return cumulate(other)

    monkeypatch.setattr(compress, "cumulate", in_other_bits)
    with pytest.raises(ValueError, match="packed on another kind of processor, or with other libraries"):
        compress.unpack(demo_int8, packed)


def test_a_damaged_file_is_refused(demo_int8: Model) -> None:
    packed = compress.pack(demo_int8, "Once upon a time there was a king who had three sons.")
    for damaged in (b"", b"other", packed[:20], packed[:-1], packed + b"a"):
        with pytest.raises(ValueError, match=r"no file that this program packed|is damaged"):
            compress.unpack(demo_int8, damaged)
    flipped = bytearray(packed)
    flipped[-4] ^= 1
    with pytest.raises(ValueError, match="its text is not the one that was packed"):
        compress.unpack(demo_int8, bytes(flipped))
    endless = bytearray(packed)
    at = compress.HEADER.size - 6
    endless[at : at + 4] = b"\xff" * 4
    with pytest.raises(ValueError, match="is damaged"):
        compress.unpack(demo_int8, bytes(endless))


frequencies = st.lists(st.integers(1, 2**20), min_size=2, max_size=9)


@settings(deadline=None)
@given(st.lists(st.tuples(frequencies, st.integers(0, 8)), max_size=60))
def test_the_coder_reads_what_it_wrote(symbols: list[tuple[list[int], int]]) -> None:
    encoder = compress.Encoder()
    written = [(np.concatenate([[0], np.cumsum(sizes)]), at % len(sizes)) for sizes, at in symbols]
    for cumulative, symbol in written:
        encoder.write(cumulative, symbol)
    data = encoder.finish()
    decoder = compress.Decoder(data)
    assert [decoder.read(cumulative) for cumulative, _ in written] == [symbol for _, symbol in written]
    bits = sum(np.log2(cumulative[-1] / (cumulative[at + 1] - cumulative[at])) for cumulative, at in written)
    assert 8 * len(data) <= bits + 16
