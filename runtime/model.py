"""A model folder, opened: session, tokenizer, config."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import TracebackType
from typing import Self

import onnxruntime
from tokenizers import Tokenizer

from runtime.cache import Cache, GrowingCache, InPlaceCache, tensor_names
from runtime.config import Config, read_config
from runtime.options import check_count
from runtime.processor import advice, suitable_kernel

FORMAT = "1"  # of the fused graph, in model.onnx's metadata


class Model:
    """A GPT-2 ready to decode. Many threads may use one; `close()`, or leaving `with`, frees its memory."""

    def __init__(self, folder: Path, *, threads: int | None = None, prepack: bool = True) -> None:
        """See `runtime.load`. `prepack=False` decodes slower from weights that stay in the file's own pages."""
        if not folder.is_dir():
            raise FileNotFoundError(f"no model folder at {folder}; python export/build.py makes one")
        if threads is not None:
            threads = check_count("threads", threads)
        self.folder = folder
        self.config: Config = read_config(folder)
        self.tokenizer: Tokenizer = _open_tokenizer(folder / "tokenizer.json", self.config.vocab_size)
        path = _find_graph(folder)
        self._session: onnxruntime.InferenceSession | None = _open_session(path, threads, prepack)
        metadata = self._session.get_modelmeta().custom_metadata_map
        format_ = metadata.get("gpt2_edge_format")
        if format_ not in (None, FORMAT):
            raise ValueError(f"{path} has format {format_}, this runtime reads {FORMAT}: upgrade gpt2-edge")
        self.is_fused: bool = format_ is not None
        self.kernel: str | None = metadata.get("gpt2_edge_kernel")  # of int8 and int4 products: block or dense
        if concern := advice(self.kernel, suitable_kernel()):
            warnings.warn(concern, stacklevel=3)
        _check_interface(path, self._session, self.config)

    @property
    def session(self) -> onnxruntime.InferenceSession:
        """The onnxruntime session. Raises ValueError once the model is closed."""
        if self._session is None:
            raise ValueError(f"the model {self.folder} is closed; load it again")
        return self._session

    def new_cache(self, capacity: int, rows: int = 1) -> Cache:
        """An empty key-value cache: `rows` of up to `capacity` tokens each, of which n_positions can be used.

        Raises ValueError for several rows on a plain export, which decodes one at a time.
        """
        if self.is_fused:
            return InPlaceCache(self.session, self.config, capacity, rows)
        if rows > 1:
            raise ValueError(f"{self.folder} is a plain ONNX export and decodes one row at a time, not {rows}")
        return GrowingCache(self.session, self.config)

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


def _open_session(path: Path, threads: int | None, prepack: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # 2 warns about num_logits_to_keep at every load; errors are raised anyway
    options.intra_op_num_threads = threads or 0
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no base class but this
        raise ValueError(f"{path} or {path.name}_data is missing or damaged and cannot be opened: {error}") from None


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


def _check_interface(path: Path, session: onnxruntime.InferenceSession, config: Config) -> None:
    """Raise ValueError unless the graph takes and returns what a GPT-2 of these sizes with past-key-values does."""
    inputs = {value.name: value.shape for value in session.get_inputs()}
    missing = {"input_ids", "attention_mask", *(n.format("past_key_values") for n in tensor_names(config))} - set(
        inputs
    )
    if missing:
        raise ValueError(
            f"{path} has no input {min(missing)!r}: it is not a GPT-2 with past-key-values of {config.n_layer} layers "
            "(optimum exports one with --task text-generation-with-past)"
        )
    n_layer = sum(name.startswith("past_key_values.") for name in inputs) // 2
    past, logits = inputs["past_key_values.0.key"], session.get_outputs()[0].shape
    names = {"n_layer": n_layer, "n_head": past[1], "n_embd / n_head": past[3], "vocab_size": logits[-1]}
    said = (config.n_layer, config.n_head, config.head_dim, config.vocab_size)
    for (name, found), expected in zip(names.items(), said, strict=True):
        if isinstance(found, int) and found != expected:
            raise ValueError(f"{path} has {name} {found}, but config.json says {expected}")
