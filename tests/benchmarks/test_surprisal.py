"""The benchmark of short sentences runs, and its sentences are short."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import surprisal


def test_a_small_run(demo_int8_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    surprisal.main([str(demo_int8_folder), "--rounds", "1", "--sentences", "4", "--threads", "1"])
    out = capsys.readouterr().out
    assert out.startswith("4 sentences of 3 to 8 words, 1 threads, tokens a second\n")
    assert [line.split(" | ")[1] for line in out.splitlines() if "demo" in line] == ["surprisal", "score_text"]


def test_sentences_are_short_and_enough() -> None:
    texts = surprisal.sentences(surprisal.N_SENTENCES)
    assert len(set(texts)) > surprisal.N_SENTENCES // 2
    assert len(texts) == surprisal.N_SENTENCES
    assert all(len(text.split()) in surprisal.SHORT for text in texts)
