"""Write and publish the model folder: a build writes it beside its place, and puts it there in one step."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from export.checkpoint import tokenizer
from export.checkpoint.checkpoint import Checkpoint
from export.json_file import write_json
from runtime._json import read_json
from runtime.model.integrity import CHAT_TEMPLATE, CHECKSUMS, CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG
from runtime.model.recovery import LOCK, REPLACED, is_ours, is_workspace, workspace_of


def check_output(output: Path, *, force: bool) -> None:
    """Raise FileExistsError for an output that cannot be written.

    An output can be written if there is nothing yet, or an empty folder, or with `force` a model folder that holds only
    files of a build.
    """
    if os.path.ismount(output) or output == Path.cwd():
        raise FileExistsError(f"{output} itself cannot be replaced while it is in use: name a folder inside it")
    above = next(folder for folder in output.parents if folder.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"{above} is a file: name another place than {output}")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    listed = _listed(output)
    if not any(name.endswith(".onnx") for name in listed):
        raise FileExistsError(f"{output} is there and is not a model folder: move it away, or name another place")
    if not force:
        raise FileExistsError(f"{output} holds a model already; --force replaces it, --output names another place")
    others = sorted(name for name in _files(output) if name not in listed)
    if others:
        raise FileExistsError(
            f"{output} holds more than a build wrote, which --force would delete: {', '.join(others)}"
        )


def _files(folder: Path) -> list[str]:
    """The names of everything in a folder but its folders, such as `config.json` and `onnx/model.onnx`."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _listed(folder: Path) -> set[str]:
    """The names of the files that a model folder lists in its checksums; empty for another kind of folder."""
    path = folder / CHECKSUMS
    if not path.is_file():
        return set()
    return {CHECKSUMS} | {line.split("  ", 1)[-1] for line in path.read_text(encoding="utf-8").splitlines()}


@contextlib.contextmanager
def workspace(output: Path, *, force: bool = False) -> Iterator[Path]:
    """An empty folder beside the output for everything that a build writes; it is removed at the end.

    Clears away what a killed build left, and puts back the folder that it was replacing. Raises BlockingIOError while
    another build writes the same output; FileExistsError as `check_output` does, and for a workspace that is a link or
    belongs to another user.
    """
    work = workspace_of(output)
    made = [folder for folder in (work, *work.parents) if not folder.exists()]
    lock = FileLock(work / LOCK, timeout=0)
    entered = False
    try:
        _enter(work)
        entered = True
        if not _acquire(lock):
            raise BlockingIOError(f"another build is writing {output}; wait for it, or name another --output")
        if is_ours(work / REPLACED) and not output.exists():
            (work / REPLACED).rename(output)
        _clear(work)
        check_output(output, force=force)
        yield work
    finally:
        if entered:
            _leave(work, lock)
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _enter(work: Path) -> None:
    """Make the workspace, without access for others, or take over one that an earlier build of this user left."""
    work.parent.mkdir(parents=True, exist_ok=True)
    try:
        work.mkdir(mode=0o700)
    except FileExistsError:
        if not is_workspace(work):
            raise FileExistsError(
                f"{work}, where the build would work, was not left by a build of yours; look at it and remove it, or "
                "name another --output"
            ) from None


def _acquire(lock: FileLock) -> bool:
    """Take the lock; returns whether it was free."""
    try:
        lock.acquire()
    except Timeout:
        return False
    return True


def _clear(work: Path) -> None:
    """Delete everything in the workspace except the lock."""
    for left in work.iterdir():
        if left.name == LOCK:
            continue
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink()


def _leave(work: Path, lock: FileLock) -> None:
    """Clear the workspace and remove it, unless another build uses it by now."""
    try:
        if work.is_dir() and not work.is_symlink() and _acquire(lock):
            _clear(work)
            # Windows cannot delete an open file: there FileLock deletes it at its release.
            with contextlib.suppress(OSError):
                Path(lock.lock_file).unlink()
    finally:
        lock.release(force=True)
    with contextlib.suppress(OSError):
        work.rmdir()


def write_tokenizer_and_config(checkpoint: Checkpoint, folder: Path) -> None:
    """Write config, tokenizer and their settings under Hugging Face's file names, so that its tools open the folder."""
    config = checkpoint.config
    sizes = {key: getattr(config, key) for key in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")}
    ends = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    write_json(folder / CONFIG, checkpoint.raw_config | sizes | ends)
    tokenizer.write(checkpoint.tokenizer_folder, folder)
    if (template := checkpoint.tokenizer_folder / CHAT_TEMPLATE).is_file():
        shutil.copyfile(template, folder / CHAT_TEMPLATE)
    # A classifier generates nothing.
    generation: dict[str, dict[str, Any]] = {} if config.head is not None else {GENERATION_CONFIG: ends}
    defaults = generation | {
        TOKENIZER_CONFIG: {
            "tokenizer_class": tokenizer.class_name(folder),
            "model_max_length": config.n_positions,
        },
    }
    # The folder has no special_tokens_map.json; its content moves to tokenizer_config.json.
    roles = {TOKENIZER_CONFIG: tokenizer.settings(checkpoint.tokenizer_folder)}
    # The graph has no other inputs. With token_type_ids transformers would add embeddings for them.
    always = {TOKENIZER_CONFIG: {"model_input_names": ["input_ids", "attention_mask"]}}
    for name, value in defaults.items():
        own = (checkpoint.tokenizer_folder if name.startswith("tokenizer") else checkpoint.folder) / name
        described = read_json(own) if own.is_file() else value
        write_json(folder / name, described | roles.get(name, {}) | always.get(name, {}))


def write_checksums(folder: Path) -> None:
    """Write `SHA256SUMS` with the checksum of every other file, in the format of `sha256sum -c`."""
    lines = []
    for name in _files(folder):
        with (folder / name).open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8", newline="\n")


def publish(folder: Path, output: Path, work: Path) -> None:
    """Move a finished folder to its place in one step. An earlier model folder there ends up in `work`."""
    if output.is_dir() and any(output.iterdir()):
        _exchange(folder, output, work / REPLACED)
    else:
        with contextlib.suppress(FileNotFoundError):
            output.rmdir()
        folder.rename(output)


def _exchange(new: Path, old: Path, aside: Path) -> None:
    """Swap two folders, atomically where the system can; else by two renames, undone if the second fails."""
    if _swap_atomically(new, old):
        return
    old.rename(aside)
    try:
        new.rename(old)
    except BaseException:
        aside.rename(old)
        raise


def _swap_atomically(first: Path, second: Path) -> bool:
    """Swap with renameat2(RENAME_EXCHANGE) on Linux, renamex_np(RENAME_SWAP) on macOS; returns whether it worked."""
    try:
        libc = ctypes.CDLL(None)
        if sys.platform == "darwin":
            return bool(libc.renamex_np(os.fsencode(first), os.fsencode(second), 2) == 0)
        at_fdcwd = -100
        return bool(libc.renameat2(at_fdcwd, os.fsencode(first), at_fdcwd, os.fsencode(second), 2) == 0)
    except (AttributeError, OSError, TypeError):
        return False
