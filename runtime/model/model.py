"""A model that has been loaded from its folder: onnxruntime's session, tokenizer and config."""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from runtime._checks import check_count, check_flag, check_ids, check_valid_text
from runtime._json import parse_json
from runtime._threads import InThread
from runtime.errors import ModelFolderError, NoModelError, NoTokenizerError
from runtime.graph.attention import CacheType
from runtime.graph.check import check_format, check_graph, kernel_of
from runtime.graph.gpt2 import EVEN_ROWS_KEY, FIRST_FORMAT, FORMAT_KEY, GRAPH_FILES, KERNEL_KEY, TOKEN_EMBEDDINGS
from runtime.graph.head import CLASSIFIERS, Head
from runtime.graph.reader import read_model
from runtime.hardware.cpu_features import advice, suitable_kernel
from runtime.hardware.threads import MAX_THREADS
from runtime.model import integrity
from runtime.model.cache_type import check_cache_type, choose_cache_type
from runtime.model.config import Config, read_config
from runtime.model.dynamic_kv_cache import GrowingCache
from runtime.model.embedding_rows import Embedding
from runtime.model.folder import ModelFolder, load_unchanged
from runtime.model.graph_signature import check_interface
from runtime.model.integrity import Verify
from runtime.model.kv_cache import Cache, InPlaceCache, Logits, named_failure
from runtime.model.kv_cache import check_ids as check_ids_within
from runtime.model.memory import Budget
from runtime.model.recovery import recover
from runtime.model.session import Session
from runtime.model.tokenizer import calls
from runtime.model.tokenizer.detokenizer import Detokenizer
from runtime.model.tokenizer.file import read_tokenizer

# Functions of `runtime` that callers may look for as methods of Model; an AttributeError names them.
_FUNCTIONS = (
    "classify",
    "complete",
    "embed",
    "evaluate",
    "generate",
    "perform",
    "prefix",
    "score",
    "score_text",
    "stream",
    "stream_many",
    "surprisal",
)


