"""Verify that the files of a model folder are those that were built, before any other code reads them.

`SHA256SUMS` has a checksum of every file. Checksums prove that the files are whole, not who made them; `expect` pins a
folder to a known one. A full check reads every byte. A stamp in the user's cache, outside the folder, records the state
of every file that passed a full check, so that the next load of unchanged files compares only their states.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal, get_args

from runtime.errors import ModelFolderError
from runtime.graph.data import DATA_FILE
from runtime.graph.gpt2 import GRAPH_FILES
from runtime.graph.reader import OnnxModel, read_model
from runtime.model.folder import COPY_AGAIN, FileState, ModelFolder

Verify = Literal["full", "size", "off"]
CHECKSUMS = "SHA256SUMS"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
GOLDEN = "golden.json"
QUALITY = "quality.json"
# Files whose content a load keeps, if they exist, for other modules to parse later.
KEPT = (GENERATION_CONFIG, TOKENIZER_CONFIG, CHAT_TEMPLATE, GOLDEN, QUALITY)
LINE_ENDS = (
    "has other line ends than it was built with, as git makes them on Windows: "
    "clone the folder again with git -c core.autocrlf=false clone, or download it"
)
# A folder with any of these has a tokenizer, and is incomplete without tokenizer.json.
_TOKENIZER_FILES = {
    TOKENIZER,
    TOKENIZER_CONFIG,
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
}
_BUILT = {*KEPT, "README.md", "genai_config.json", *GRAPH_FILES.values(), DATA_FILE}
# Suffixes of text files, whose line ends git may change.
_TEXTS = {".json", ".md", ".jinja"}
# All files are open at the same time, and systems limit how many a process may have open.
_MAX_FILES = 128
_MAX_CHECKSUMS_BYTES = 1 << 20
# Without control characters, which could send commands to the terminal that shows an error.
_LINE = re.compile(r"([0-9a-f]{64})  ([^\x00-\x1f\x7f-\x9f]+)")
Checksums = dict[str, str]
"""SHA-256 in hex, by file name."""


@dataclasses.dataclass(frozen=True)
class Verified:
    """The result of a check.

    checksums: None if the folder has no SHA256SUMS. is_whole: every file was found to have its checksum. data: the
    names of the open files that may hold the graph and its weights. graph: None if the folder is trusted, so that its
    graph was not read.
    """

    checksums: Checksums | None
    is_whole: bool
    data: tuple[str, ...]
    graph: OnnxModel | None
    has_tokenizer: bool

    @property
    def identifying(self) -> tuple[str, ...]:
        """The names of the open files that `identify` reads."""
        tokenizer = {TOKENIZER} if self.has_tokenizer else set[str]()
        return self.data if self.is_whole else tuple(sorted({CONFIG, *tokenizer, *self.data}))


class DamagedFileError(ModelFolderError):
    """A file that differs from its checksum; `name` says which."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


# checks ---------------------------------------------------------------------------------------------------------------


def check_arguments(how: Verify | None, expect: str | None) -> None:
    """Raise ValueError for an unknown level of verification, or a value of `expect` that is not a SHA-256."""
    if how is not None and how not in get_args(Verify):
        raise ValueError(f"verify is {how!r}; {', '.join(map(repr, get_args(Verify)))} or None is expected")
    if expect is None:
        return
    if not isinstance(expect, str) or not re.fullmatch("[0-9a-fA-F]{64}", expect):
        raise ValueError(f"expect is {expect!r}; the SHA-256 of {CHECKSUMS}, 64 hexadecimal digits, is expected")
    if how in ("size", "off"):
        raise ValueError(f"expect pins the checksums, which verify={how!r} does not compare; leave verify out")


