"""The files of a model folder, each opened once, so that what was checked is what is read.

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
# More than any JSON file or template of a model folder has; tokenizer.json is not read here.
MAX_TEXT_BYTES = 4 << 20
_N_TRIES = 5
# seconds before a load begins again: a build replaces a folder in less
_PAUSE = 0.05
# O_NONBLOCK: opening a named pipe must not wait for a writer. O_BINARY exists on Windows only.
_READ_ONLY = (
    os.O_RDONLY
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_BINARY", 0)
)
T = TypeVar("T")


class FileState(NamedTuple):
    """What the file system records of a file. Nobody without the administrator's rights can set `changed` back."""

    device: int
    inode: int
    size: int
    modified: int  # st_mtime_ns
    changed: int  # st_ctime_ns; on Windows the time of creation
    owner: int  # st_uid; 0 on Windows


def state_of(found: os.stat_result) -> FileState:
    """The state in what `os.stat` returns."""
    return FileState(
        found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, getattr(found, "st_uid", 0)
    )


class FolderChangedError(ModelFolderError):
    """A file was replaced, or written to, between two looks at it."""


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
        self._descriptors: list[int] = []
        self._close = weakref.finalize(self, _close_all, self._descriptors)
        self.place = self._open_folder() or self._real
        self._at_first = state_of(os.stat(self.place))  # noqa: PTH116  a load waits for it

    def _open_folder(self) -> Path | None:
        """A path that stays that of this very folder, where the system has one."""
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
        """Whether `place` names this very folder, whatever takes the folder's name."""
        return self.place != self._real

    def names(self) -> list[str]:
        """Names of all files in the folder."""
        return sorted(os.listdir(self.place))  # noqa: PTH208  a load waits for it

    def open(self, name: str, *, listed: bool = True, any_link: bool = False) -> FileState:
        """Open a file of the folder, and say what its state is.

        listed: the file has a checksum, or holds the checksums. Such a file may be a link to where the hub's cache
            keeps its content; any other link must stay inside the folder.
        any_link: follow every link.
        Raises FileNotFoundError; ValueError for what is not a regular file, and for a link that leads outside.
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
        """Where a link leads. Raises ValueError for a place outside the folder that is not the hub's cache."""
        target = (self._real / name).resolve()
        # huggingface_hub: models--OWNER--NAME/snapshots/COMMIT/FILE is a link to ../../blobs/DIGEST
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

    def descriptor(self, name: str) -> int:
        """Of a file that is open; it stays open until `close`."""
        return self._files[name]

    @property
    def opened(self) -> list[str]:
        """Names of the files that are open."""
        return list(self._files)

    def changed_file(self, *, name_counts: bool = False) -> str | None:
        """The name of a file that was opened and has changed since, or no longer has its name; "." is the folder.

        name_counts: that the folder was renamed is a change, also where `place` is that of the folder all the same.
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
        # A file that was added or removed sets the time of modification, a folder that was renamed that of change.
        if folder.modified != self._at_first.modified or folder.inode != self._at_first.inode:
            return "."
        may_be_renamed = self.is_pinned and not name_counts
        return None if may_be_renamed or folder.changed == self._at_first.changed else "."

    def was_written(self, name: str) -> bool:
        """Whether the content of a file that is open was changed in place since.

        A change of owner, mode or name alone is none.
        """
        now = state_of(os.fstat(self._files[name]))
        then = self._states[name]
        return (now.size, now.modified) != (then.size, then.modified)

    def keep_open(self, names: Iterable[str]) -> None:
        """Close every other file, and the folder: `place` is of no use from now on."""
        kept = {self._files[name] for name in names}
        self._files = {name: descriptor for name, descriptor in self._files.items() if descriptor in kept}
        for descriptor in [descriptor for descriptor in self._descriptors if descriptor not in kept]:
            self._descriptors.remove(descriptor)
            os.close(descriptor)

    def close(self) -> None:
        """Close every file. What `read` has returned, it still returns."""
        self._files.clear()
        self._close()


def _close_all(descriptors: list[int]) -> None:
    while descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptors.pop())


def load_unchanged(folder: Path, load: Callable[[ModelFolder], T]) -> T:
    """What `load` makes of the files of a folder that did not change while it ran.

    A change starts it again, also where it led to an error. `load` keeps the ModelFolder, or lets it be closed with
    the last reference. Raises what `load` raises, with the folder's own name in place of `ModelFolder.place`;
    ValueError where the folder changed each time.
    """
    name = "a file"
    error: Exception | None = None
    for _ in range(_N_TRIES):
        files = ModelFolder(folder)
        try:
            result = load(files)
            error = None
        # Libraries raise whatever they like of a file that changes while they read it.
        except Exception as raised:
            error = raised
        # onnxruntime asks for the folder's name twice, and raises where the answers differ.
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