class Model:
    """A GPT-2 that is ready to decode. Threads may share it; `close()`, or the end of a `with`, frees its memory."""

    def __init__(
        self,
        folder: Path,
        *,
        threads: int | None = None,
        verify: Verify | None = None,
        expect: str | None = None,
        max_memory: int | None = None,
        cache: CacheType | None = None,
        prepack: bool = True,
    ) -> None:
        """See `runtime.load`. prepack: False decodes slower, but keeps the weights in pages of the mapped file."""
        recover(folder)
        if not folder.is_dir():
            raise NoModelError(f"no model folder at {folder}; python export/build.py makes one")
        if threads is not None:
            threads = check_count("threads", threads, most=MAX_THREADS)
        if max_memory is not None:
            max_memory = check_count("max_memory", max_memory)
        integrity.check_arguments(verify, expect)
        check_cache_type(cache)
        self.folder = folder
        files = load_unchanged(
            folder, lambda files: self._open(files, verify, expect, max_memory, cache, threads, prepack)
        )
        files.keep_open(self._verified.identifying)
        self._files: ModelFolder | None = files
        if concern := advice(self.kernel, suitable_kernel()):
            warnings.warn(concern, stacklevel=3)

    def _open(
        self,
        files: ModelFolder,
        how: Verify | None,
        expect: str | None,
        max_memory: int | None,
        cache: CacheType | None,
        threads: int | None,
        prepack: bool,
    ) -> ModelFolder:
        """Check and open everything that decoding needs. All files are read through `files`."""
        # The type of its keys and values.
        self.cache: CacheType = choose_cache_type(files.folder, files.names(), cache)
        name = _find_graph(files) if self.cache == "fp32" else GRAPH_FILES[self.cache]
        path = files.place / name
        self._verified = integrity.verify(files, name, how, expect)
        self._texts = {name: files.read(name) for name in integrity.KEPT if name in files.opened}
        self.config: Config = read_config(files.place)
        self._budget = None if max_memory is None else Budget(files.place, self.config, max_memory, self.cache)
        with self._open_graph(files, path, threads, prepack) as opening:
            self._tokenizer: Tokenizer | None = self._read_tokenizer(files, how)
        self._session: Session | None = opening.result()
        self._read_metadata(path, opening.result())
        self._embedding = self._open_embedding(path, files) if self.cache == "int8" else None
        return files

    def _open_embedding(self, path: Path, files: ModelFolder) -> Embedding | None:
        """The rows of the embedding, for a graph that takes them; None for a graph that takes ids."""
        # With verify="off" the graph was not read before.
        graph = self._verified.graph or read_model(path)
        if all(value.name != TOKEN_EMBEDDINGS for value in graph.inputs):
            return None
        kernel = kernel_of(graph, "wte", (self.config.vocab_size, self.config.n_embd))
        return Embedding(graph, kernel, files)

    @contextlib.contextmanager
    def _open_graph(
        self, files: ModelFolder, path: Path, threads: int | None, prepack: bool
    ) -> Iterator[InThread[Session]]:
        """Check the graph and open it in a thread, which has ended at the end of the `with`.

        onnxruntime releases the interpreter while it opens the graph, which takes longer than reading the tokenizer.
        The body of the `with` begins only then, since the tokenizer's parsers keep the interpreter for long.
        """
        is_opening = threading.Event()
        data = [files.descriptor(name) for name in self._verified.data]

        def open_graph() -> Session:
            try:
                graph = self._verified.graph
                self._check_pass: Callable[[int], None] = check_graph(graph) if graph is not None else lambda _: None
                return Session(path, threads, prepack, data, before_opening=is_opening.set)
            finally:
                is_opening.set()

        with InThread(open_graph) as opening:
            is_opening.wait()
            yield opening

    def _read_metadata(self, path: Path, session: Session) -> None:
        """What the graph says of itself."""
        metadata = session.metadata
        format_ = metadata.get(FORMAT_KEY)
        check_format(path, format_)
        self.is_fused: bool = format_ is not None
        self.has_hidden_states: bool = format_ not in (None, FIRST_FORMAT) and self.config.head is None
        # The kernel of int8 and int4 products: block, dense or mixed. None for fp32.
        self.kernel: str | None = metadata.get(KERNEL_KEY)
        # Folders of early versions lack the key; they need even rows if they have blocks of any size.
        default = str(int(self.kernel == "block"))
        self.needs_even_rows: bool = metadata.get(EVEN_ROWS_KEY, default) != "0"
        check_interface(path, session, self.config, is_fused=self.is_fused, cache=self.cache)

    def _read_tokenizer(self, files: ModelFolder, how: Verify | None) -> Tokenizer | None:
        if not self._verified.has_tokenizer:
            return None
        try:
            tokenizer = read_tokenizer(files.place / integrity.TOKENIZER, self.config.vocab_size, trusted=how == "off")
        except ValueError as error:
            raise ModelFolderError(str(error)) from None
        # Special tokens such as <|endoftext|> that are written in a text are plain text.
        tokenizer.encode_special_tokens = True
        return tokenizer

    @functools.cached_property
    def identity(self) -> str:
        """A SHA-256, in hex, of the loaded model, precision and tokenizer.

        For a model folder that was verified it is the digest of its SHA256SUMS; otherwise the loaded files are read
        once more. Raises ValueError if they were written to since the model was loaded, or if the model is closed.
        """
        self._check_open()
        files = self._check_unwritten(self._verified.identifying)
        return integrity.identify(files, self._verified)

    def read_text(self, name: str) -> str | None:
        """The content of a small text file when the folder was loaded; None if there was no such file.

        name: one of `runtime.model.integrity.KEPT`. Raises ValueError for a file that is not UTF-8.
        """
        content = self._texts.get(name)
        try:
            return None if content is None else content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.folder / name} is no text: {error}") from None

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The object in a JSON file, see `read_text`. Raises ValueError for a file with other content."""
        content = self._texts.get(name)
        return None if content is None else parse_json(content, self.folder / name)

    @property
    def has_tokenizer(self) -> bool:
        """Whether the model knows texts. A folder without any file of a tokenizer works in token ids alone."""
        return self._tokenizer is not None

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises NoTokenizerError where the folder has none."""
        if self._tokenizer is None:
            raise NoTokenizerError(
                f"{self.folder} has no tokenizer, so its texts are unknown: give token ids, a list of ints, and read "
                "the ids of runtime.complete, or add its tokenizer.json to the folder"
            )
        return self._tokenizer

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """The token ids of a text, as the functions of this package read it.

        Nothing is put before or after it, so the ids of several texts can be joined.

        text: any text; an empty one has no ids.
        special_tokens: read `<|endoftext|>` and its like in the text as tokens, not as text.
        Raises TypeError for what is no str; NoTokenizerError where the model has no tokenizer; ValueError for a text
        that is not valid Unicode, or that the model has no ids for.

        >>> model = runtime.load("models/demo-int8")
        >>> ids = model.encode("Once upon a time")
        >>> model.decode(ids)
        'Once upon a time'
        >>> runtime.generate(ids, model=model) == runtime.generate("Once upon a time", model=model)
        True
        """
        check_valid_text(text)
        reads_special = check_flag("special_tokens", special_tokens)
        tokenizer = self.special_tokenizer if reads_special else self.tokenizer
        return list(calls.encode(tokenizer, text, whole=False, vocab_size=self.config.vocab_size).ids)

    def decode(self, ids: Sequence[int], *, special_tokens: bool = False) -> str:
        """The text of token ids. Bytes that are no whole character become `\N{REPLACEMENT CHARACTER}`.

        ids: any number of them, a list of ints or an array.
        special_tokens: write `<|endoftext|>` and its like, which are left out otherwise.
        Raises TypeError for what is no sequence of whole numbers; ValueError for an id outside the vocabulary;
        NoTokenizerError where the model has no tokenizer.

        >>> model = runtime.load("models/demo-int8")
        >>> model.decode(runtime.complete("Once upon a time", model=model, max_new_tokens=6)[0].ids)
        ", the King's son was"
        """
        skips = not check_flag("special_tokens", special_tokens)
        checked = check_ids("ids", ids, self.config.vocab_size)
        return Detokenizer(self.tokenizer, skip_special_tokens=skips).decode(checked)

    @functools.cached_property
    def special_tokenizer(self) -> Tokenizer:
        """A tokenizer that reads special tokens in a text, such as `<|endoftext|>`, as tokens, not as plain text."""
        tokenizer = calls.duplicate(self.tokenizer)
        tokenizer.encode_special_tokens = False
        return tokenizer

    @property
    def session(self) -> Session:
        """onnxruntime's session.

        Raises ValueError if the model is closed, or if the session reads weights from a file that was written to since
        the load; RuntimeError in a fork of the process that loaded the model.
        """
        session = self._check_open()
        session.check_process()
        # Otherwise the weights are in the memory of the process, and changes of the file do not matter.
        if session.reads_from_file:
            self._check_unwritten(self._verified.data)
        return session

    def _check_open(self) -> Session:
        if self._session is None:
            raise ValueError(f"the model {self.folder} is closed; load it again")
        return self._session

    def _check_unwritten(self, names: Sequence[str]) -> ModelFolder:
        """The open files. Raises ValueError if one of the files `names` was written to since the model was loaded."""
        files = self._files
        if files is None:
            raise ValueError(f"the model {self.folder} is closed; load it again")
        for name in names:
            files.check_unwritten(name)
        return files

    def new_cache(self, capacity: int, rows: int = 1, *, hidden: bool = False) -> Cache:
        """An empty key-value cache of `rows` rows of up to `capacity` tokens each; the model can use n_positions.

        hidden: its passes return the hidden states of the last layer in place of logits.
        Raises ValueError for several rows of a plain export, which decodes one at a time, and for hidden states of a
        graph that does not put them out; MemoryError if the cache would exceed the model's max_memory.
        """
        session = self.session
        self._check_language_model()
        if hidden:
            self._check_hidden_states()
        if rows > 1 and not self.is_fused:
            raise ValueError(f"{self.folder} is a plain ONNX export and decodes one row at a time, not {rows}")
        if self._budget is None:
            return self._make_cache(session, capacity, rows, hidden=hidden)
        size = self._budget.take(capacity, rows)
        try:
            cache = self._make_cache(session, capacity, rows, hidden=hidden)
            self._budget.until_freed(cache, size)
        except BaseException:
            self._budget.give_back(size)
            raise
        return cache

    def _make_cache(self, session: Session, capacity: int, rows: int, *, hidden: bool) -> Cache:
        if not self.is_fused:
            return GrowingCache(session, self.config, self._check_pass)
        even = self.needs_even_rows
        return InPlaceCache(
            session,
            self.config,
            capacity,
            rows,
            kind=self.cache,
            embedding=self._embedding,
            needs_even_rows=even,
            hidden=hidden,
        )

    def run_classifier(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Logits:
        """The logits of labels of rows that are padded on the right; ids and mask are [n_rows, length].

        Returns [n_rows, n_labels], of a classifier of tokens [n_rows, length, n_labels]. Raises ValueError for a
        language model, and for an id outside the vocabulary; MemoryError if the pass would exceed max_memory.
        """
        session = self.session
        self.check_classifier()
        check_ids_within(ids.ravel().tolist(), self.config.vocab_size)
        size = None if self._budget is None else self._budget.take(ids.shape[1], len(ids))
        try:
            with named_failure():
                logits: Logits = session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]
            return logits
        finally:
            if self._budget is not None and size is not None:
                self._budget.give_back(size)

    def check_classifier(self) -> Head:
        """The head of a classifier. Raises ValueError for a language model."""
        if self.config.head is None:
            raise ValueError(
                f"{self.folder} is a language model, not a classifier: build one from a checkpoint of "
                f"{' or '.join(CLASSIFIERS)}; runtime.perform('choose', ...) lets a language model choose"
            )
        return self.config.head

    def _check_language_model(self) -> None:
        if self.config.head is not None:
            raise ValueError(
                f"{self.folder} is a classifier, and writes, scores and embeds no text: runtime.classify(texts, "
                "model=...) labels them, and gpt2-edge classify; give a language model here"
            )

    def _check_hidden_states(self) -> None:
        if not self.has_hidden_states:
            kind = "was built by an earlier version" if self.is_fused else "is a plain ONNX export"
            raise ModelFolderError(
                f"{self.folder} {kind}, whose graph does not put out hidden states: build it again from its checkpoint"
            )

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._session is None

    def close(self) -> None:
        """Free the session. Other threads that are generating finish first: each has its own reference to it."""
        self._session = None
        # Other threads may still use the files; they are closed with the last reference.
        self._files = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a Model cannot be pickled or copied: threads may share one, and a process loads its own from the folder, "
            f"runtime.load({str(self.folder)!r})"
        )

    # Hidden from type checkers, for which a class with __getattr__ has every attribute.
    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            cure = f"; runtime.{name}(..., model=model) takes the model" if name in _FUNCTIONS else ""
            raise AttributeError(f"a Model has no attribute {name!r}{cure}", name=name, obj=self)

    def __repr__(self) -> str:
        return f"<Model {self.folder}{' (closed)' if self._session is None else ''}>"


def _find_graph(files: ModelFolder) -> str:
    """`model.onnx`, or the folder's only graph (optimum's quantizer writes model_quantized.onnx)."""
    graphs = [name for name in files.names() if name.endswith(".onnx")]
    if GRAPH_FILES["fp32"] in graphs:
        return GRAPH_FILES["fp32"]
    if len(graphs) == 1:
        return graphs[0]
    found = f"there are {', '.join(graphs)}" if graphs else "there is no .onnx file"
    if not graphs and (files.folder / "onnx").is_dir():
        found = "the folder has transformers.js's layout; build it without --layout"
    raise FileNotFoundError(
        f"{files.folder / 'model.onnx'} is missing ({found}); python export/build.py makes model folders"
    )
