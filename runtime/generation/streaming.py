"""The text of a continuation as its ids come, up to its first stop string."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from runtime.model.tokenizer.detokenizer import PieceDecoder
from runtime.tokenization.stop_strings import StopFilter


class TextStream:
    """Ids in, text out: in pieces that end at whole characters, without anything that may belong to a stop string.

    >>> tokenizer = Tokenizer.from_file("models/demo/tokenizer.json")
    >>> stream = TextStream(tokenizer, context=(), stops=[" time"])
    >>> "".join(stream.push(id_) for id_ in tokenizer.encode("Once upon a time").ids)
    'Once upon a'
    >>> stream.stopped
    True
    """

    def __init__(
        self, tokenizer: Tokenizer | None, context: Sequence[int], stops: Sequence[str], n_hidden: int = 0
    ) -> None:
        """`tokenizer`: None where the model has none, and the text stays empty.

        `context`: the ids before the first; `n_hidden`: characters at the beginning that are the prompt's own.
        """
        self._decoder = PieceDecoder(tokenizer, context) if tokenizer else None
        self._filter = StopFilter(stops)
        self._stops = stops
        self._n_hidden = n_hidden
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """All pieces so far."""
        return "".join(self._pieces)

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete."""
        return self._filter.stopped

    def push(self, id_: int) -> str:
        """The text that is certain now; once `stopped`, the last of it."""
        if self._decoder is None:
            return ""
        name = self._decoder.hidden_text(id_)
        if not any(name in stop or stop in name for stop in self._stops if name):
            return self._keep(self._show(self._decoder.push(id_)))
        # The name of this special token is part of a stop string. A character that is unfinished stands before it.
        before = self._show(self._decoder.flush())
        return self._keep(before + self._filter.push(name, is_shown=False))

    def flush(self) -> str:
        """The text that was held back, at the end of the ids."""
        if self._decoder is None:
            return ""
        return self._keep(self._show(self._decoder.flush()) + self._filter.flush())

    def _show(self, piece: str) -> str:
        n_hidden = min(self._n_hidden, len(piece))
        self._n_hidden -= n_hidden
        return self._filter.push(piece[n_hidden:])

    def _keep(self, piece: str) -> str:
        self._pieces.append(piece)
        return piece