def verify(files: ModelFolder, graph: str, how: Verify | None, expect: str | None) -> Verified:
    """Open the files that a load reads, and check them; see `runtime.load` for the arguments and errors.

    graph: the name of the ONNX file.
    """
    there = set(files.names())
    checksums = _open_checksums(files) if CHECKSUMS in there else None
    if expect is not None:
        _check_pin(files, checksums, expect)
    if how == "off":
        return _open_unchecked(files, graph, there)
    read = _read(there) | {graph} | (set(KEPT) & there)
    if checksums is None:
        if how == "full":
            raise ValueError(
                f"{files.folder} has no {CHECKSUMS} to verify: leave verify out for an export that is not our own"
            )
        for name in sorted(read):
            files.open(name, listed=False)
        model = _read_graph(files, graph, None)
        return Verified(None, False, tuple(sorted({graph} | model.locations)), model, has_tokenizer(there))
    _check_listed(files, read | (_BUILT & there), checksums)
    now = {name: (files.open(name), checksum) for name, checksum in checksums.items()}
    # A pin is a promise about bytes: a stamp is no substitute for reading them.
    return _check_built(files, graph, "full" if expect is not None else how, now)


def has_tokenizer(names: Collection[str]) -> bool:
    """Whether files of these names are those of a folder with a tokenizer; a model of ids alone has none of them."""
    return not _TOKENIZER_FILES.isdisjoint(names)


def _read(names: Collection[str]) -> set[str]:
    """What a load reads of a folder with files of these names, besides the graph."""
    return {CONFIG, TOKENIZER} if has_tokenizer(names) else {CONFIG}


def _open_unchecked(files: ModelFolder, graph: str, there: set[str]) -> Verified:
    """With verify="off": open the files that a load reads, and follow all links."""
    weights = {name for name in there if name.startswith(graph)} | ({DATA_FILE} & there)
    for name in sorted(_read(there) | {graph} | weights | (set(KEPT) & there)):
        files.open(name, any_link=True)
    checksums = None
    if CHECKSUMS in there:
        with contextlib.suppress(ValueError):
            checksums = _parse_checksums(files)
    return Verified(checksums, False, tuple(sorted({graph} | weights)), None, has_tokenizer(there))


def _check_built(files: ModelFolder, graph: str, how: Verify | None, now: Stamp) -> Verified:
    """Check files that have checksums: by their bytes, their state or their size."""
    checksums = {name: checksum for name, (_, checksum) in now.items()}
    folder = str(files.folder.resolve())
    kept = read_stamp(folder)
    model = _read_graph(files, graph, checksums)
    data = tuple(sorted({graph} | model.locations))
    if how != "full" and kept == now:
        return Verified(checksums, True, data, model, TOKENIZER in checksums)
    began = time.time_ns()
    if how == "size":
        _check_sizes(files, now, kept)
    else:
        _check_digests(files, checksums)
    if how != "size":
        write_stamp(folder, now, began)
    return Verified(checksums, how != "size", data, model, TOKENIZER in checksums)


def _check_digests(files: ModelFolder, checksums: Mapping[str, str]) -> None:
    """Raise DamagedFileError for the first file that differs from its checksum."""
    for name, checksum in checksums.items():
        if files.digest(name) == checksum:
            continue
        if _has_other_line_ends(files, name, checksum):
            raise DamagedFileError(f"{files.folder / name} {LINE_ENDS}", name)
        raise DamagedFileError(f"{files.folder / name} is damaged: it differs from its checksum; {COPY_AGAIN}", name)


def _has_other_line_ends(files: ModelFolder, name: str, checksum: str) -> bool:
    """Whether a text file would match its checksum with line ends of one character."""
    if PurePosixPath(name).suffix not in _TEXTS:
        return False
    with files.stream(name) as file:
        return hashlib.sha256(file.read().replace(b"\r\n", b"\n")).hexdigest() == checksum


def _check_pin(files: ModelFolder, checksums: Checksums | None, expect: str) -> None:
    if checksums is None:
        raise FileNotFoundError(f"{files.folder / CHECKSUMS} is missing, which expect pins")
    found = files.digest(CHECKSUMS)
    if found != expect.lower():
        raise ModelFolderError(
            f"{files.folder / CHECKSUMS} has SHA-256 {found}, not the expected {expect}: it is another model"
        )


def _check_listed(files: ModelFolder, names: Iterable[str], checksums: Mapping[str, str]) -> None:
    """Raise ModelFolderError for a file without a checksum; all that loads read and builds write must have one."""
    if unlisted := sorted(set(names) - checksums.keys()):
        raise ModelFolderError(
            f"{files.folder / unlisted[0]} is not listed in {CHECKSUMS}: it was added later; {COPY_AGAIN}"
        )


