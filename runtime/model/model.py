"""A model folder, opened: session, tokenizer, config."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self

from tokenizers import Tokenizer

from runtime.graph.check import check_format, check_graph
from runtime.graph.gpt2 import EVEN_ROWS_KEY, FORMAT_KEY, KERNEL_KEY
from runtime.hardware.cpu_features import advice, suitable_kernel
from runtime.hardware.threads import MAX_THREADS
from runtime.model import integrity
from runtime.model.config import Config, read_config
from runtime.model.dynamic_kv_cache import GrowingCache
from runtime.model.graph_signature import check_interface
from runtime.model.integrity import Verify
from runtime.model.kv_cache import Cache, InPlaceCache
from runtime.model.memory import Budget
from runtime.model.recovery import close_gap
from runtime.model.session import Session
from runtime.options import check_count

# what is looked for on a model, and is a function that takes one
_FUNCTIONS = (
    "complete",
    "evaluate",
    "generate",
    "perform",
    "prefix",
    "score",
    "score_text",
    "stream",
    "stream_many",
)


class Model:
    """A GPT-2 ready to decode. Many threads may use one; `close()`, or leaving `with`, frees its memory."""

    def __init__(
        self,
        folder: Path,
        *,
        threads: int | None = None,
        verify: Verify | None = None,
        expect: str | None = None,
        max_memory: int | None = None,
        prepack: bool = True,
    ) -> None:
        """See `runtime.load`. `prepack=False` decodes slower from weights that stay in the file's own pages."""
        close_gap(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"no model folder at {folder}; python export/build.py makes one")
        if threads is not None:
            threads = check_count("threads", threads, most=MAX_THREADS)
        self.folder = folder
        path = _find_graph(folder)
        graph = integrity.verify(path, verify, expect)
        self.config: Config = read_config(folder)
        self._budget = (
            None if max_memory is None else Budget(folder, self.config, check_count("max_memory", max_memory))
        )
        self.tokenizer: Tokenizer = _open_tokenizer(folder / "tokenizer.json", self.config.vocab_size)
        self._check_pass: Callable[[int], None] = check_graph(graph) if graph is not None else lambda _: None
        self._session: Session | None = Session(path, threads, prepack)
        metadata = self._session.metadata
        format_ = metadata.get(FORMAT_KEY)
        check_format(path, format_)
        self.is_fused: bool = format_ is not None
        self.kernel: str | None = metadata.get(KERNEL_KEY)  # of int8 and int4 products: block, dense or mixed
        # folders of before the key was written are taken to need it where any block size does
        unsaid = str(int(self.kernel == "block"))
        self.needs_even_rows: bool = metadata.get(EVEN_ROWS_KEY, unsaid) != "0"
        if concern := advice(self.kernel, suitable_kernel()):
            warnings.warn(concern, stacklevel=3)
        check_interface(path, self._session, self.config, is_fused=self.is_fused)

    @functools.cached_property
    def special_tokenizer(self) -> Tokenizer:
        """The tokenizer for texts whose special tokens, such as `<|endoftext|>`, are tokens and no text."""
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.encode_special_tokens = False
        return tokenizer

    @property
    def session(self) -> Session:
        """The session of onnxruntime. Raises ValueError once it is closed, RuntimeError in a fork of its process."""
        if self._session is None:
            raise ValueError(f"the model {self.folder} is closed; load it again")
        self._session.check_process()
        return self._session

    def new_cache(self, capacity: int, rows: int = 1) -> Cache:
        """An empty key-value cache: `rows` of up to `capacity` tokens each, of which n_positions can be used.

        Raises ValueError for several rows on a plain export, which decodes one at a time; MemoryError where the cache
        would pass the model's max_memory.
        """
        session = self.session
        if rows > 1 and not self.is_fused:
            raise ValueError(f"{self.folder} is a plain ONNX export and decodes one row at a time, not {rows}")
        if self._budget is None:
            return self._make_cache(session, capacity, rows)
        size = self._budget.take(capacity, rows)
        try:
            cache = self._make_cache(session, capacity, rows)
            self._budget.until_freed(cache, size)
        except BaseException:
            self._budget.give_back(size)
            raise
        return cache

    def _make_cache(self, session: Session, capacity: int, rows: int) -> Cache:
        if not self.is_fused:
            return GrowingCache(session, self.config, self._check_pass)
        return InPlaceCache(session, self.config, capacity, rows, needs_even_rows=self.needs_even_rows)

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._session is None

    def close(self) -> None:
        """Free the session. Generation that is under way in other threads ends first, on its own reference."""
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a Model cannot be pickled or copied: threads may share one, and a process loads its own from the folder, "
            f"runtime.load({str(self.folder)!r})"
        )

    if not TYPE_CHECKING:  # to a type checker it would mean that a Model has every attribute

        def __getattr__(self, name: str) -> NoReturn:
            cure = f"; runtime.{name}(..., model=model) takes the model" if name in _FUNCTIONS else ""
            raise AttributeError(f"a Model has no attribute {name!r}{cure}", name=name, obj=self)

    def __repr__(self) -> str:
        return f"<Model {self.folder}{' (closed)' if self._session is None else ''}>"


def _find_graph(folder: Path) -> Path:
    """`model.onnx`, or the folder's only graph (optimum's quantizer writes model_quantized.onnx)."""
    graphs = sorted(folder.glob("*.onnx"))
    if folder / "model.onnx" in graphs:
        return folder / "model.onnx"
    if len(graphs) == 1:
        return graphs[0]
    found = f"there are {', '.join(g.name for g in graphs)}" if graphs else "there is no .onnx file"
    raise FileNotFoundError(f"{folder / 'model.onnx'} is missing ({found}); python export/build.py makes model folders")


def _open_tokenizer(path: Path, vocab_size: int) -> Tokenizer:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; a model folder has one")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(f"{path} is not a tokenizer: {error}") from None
    if tokenizer.get_vocab_size() > vocab_size:
        raise ValueError(f"{path} has {tokenizer.get_vocab_size()} tokens, config.json only {vocab_size}")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # <|endoftext|> written in a text is text
    return tokenizer
