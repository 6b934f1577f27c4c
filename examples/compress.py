"""Lossless compression of text with the probabilities of a model.

    python examples/compress.py [MODEL FOLDER] [TEXT FILE ...]      # bits per byte, beside gzip, xz and zstd
    python examples/compress.py pack TEXT_FILE PACKED_FILE [MODEL FOLDER]
    python examples/compress.py unpack PACKED_FILE TEXT_FILE [MODEL FOLDER]

An arithmetic coder writes each token in as many bits as the model finds it surprising. To read it again, the other side
has to compute the same probabilities to the last bit: one that differs makes everything after it another text. That is
what this example shows. Rows of a batch do not depend on each other here, so a text is cut into streams that decode in
one batch, of any number of rows: a file that was packed 16 streams at a time can be read 5 at a time.

Another model, or a processor that rounds differently, computes other bits. A fingerprint in the file tells, and such a
file is refused.
"""

import argparse
import gzip
import hashlib
import lzma
import struct
import sys
from pathlib import Path

import numpy as np
import onnxruntime

import runtime

MAGIC = b"GPT2pack1"
# The magic; fingerprints of model, machine and text; number of tokens, and of tokens in a stream.
HEADER = struct.Struct(f"<{len(MAGIC)}s8s8s8sIH")
ROWS = 16  # streams that are coded together
# Frequencies of all tokens sum to about this. It is far above the vocabulary, so that rounding costs little.
TOTAL = 2**24
# The range of the coder stays between LEAST and WIDEST, so that even the rarest token has a part of it.
LEAST = 2**40
WIDEST = 2**48


class Encoder:
    """An arithmetic coder. What it writes is a number in [low, low + range), as few of its digits as suffice.

    Python's whole numbers have any length, so `low` is the whole stream, and a carry needs no care.
    """

    def __init__(self):
        self.low = 0
        self.range = WIDEST
        self.n_bytes = 6  # of `low`

    def write(self, cumulative, symbol):
        """cumulative: [n + 1] sums of the frequencies of the symbols before each, and of all."""
        step = self.range // int(cumulative[-1])
        self.low += step * int(cumulative[symbol])
        self.range = step * int(cumulative[symbol + 1] - cumulative[symbol])
        while self.range < LEAST:
            self.low <<= 8
            self.range <<= 8
            self.n_bytes += 1

    def finish(self):
        """The bytes of the stream; the zeros at its end are left out."""
        shift = self.range.bit_length() - 1
        value = -(-self.low >> shift) << shift
        return value.to_bytes(self.n_bytes, "big").rstrip(b"\0")


