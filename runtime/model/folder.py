"""Open each file of a model folder only once, so that the bytes that were checked are the bytes that are used.

A folder may change while it is loaded: a build publishes another model, or somebody copies files over it. Three things
keep a load to one state of the folder:

- On Linux every file is opened relative to one descriptor of the folder, so another folder that takes its name in the
  meantime is not seen. On Windows files that are open cannot be renamed or replaced.
- The file system's record of every file (device, inode, size, times of change) is taken when the file is opened and
  compared when the load is complete, and so is that of the folder, which a file that is added changes. A difference
  starts the load again.
- Whatever other libraries open, they open by `ModelFolder.place`, between those two moments.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import stat
import time
import weakref
from collections.abc import Callable, Iterable
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple, TypeVar

from runtime.errors import ModelFolderError

COPY_AGAIN = "copy the model folder again"
# Larger than any JSON file or template of a model folder, apart from tokenizer.json, which is not read here.
MAX_TEXT_BYTES = 4 << 20
_N_TRIES = 5
# The pause before a load begins again; a build replaces a folder in less time.
_PAUSE = 0.05  # seconds
# With O_NONBLOCK, opening a named pipe does not wait for a writer. O_BINARY exists only on Windows.
_READ_ONLY = (
    os.O_RDONLY
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_BINARY", 0)
)
T = TypeVar("T")


class FileState(NamedTuple):
    """The file system's record of a file.

    modified: st_mtime_ns. changed: st_ctime_ns, which only an administrator can set back; on Windows the time of
    creation. owner: st_uid; 0 on Windows.
    """

    device: int
    inode: int
    size: int
    modified: int
    changed: int
    owner: int


def state_of(found: os.stat_result) -> FileState:
    """The state of a file, from the result of `os.stat`."""
    return FileState(
        found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, getattr(found, "st_uid", 0)
    )


class FolderChangedError(ModelFolderError):
    """A file was replaced or written to while the folder was loaded."""


class ModelFolder:
    """The files of a folder, opened at their first use and held open until `close`.

    folder: as the caller names it, for messages.
    place: the path by which other libraries open the files.
    """

    def __init__(self, folder: Path) -> None:
        """Raises FileNotFoundError or NotADirectoryError where there is no folder."""
        self.folder = folder
        self._real = folder.resolve(strict=True)
        self._files: dict[str, int] = {}
        self._states: dict[str, FileState] = {}
        self._contents: dict[str, bytes] = {}
        # Of `read_at`; they end with the last reference.
        self._maps: dict[str, mmap.mmap] = {}
        self._descriptors: list[int] = []
        self._close = weakref.finalize(self, _close_all, self._descriptors)
        self.place = self._open_folder() or self._real
        self._at_first = state_of(os.stat(self.place))  # noqa: PTH116  a load waits for it

    def _open_folder(self) -> Path | None:
        """A path that names this folder even if it is renamed or replaced; None on systems without such paths."""
        if not hasattr(os, "O_DIRECTORY"):
            return None
        descriptor = os.open(self._real, os.O_RDONLY | os.O_DIRECTORY | getattr(os, "O_CLOEXEC", 0))
        self._descriptors.append(descriptor)
        place = Path(f"/proc/self/fd/{descriptor}")
        try:
            same = os.path.samestat(place.stat(), os.fstat(descriptor))
        except OSError:
            return None
        return place if same else None

    @property
    def is_pinned(self) -> bool:
        """Whether `place` names this folder even if another one takes its name."""
        return self.place != self._real

    def names(self) -> list[str]:
        """Names of all files in the folder."""
        return sorted(os.listdir(self.place))  # noqa: PTH208  a load waits for it

    def open(self, name: str, *, listed: bool = True, any_link: bool = False) -> FileState:
        """Open a file of the folder; returns its state.

        listed: the file has a checksum, or holds the checksums. Such a file may be a link to where the hub's cache
            keeps its content; any other link must stay inside the folder.
        any_link: follow every link.
        Raises FileNotFoundError; ValueError for anything but a regular file, and for a link that leads outside.
        """
        if name in self._states:
            return self._states[name]
        path = os.path.join(self.place, name)  # noqa: PTH118  a tenth of the time, and a load waits for it
        try:
            found = os.lstat(path)
            if stat.S_ISLNK(found.st_mode) or os.path.basename(name) != name:  # noqa: PTH119
                target = self._real / name if any_link else self._check_link(name, listed=listed)
                found = os.stat(target)  # noqa: PTH116
            if not stat.S_ISREG(found.st_mode):
                raise ModelFolderError(f"{self.folder / name} is not a file; {COPY_AGAIN}")
            descriptor = os.open(path, _READ_ONLY)
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.folder / name} is missing; a model folder has one: {COPY_AGAIN}") from None
        self._descriptors.append(descriptor)
        opened = os.fstat(descriptor)
        if not os.path.samestat(opened, found):
            raise FolderChangedError(f"{self.folder / name} was replaced while it was opened; load the folder again")
        self._files[name] = descriptor
        self._states[name] = state_of(opened)
        return self._states[name]

    def _check_link(self, name: str, *, listed: bool) -> Path:
        """The target of a link. Raises ValueError for a target outside the folder that is not in the hub's cache."""
        target = (self._real / name).resolve()
        # In huggingface_hub's cache models--OWNER--NAME/snapshots/COMMIT/FILE is a link to ../../blobs/DIGEST.
        is_blob = self._real.parent.name == "snapshots" and target.parent == self._real.parent.parent / "blobs"
        if not target.is_relative_to(self._real) and not (listed and is_blob):
            raise ModelFolderError(
                f"{self.folder / name} is a link to {target}, which is outside the model folder: "
                "copy the files themselves, or verify='off' follows it"
            )
        return target

    def read(self, name: str, *, most: int = MAX_TEXT_BYTES) -> bytes:
        """The content of a small file that is open, kept. Raises ValueError for more than `most` bytes."""
        if name not in self._contents:
            size = self.open(name).size
            if size > most:
                raise ModelFolderError(f"{self.folder / name} has {size:,} bytes; at most {most:,} are read")
            with self.stream(name) as file:
                self._contents[name] = file.read(most)
        return self._contents[name]

    def stream(self, name: str) -> BufferedReader:
        """A file that is open, from its beginning. The caller closes the stream, and the file stays open."""
        file = open(self._files[name], "rb", closefd=False)  # noqa: SIM115  of a descriptor
        file.seek(0)
        return file

    def digest(self, name: str) -> str:
        """SHA-256 of a file that is open, in hex."""
        if name in self._contents:
            return hashlib.sha256(self._contents[name]).hexdigest()
        with self.stream(name) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        """Bytes of an open file. Raises ModelFolderError for a file that ends before them."""
        if hasattr(os, "pread"):
            content = os.pread(self._files[name], size, offset)
        else:
            # Windows: threads would share the position of the descriptor.
            content = self._map(name)[offset : offset + size]
        if len(content) != size:
            raise ModelFolderError(f"{self.folder / name} became shorter after it was opened; {COPY_AGAIN}")
        return content

    def _map(self, name: str) -> mmap.mmap:
        if name not in self._maps:
            self._maps[name] = mmap.mmap(self._files[name], 0, access=mmap.ACCESS_READ)
        return self._maps[name]

    def descriptor(self, name: str) -> int:
        """The descriptor of an open file; it stays open until `close`."""
        return self._files[name]

    @property
    def opened(self) -> list[str]:
        """Names of the files that are open."""
        return list(self._files)

    def changed_file(self, *, name_counts: bool = False) -> str | None:
        """The name of an open file that has changed or been replaced since; "." for the folder, None for no change.

        name_counts: count a renamed folder as changed even if `place` still names it.
        """
        for name, descriptor in self._files.items():
            if state_of(os.fstat(descriptor)) != self._states[name]:
                return name
            try:
                now = os.stat(os.path.join(self.place, name))  # noqa: PTH116, PTH118
            except OSError:
                return name
            if not os.path.samestat(now, os.fstat(descriptor)):
                return name
        try:
            folder = state_of(os.stat(self.place))  # noqa: PTH116
        except OSError:
            return "."
        # Adding or removing a file sets the folder's time of modification; renaming the folder its time of change.
        if folder.modified != self._at_first.modified or folder.inode != self._at_first.inode:
            return "."
        may_be_renamed = self.is_pinned and not name_counts
        return None if may_be_renamed or folder.changed == self._at_first.changed else "."

    def was_written(self, name: str) -> bool:
        """Whether the content of an open file was changed in place since it was opened.

        Changes of its owner, mode or name do not count.
        """
        now = os.fstat(self._files[name])
        then = self._states[name]
        return now.st_size != then.size or now.st_mtime_ns != then.modified

    def check_unwritten(self, name: str) -> None:
        """Raise ModelFolderError if the content of an open file was changed in place since it was opened."""
        if self.was_written(name):
            raise ModelFolderError(
                f"{self.folder / name} was written to after the model was loaded; load it again, and replace model "
                "folders as a whole, as a build does"
            )

    def keep_open(self, names: Iterable[str]) -> None:
        """Close every other file, and the folder; `place` cannot be used any more."""
        kept = {self._files[name] for name in names}
        self._files = {name: descriptor for name, descriptor in self._files.items() if descriptor in kept}
        for descriptor in [descriptor for descriptor in self._descriptors if descriptor not in kept]:
            self._descriptors.remove(descriptor)
            os.close(descriptor)

    def close(self) -> None:
        """Close every file. `read` still returns content that it has read before."""
        self._maps.clear()
        self._files.clear()
        self._close()