def _check_sizes(files: ModelFolder, now: Stamp, kept: Stamp | None) -> None:
    """Compare sizes with those that a stamp recorded for files with the same checksums."""
    for name, (state, checksum) in now.items():
        known = (kept or {}).get(name)
        if known is not None and known[1] == checksum and known[0].size != state.size:
            raise DamagedFileError(
                f"{files.folder / name} is damaged: it has {state.size} bytes, not {known[0].size}; {COPY_AGAIN}", name
            )


def _read_graph(files: ModelFolder, graph: str, checksums: Mapping[str, str] | None) -> OnnxModel:
    """Read the graph, which takes some milliseconds, and open the files of its weights.

    Raises ModelFolderError for weights outside the folder.
    """
    model = read_model(files.place / graph)
    for location in sorted(model.locations):
        if not _is_inside(location):
            raise ModelFolderError(
                f"{files.folder / graph} has its weights in {location!r}, which is outside the model folder"
            )
    for location in sorted(model.locations):
        files.open(location, listed=checksums is not None)
    if checksums is not None:
        _check_listed(files, model.locations, checksums)
    return model


def _is_inside(name: str) -> bool:
    """Whether a relative path stays in its folder, on any system."""
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    rooted = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
    return not rooted and ".." not in parts and "\0" not in name


# SHA256SUMS -----------------------------------------------------------------------------------------------------------


def read_checksums(folder: Path) -> Checksums | None:
    """The checksums in `SHA256SUMS`; None if there is no such file.

    Raises ValueError for a damaged file, or one that names files outside the folder.
    """
    files = ModelFolder(folder)
    try:
        return _open_checksums(files) if CHECKSUMS in files.names() else None
    finally:
        files.close()


def find_damaged(folder: Path) -> list[str]:
    """The names of the files listed in `SHA256SUMS` that are missing or differ from their checksum.

    Raises ValueError for a folder without usable checksums, and for a link out of the folder.
    """
    files = ModelFolder(folder)
    damaged = []
    try:
        for name, checksum in _open_checksums(files).items():
            try:
                files.open(name)
            except FileNotFoundError:
                damaged.append(name)
                continue
            if files.digest(name) != checksum:
                damaged.append(name)
    finally:
        files.close()
    return damaged


def _open_checksums(files: ModelFolder) -> Checksums:
    files.open(CHECKSUMS)
    return _parse_checksums(files)


def _parse_checksums(files: ModelFolder) -> Checksums:
    path = files.folder / CHECKSUMS
    try:
        text = files.read(CHECKSUMS, most=_MAX_CHECKSUMS_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelFolderError(f"{path} is damaged: {error}; {COPY_AGAIN}") from None
    if "\r\n" in text:
        raise ModelFolderError(f"{path} {LINE_ENDS}")
    if not text.endswith("\n"):
        raise ModelFolderError(f"{path} is damaged: its last line has no end; {COPY_AGAIN}")
    checksums: Checksums = {}
    for number, line in enumerate(text[:-1].split("\n"), 1):
        match = _LINE.fullmatch(line)
        if match is None or match[2] in checksums or not _is_inside(match[2]):
            raise ModelFolderError(
                f"{path}, line {number} is damaged: no digest and name of a file in here; {COPY_AGAIN}"
            )
        if number > _MAX_FILES:
            raise ModelFolderError(f"{path} lists more than {_MAX_FILES} files, which no model folder has")
        checksums[match[2]] = match[1]
    return checksums


# identity -------------------------------------------------------------------------------------------------------------


def identify(files: ModelFolder, verified: Verified) -> str:
    """A SHA-256 of the loaded files, which differs for another model, precision or tokenizer.

    It is the digest of SHA256SUMS if the loaded files match their checksums, else a digest of the loaded files. Raises
    FolderChangedError if graph or weights were written to since they were opened.
    """
    checksums = verified.checksums
    if checksums is not None and verified.is_whole:
        return files.digest(CHECKSUMS)
    digests = {name: files.digest(name) for name in verified.identifying}
    if checksums is not None and all(checksums.get(name) == digest for name, digest in digests.items()):
        return files.digest(CHECKSUMS)
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


# stamps ---------------------------------------------------------------------------------------------------------------

ENVIRONMENT = "GPT2_EDGE_CACHE"
Stamp = dict[str, tuple[FileState, str]]
"""State and checksum of each file, by name."""
# Two writes within one tick of the file system's clock leave the same times. FAT's ticks are 2 s long.
_TICK_MODIFIED_NS = 2_000_000_000
# The clock of the time of change is finer, unless the time is in whole seconds.
_TICK_CHANGED_NS = 50_000_000
_MAX_STAMP_BYTES = 1 << 20
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def read_stamp(folder: str) -> Stamp | None:
    """The stamp of a folder (its real path); None if there is none that can be trusted.

    A stamp is trusted if it is a regular file of this user in a folder of this user, and nobody else may write to
    either. Windows has no such owners and modes; there the access rights of %LOCALAPPDATA% protect the stamps.
    """
    try:
        path = _stamp_path(folder)
        if not _is_private(path.parent):
            return None
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:  # noqa: PTH123  of a descriptor
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or not _is_own(found) or found.st_size > _MAX_STAMP_BYTES:
                return None
            return _parse_stamp(json.loads(file.read(_MAX_STAMP_BYTES)), folder)
    # RuntimeError is raised if the user has no home folder, and RecursionError is a subclass of it.
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError):
        return None


