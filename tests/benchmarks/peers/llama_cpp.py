"""llama.cpp, through llama-cpp-python: https://github.com/abetlen/llama-cpp-python."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import llama_cpp
import numpy as np


def convert(source: Path, folder: Path, precision: str) -> None:
    """An fp16 GGUF, then llama.cpp's own quantizer: what llama-quantize does by default."""
    from .gguf_file import write_gguf

    folder.mkdir()
    full, quantized = folder / "f16.gguf", folder / "model.gguf"
    write_gguf(source, full)
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{precision}")
    if llama_cpp.llama_model_quantize(str(full).encode(), str(quantized).encode(), parameters):
        raise RuntimeError(f"llama.cpp could not quantize {full} to {precision}")
    full.unlink()


class Peer:
    def __init__(self, folder: Path, threads: int) -> None:
        self.threads = threads
        self.model = llama_cpp.Llama(
            str(folder / "model.gguf"), n_ctx=0, n_threads=threads, n_threads_batch=threads, verbose=False
        )

    def generate(self, prompt: list[int], n_new: int, note: Callable[[int], object]) -> None:
        self.model.reset()
        self.model.eval(prompt)
        for n in range(n_new):
            id_ = self._best(self.model.ctx, -1)
            note(id_)
            if n < n_new - 1:
                self.model.eval([id_])

    def generate_rows(self, prompts: list[list[int]], n_new: int) -> list[list[int]]:
        """All rows in one batch, a sequence each: llama-cpp-python's own class takes one."""
        n_rows, n_prompt = len(prompts), len(prompts[0])
        context = self._open_context(n_rows, n_prompt + n_new)
        batch = llama_cpp.llama_batch_init(n_rows * n_prompt, 0, 1)
        entries = [(row, at, id_) for row, prompt in enumerate(prompts) for at, id_ in enumerate(prompt)]
        rows = [[id_] for id_ in self._decode(context, batch, entries, n_prompt - 1)]
        for at in range(n_prompt, n_prompt + n_new - 1):
            ids = self._decode(context, batch, [(index, at, row[-1]) for index, row in enumerate(rows)], at)
            for row, id_ in zip(rows, ids, strict=True):
                row.append(id_)
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        return rows

    def logits(self, ids: list[int]) -> np.ndarray:
        """One pass over all ids, that keeps the logits of each: the model's own context keeps the last alone."""
        context = self._open_context(1, len(ids))
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        rows = self._pass(context, batch, [(0, at, id_) for at, id_ in enumerate(ids)], range(len(ids)))
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        return np.array(rows)

    def _open_context(self, n_rows: int, n_tokens: int) -> object:
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = n_rows * max(n_tokens, 256)  # a sequence has a multiple of 256
        parameters.n_seq_max = n_rows
        parameters.n_threads = parameters.n_threads_batch = self.threads
        return llama_cpp.llama_init_from_model(self.model.model, parameters)

    def _decode(self, context: object, batch: object, entries: list[tuple[int, int, int]], last: int) -> list[int]:
        """One pass over entries (row, position, id); the best ids after position `last`, a row each."""
        return [int(row.argmax()) for row in self._pass(context, batch, entries, (last,))]

    def _pass(
        self, context: object, batch: object, entries: list[tuple[int, int, int]], wanted: Collection[int]
    ) -> list[np.ndarray]:
        """One pass over entries (row, position, id); copies of the logits at the wanted positions."""
        batch.n_tokens = len(entries)
        for index, (row, at, id_) in enumerate(entries):
            batch.token[index], batch.pos[index], batch.logits[index] = id_, at, at in wanted
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
        if llama_cpp.llama_decode(context, batch):
            raise RuntimeError(f"llama_decode failed on {len(entries)} tokens")
        return [self._logits(context, index).copy() for index, (_, at, _) in enumerate(entries) if at in wanted]

    def _best(self, context: object, index: int) -> int:
        return int(self._logits(context, index).argmax())

    def _logits(self, context: object, index: int) -> np.ndarray:
        """[n_vocab], in the context's own memory."""
        logits = llama_cpp.llama_get_logits_ith(context, index)
        return np.ctypeslib.as_array(logits, (self.model.n_vocab(),))