def _close_all(descriptors: list[int]) -> None:
    while descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptors.pop())


def load_unchanged(folder: Path, load: Callable[[ModelFolder], T]) -> T:
    """The result of `load` for a folder that did not change while it ran.

    If the folder changes, `load` runs again, also after an error. `load` keeps the ModelFolder, or lets it be closed
    with the last reference. Raises the errors of `load`, with the folder's own name in place of `ModelFolder.place`;
    ValueError if the folder changed each time.
    """
    name = "a file"
    error: Exception | None = None
    for _ in range(_N_TRIES):
        files = ModelFolder(folder)
        try:
            result = load(files)
            error = None
        # Libraries raise errors of any class for a file that changes while they read it.
        except Exception as raised:
            error = raised
        # onnxruntime resolves the folder's name twice, and raises an error if the results differ.
        changed = files.changed_file(name_counts=error is not None)
        if changed is None and not isinstance(error, FolderChangedError):
            if error is None:
                return result
            files.close()
            raise _with_own_name(error, files)
        name = changed or name
        files.close()
        time.sleep(_PAUSE)
    raise FolderChangedError(
        f"{folder} changes while it is loaded ({name} did last); load it once it is complete"
    ) from error


def _with_own_name(error: Exception, files: ModelFolder) -> Exception:
    """The error, naming the folder as the caller does."""
    place = str(files.place)
    own = str(files.folder)

    def renamed(value: object) -> object:
        return value.replace(place, own) if isinstance(value, str) else value

    error.args = tuple(renamed(value) for value in error.args)
    if isinstance(error, OSError) and error.filename is not None:
        error.filename = renamed(str(error.filename))
    return error
