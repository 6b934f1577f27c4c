"""The model folder: its files, written beside its place and put there in one step."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from export.checkpoint import Checkpoint

CHECKSUMS = "SHA256SUMS"


def check_output(output: Path, *, force: bool) -> None:
    """Raise FileExistsError unless the output can be put there: nothing is there, or `force` and a model folder."""
    if output.is_dir() and not any(output.iterdir()):
        return
    if output.is_dir() and (output / CHECKSUMS).is_file():
        if not force:
            raise FileExistsError(f"{output} holds a model already; --force replaces it, --output names another place")
    elif output.exists():
        raise FileExistsError(f"{output} is there and is not a model folder: move it away, or name another --output")


@contextlib.contextmanager
def workspace(output: Path) -> Iterator[Path]:
    """An empty folder beside the output, gone afterwards, for everything a build writes.

    One build at a time for one output: another one under way raises BlockingIOError. What a killed build left is
    cleared away, and a folder it was just replacing is put back.
    """
    work = output.parent / f".{output.name}.building"
    work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BlockingIOError(f"another build is writing {output}; wait for it, or name another --output") from None
    try:
        if (work / "replaced").is_dir() and not output.exists():
            (work / "replaced").rename(output)
        for left in (p for p in work.iterdir() if p.name != "lock"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield work
    finally:
        lock.release()
        shutil.rmtree(work, ignore_errors=True)


def write_tokenizer_and_config(checkpoint: Checkpoint, folder: Path) -> None:
    """The JSON files of the model folder, under Hugging Face's names, so that its tools open the folder too."""
    config = checkpoint.config
    sizes = {key: getattr(config, key) for key in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")}
    ends = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    write_json(folder / "config.json", checkpoint.raw_config | sizes | ends)
    shutil.copyfile(checkpoint.folder / "tokenizer.json", folder / "tokenizer.json")
    defaults: dict[str, dict[str, Any]] = {
        "generation_config.json": ends,
        "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", "model_max_length": config.n_positions},
    }
    for name, value in defaults.items():
        if (checkpoint.folder / name).is_file():
            shutil.copyfile(checkpoint.folder / name, folder / name)
        else:
            write_json(folder / name, value)


def write_json(path: Path, value: object) -> None:
    """Write indented UTF-8 JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_checksums(folder: Path) -> None:
    """`SHA256SUMS` of every other file, as `sha256sum -c` reads it."""
    lines = []
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8", newline="\n")


def publish(folder: Path, output: Path, work: Path) -> None:
    """Put a finished folder in its place in one step; what was there ends up under `work`."""
    if output.is_dir() and any(output.iterdir()):
        _exchange(folder, output, work / "replaced")
    else:
        with contextlib.suppress(FileNotFoundError):
            output.rmdir()
        folder.rename(output)


def _exchange(new: Path, old: Path, aside: Path) -> None:
    """Swap two folders: at once where the system can, elsewhere by two renames, undone if the second fails."""
    if _swap_atomically(new, old):
        return
    old.rename(aside)
    try:
        new.rename(old)
    except BaseException:
        aside.rename(old)
        raise


def _swap_atomically(first: Path, second: Path) -> bool:
    """renameat2(RENAME_EXCHANGE) on Linux, renamex_np(RENAME_SWAP) on macOS; False where there is neither."""
    try:
        libc = ctypes.CDLL(None)
        if sys.platform == "darwin":
            return bool(libc.renamex_np(os.fsencode(first), os.fsencode(second), 2) == 0)
        here = -100  # AT_FDCWD
        return bool(libc.renameat2(here, os.fsencode(first), here, os.fsencode(second), 2) == 0)
    except (AttributeError, OSError, TypeError):
        return False
