"""What int4 costs in the matrix of the vocabulary, by the share of its rows that stays int8.

`python -m tests.benchmarks.output_layer` makes models/demo at int4 once for each share, and compares each with fp32
over the demo's evaluation text. The size is that of GPT-2 124M, computed. All have the same layers, and the matrix is
calibrated only once, so the last digits may differ from those of a build.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from export import arguments, conversion, needs
from export.checkpoint.checkpoint import open_checkpoint
from export.checkpoint.random_weights import SIZES
from export.quantize.calibration import Calibration
from export.quantize.equalization import OUTPUT
from export.quantize.int4 import Packed, Rounded
from export.verify.quality import Quality, Text, Verifier
from runtime.graph import kernels
from runtime.graph.kernels import FrequentRows
from tests.benchmarks.statistic import table
from tests.conftest import DEMO

# One row is int8 with it: as good as none.
NONE = 10**9
BLOCK_SIZE = 32
# With scales in fp16. Where all of the matrix is int8 they are fp32.
INT8_BYTES = 1 + 2 / BLOCK_SIZE
INT4_BYTES = 0.5 + 2.5 / BLOCK_SIZE
COMMAND = ["--precision", "int4", "--no-reference"]


class Candidate(NamedTuple):
    """How the matrix is stored: one row in `share` in int8. is_compensated: whether GPTQ rounds the others."""

    title: str
    share: int
    is_compensated: bool = True

    @property
    def bytes(self) -> float:
        """Of a weight, its share of scales and zero points included."""
        if self.share == 1:
            return 1 + 4 / BLOCK_SIZE
        return INT4_BYTES + (INT8_BYTES - INT4_BYTES) / self.share


CANDIDATES = [
    Candidate("int8, blocks of 32", 1),
    Candidate("1/2 int8", 2),
    Candidate("1/3 int8, the build", 3),
    Candidate("1/4 int8", 4),
    Candidate("1/8 int8", 8),
    Candidate("1/16 int8", 16),
    Candidate("all int4", NONE),
    Candidate("1/3 int8, no GPTQ in the matrix", 3, is_compensated=False),
    Candidate("all int4, no GPTQ in the matrix", NONE, is_compensated=False),
]


class _Sliced:
    """Rounded products; of the vocabulary's matrix, whose rows but the first are all rounded, those that are int4."""

    def __init__(self, rounded: Rounded, n_vocab: int, *, is_compensated: bool) -> None:
        self._rounded = rounded
        self._n_vocab = n_vocab
        self._is_compensated = is_compensated

    def __contains__(self, name: str) -> bool:
        return name != "wte" or self._is_compensated

    def __getitem__(self, name: str) -> Packed:
        packed = self._rounded[name]
        if name != "wte":
            return packed
        weights, scales, zeros = packed
        n_int8 = FrequentRows.n_first(self._n_vocab) - 1
        return weights[n_int8:], scales[n_int8:], zeros[n_int8:]


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        measured = measure(Path(place), CANDIDATES)
    head = ["matrix of the vocabulary", "bytes a weight", "124M, MB", "mean KL", "99th percentile", "top-1, %"]
    print(table(head, [cells(candidate, quality) for candidate, quality in measured.items()]))


def measure(work: Path, candidates: list[Candidate]) -> Mapping[Candidate, Quality]:
    """The quality of each candidate."""
    options = arguments.parse([str(DEMO), *COMMAND, "--output", str(work / "unused")])
    checkpoint = open_checkpoint(str(DEMO), work)
    with _share(NONE):
        calibration = conversion.calibrate(checkpoint, options, work)
    conversion.make_fp32(checkpoint, work / "reference")
    text = Text(DEMO / "evaluation.txt", "evaluation.txt")
    verifier = Verifier(work / "reference", options.reference_text, text, work)
    found = {}
    for candidate in candidates:
        with _share(candidate.share):
            upgraded = {OUTPUT: f"block {BLOCK_SIZE}"} if candidate.share == 1 else {}
            sliced = _slice(calibration, checkpoint.config.vocab_size, candidate)
            conversion.make_model(checkpoint, options, work, sliced, upgraded)
            found[candidate] = verifier.measure(work / "model")
        shutil.rmtree(work / "model")
    return found


def _slice(calibration: Calibration, n_vocab: int, candidate: Candidate) -> Calibration:
    if calibration.rounded is None:
        raise AssertionError("calibration for int4 rounds")
    rounded = _Sliced(calibration.rounded, n_vocab, is_compensated=candidate.is_compensated)
    return Calibration(calibration.equalizations, calibration.chosen, calibration.errors, rounded)


def _share(share: int) -> mock._patch[int]:
    """While it lasts, one row in so many is int8."""
    return mock.patch.object(kernels, "INT8_SHARE", share)


def cells(candidate: Candidate, quality: Quality) -> list[str]:
    """A row of the table."""
    config = SIZES["gpt2"]
    size = needs._stored_bytes(config, INT4_BYTES, candidate.bytes)
    return [
        candidate.title,
        f"{candidate.bytes:.3f}",
        f"{size / 1e6:.1f}",
        f"{quality.mean_kl:.5f}",
        f"{quality.p99_kl:.4f}",
        f"{100 * quality.top1_agreement:.2f}",
    ]


if __name__ == "__main__":
    main()