class Decoder:
    """Reads what `Encoder` wrote, by the same frequencies."""

    def __init__(self, data):
        self.data = data
        self.at = 0
        self.range = WIDEST
        self.offset = 0  # of the number from `low`
        for _ in range(6):
            self.offset = self.offset << 8 | self.next_byte()

    def next_byte(self):
        """Zeros follow the end."""
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def read(self, cumulative):
        """The next symbol."""
        step = self.range // int(cumulative[-1])
        target = min(self.offset // step, int(cumulative[-1]) - 1)
        symbol = int(np.searchsorted(cumulative, target, side="right")) - 1
        self.offset -= step * int(cumulative[symbol])
        self.range = step * int(cumulative[symbol + 1] - cumulative[symbol])
        while self.range < LEAST:
            self.offset = self.offset << 8 | self.next_byte()
            self.range <<= 8
        return symbol


def cumulate(logits):
    """Sums [n_vocab + 1] of whole frequencies, at least 1 each, so that every token can be written."""
    weights = np.exp(logits.astype(np.float64) - float(logits.max()))
    frequencies = 1 + (weights / weights.sum() * (TOTAL - len(weights))).astype(np.int64)
    return np.concatenate([[0], np.cumsum(frequencies)])


class Streams:
    """The streams of a text in passes of the model. Each is coded without a look at the others."""

    def __init__(self, model, lengths, rows):
        self.model = model
        self.lengths = lengths
        # A plain ONNX export decodes one row at a time.
        self.rows = rows if model.is_fused else 1

    def run(self, code):
        """Call code(stream, cumulative) for the tokens of all streams; it returns the token that is there."""
        for begin in range(0, len(self.lengths), self.rows):
            # Longest first: the streams that are not at their end are the first rows of the cache.
            group = range(begin, min(begin + self.rows, len(self.lengths)))
            group = sorted(group, key=lambda stream: -self.lengths[stream])
            self._run_together(group, code)

    def _run_together(self, group, code):
        cache = self.model.new_cache(self.lengths[group[0]], len(group))
        # In most models the beginning of a text; any id does.
        tokens = [self.model.config.bos_token_id or 0] * len(group)
        for at in range(self.lengths[group[0]]):
            tokens = tokens[: sum(self.lengths[stream] > at for stream in group)]
            logits = cache.step(tokens)
            tokens = [code(group[row], cumulate(logits[row])) for row in range(len(tokens))]


def pack(model, text, rows=ROWS):
    """The text as bytes. Raises ValueError for a text that the tokenizer does not give back."""
    ids = model.encode(text)
    if model.decode(ids, special_tokens=True) != text:
        raise ValueError("this model's tokenizer changes the text, so it cannot be packed without loss")
    size = stream_size(model, len(ids))
    lengths = cut(len(ids), size)
    encoders = [Encoder() for _ in lengths]
    positions = [size * stream for stream in range(len(lengths))]

    def code(stream, cumulative):
        symbol = ids[positions[stream]]
        positions[stream] += 1
        encoders[stream].write(cumulative, symbol)
        return symbol

    Streams(model, lengths, rows).run(code)
    parts = [encoder.finish() for encoder in encoders]
    header = HEADER.pack(MAGIC, model_mark(model), machine_mark(model), mark(text.encode()), len(ids), size)
    return header + struct.pack(f"<{len(parts)}I", *map(len, parts)) + b"".join(parts)


def unpack(model, data, rows=ROWS):
    """The text that `pack` was given. Raises ValueError for what is damaged, or of another model or machine."""
    n_tokens, size, digest = check_header(model, data)
    table = struct.Struct(f"<{-(-n_tokens // size)}I")
    begin = HEADER.size + table.size
    if len(data) < begin or len(data) != begin + sum(table.unpack_from(data, HEADER.size)):
        raise ValueError("the file is damaged: its length is not that of its streams")
    lengths = cut(n_tokens, size)
    decoders = []
    for length in table.unpack_from(data, HEADER.size):
        decoders.append(Decoder(data[begin : begin + length]))
        begin += length
    ids = [[] for _ in lengths]

    def code(stream, cumulative):
        ids[stream].append(decoders[stream].read(cumulative))
        return ids[stream][-1]

    Streams(model, lengths, rows).run(code)
    text = model.decode([id_ for stream in ids for id_ in stream], special_tokens=True)
    if mark(text.encode()) != digest:
        raise ValueError("the file is damaged: its text is not the one that was packed")
    return text


def check_header(model, data):
    """Number of tokens, tokens of a stream, and the text's fingerprint."""
    if len(data) < HEADER.size or not data.startswith(MAGIC):
        raise ValueError("this is no file that this program packed")
    _, of_model, of_machine, digest, n_tokens, size = HEADER.unpack_from(data)
    if of_model != model_mark(model):
        raise ValueError(f"the file was packed with another model than {model.folder}, or another build of it")
    if of_machine != machine_mark(model):
        raise ValueError(
            "the file was packed on another kind of processor, or with other libraries, which compute other bits"
        )
    # Even a token that is certain takes more than n_vocab / TOTAL of a bit.
    most = 8 * len(data) * TOTAL // model.config.vocab_size
    if not 1 <= size <= model.config.n_positions or n_tokens > most:
        raise ValueError("the file is damaged: its header states an impossible size")
    return n_tokens, size, digest


def stream_size(model, n_tokens):
    """Tokens of each stream: as many as the model sees at once, shared out evenly."""
    n_streams = max(1, -(-n_tokens // model.config.n_positions))
    return max(1, -(-n_tokens // n_streams))


def cut(n_tokens, size):
    """The lengths of the streams."""
    return [min(size, n_tokens - begin) for begin in range(0, n_tokens, size)]


def mark(data):
    """Eight bytes that tell contents apart."""
    return hashlib.sha256(data).digest()[:8]


def model_mark(model):
    """Of the model, its precision and its tokenizer."""
    return mark(model.identity.encode())


def machine_mark(model):
    """Of what this machine computes: the frequencies of a few steps, and the versions of what computed them."""
    cache = model.new_cache(16)
    sums = [cumulate(cache.step([id_])[0]) for id_ in range(1, 17)]
    versions = f"{onnxruntime.__version__} {np.__version__}".encode()
    return mark(versions + np.concatenate(sums).tobytes())


def others(data):
    """Sizes by other programs, at their strongest."""
    sizes = {"gzip": len(gzip.compress(data, 9)), "xz": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))}
    try:
        from compression import zstd  # Python 3.14

        sizes["zstd"] = len(zstd.compress(data, 19))
    except ImportError:
        pass
    return sizes


def compare(model, path):
    """Pack a text and unpack it again; one line with the bits for each byte."""
    data = path.read_bytes()
    packed = pack(model, data.decode("utf-8"))
    # Another number of rows computes the same bits.
    assert unpack(model, packed, rows=ROWS // 3).encode() == data
    sizes = {"model": len(packed)} | others(data)
    figures = ", ".join(f"{name} {8 * size / max(1, len(data)):.2f}" for name, size in sizes.items())
    print(f"{path.name}: {len(data)} bytes; bits per byte: {figures}")


def main():
    """See above."""
    parser = argparse.ArgumentParser(description="Lossless compression of text with the probabilities of a model.")
    if sys.argv[1:2] in (["pack"], ["unpack"]):
        parser.add_argument("what", choices=["pack", "unpack"])
        parser.add_argument("source", type=Path)
        parser.add_argument("target", type=Path)
        parser.add_argument("folder", nargs="?", default="models/demo-int8")
    else:
        parser.add_argument("folder", nargs="?", default="models/demo-int8")
        parser.add_argument("texts", nargs="*", type=Path, default=[Path("models/demo/evaluation.txt")])
    given = parser.parse_args()
    with runtime.load(given.folder) as model:
        if "texts" in given:
            for path in given.texts:
                compare(model, path)
        elif given.what == "pack":
            given.target.write_bytes(pack(model, given.source.read_bytes().decode("utf-8")))
        else:
            given.target.write_bytes(unpack(model, given.source.read_bytes()).encode("utf-8"))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"compress.py: error: {error}")