def _parse_stamp(raw: Any, folder: str) -> Stamp | None:
    """The stamp in a JSON value; None for another folder.

    Raises ValueError, TypeError, KeyError or AttributeError for a value that `write_stamp` did not write.
    """
    if raw["folder"] != folder:
        return None
    stamp: Stamp = {}
    for name, (size, modified, checksum, device, inode, changed, owner) in raw["files"].items():
        state = FileState(device, inode, size, modified, changed, owner)
        if not isinstance(checksum, str) or not all(type(number) is int for number in state):
            raise TypeError("no state and checksum of a file")
        stamp[name] = (state, checksum)
    return stamp


def _as_json(stamp: Stamp) -> dict[str, list[int | str]]:
    return {
        name: [state.size, state.modified, checksum, state.device, state.inode, state.changed, state.owner]
        for name, (state, checksum) in stamp.items()
    }


def write_stamp(folder: str, stamp: Stamp, began: int) -> None:
    """Record the state of files that passed a full check, which began at `began` (time.time_ns).

    Records nothing if a file changed so shortly before that a later change might have left the same times.
    """
    if any(_may_change_unseen(state, began) for state, _ in stamp.values()):
        return
    with contextlib.suppress(OSError, RuntimeError):
        path = _stamp_path(folder)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_private(path.parent)
        beside = path.with_name(f"{path.stem}.{secrets.token_hex(8)}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        try:
            with open(os.open(beside, flags, 0o600), "w", encoding="utf-8") as file:  # noqa: PTH123
                json.dump({"folder": folder, "files": _as_json(stamp)}, file)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def _may_change_unseen(state: FileState, began: int) -> bool:
    # A time in whole seconds suggests a file system without a finer clock.
    tick = _TICK_CHANGED_NS if state.changed % 1_000_000_000 else _TICK_MODIFIED_NS
    return abs(began - state.modified) < _TICK_MODIFIED_NS or abs(began - state.changed) < tick


def _is_own(found: os.stat_result) -> bool:
    """Whether a file or folder belongs to this user, and nobody else may write to it. Always true on Windows."""
    if not hasattr(os, "geteuid"):
        return True
    return found.st_uid == os.geteuid() and not found.st_mode & _OTHERS_MAY_WRITE


def _is_private(folder: Path) -> bool:
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and _is_own(found)


def _make_private(folder: Path) -> None:
    """Remove the rights of others to this user's folder. Raises PermissionError for a folder of another user."""
    if _is_private(folder):
        return
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "geteuid") and found.st_uid != os.geteuid()):
        raise PermissionError(f"{folder} is not a folder of this user")
    folder.chmod(0o700)


def _stamp_path(folder: str) -> Path:
    return _cache() / "verified" / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]}.json"


def _cache() -> Path:
    """$GPT2_EDGE_CACHE, else the folder gpt2-edge in the system's cache folder of the user."""
    if named := os.environ.get(ENVIRONMENT):
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "gpt2-edge"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "gpt2-edge"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpt2-edge"
