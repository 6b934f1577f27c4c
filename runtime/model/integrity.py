"""Are the files of a model folder those that were built? Asked before any other code reads them.

Checksums prove that the files are whole, not who made them: `expect` pins a folder to one that is known.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal, get_args

from runtime.graph.reader import OnnxModel, read_model
from runtime.model import stamp

Verify = Literal["full", "size", "off"]
CHECKSUMS = "SHA256SUMS"
COPY_AGAIN = "copy the model folder again"
LINE_ENDS = (
    "has other line ends than it was built with, as git makes them on Windows: "
    "clone the folder again with git -c core.autocrlf=false clone, or download it"
)
_READ = {"config.json", "tokenizer.json"}  # by every load, besides the graph
_READ_IF_THERE = {"generation_config.json"}
_BUILT = {
    "README.md",
    "chat_template.jinja",
    "genai_config.json",
    "golden.json",
    "model.onnx",
    "model.onnx_data",
    "quality.json",
    "tokenizer_config.json",
}
# files whose line ends git changes
_TEXTS = {".json", ".md", ".jinja"}
# a name with control characters could command the terminal that an error names it on
_LINE = re.compile(r"([0-9a-f]{64})  ([^\x00-\x1f\x7f-\x9f]+)")
Stats = dict[str, os.stat_result]


def verify(graph: Path, how: Verify | None, expect: str | None) -> OnnxModel | None:
    """Check the folder that a graph is in; see `runtime.load` for the arguments, and for what is raised.

    Returns the graph as it was read; None where `how` is "off", which trusts the folder.
    """
    if how is not None and how not in get_args(Verify):
        raise ValueError(f"verify is {how!r}; {', '.join(map(repr, get_args(Verify)))} or None is expected")
    if expect is not None:
        _check_pin(graph.parent, how, expect)
    if how == "off":
        return None
    folder = graph.parent.resolve()
    checksums = read_checksums(folder)
    if how == "full" and checksums is None:
        raise ValueError(f"{folder} has no {CHECKSUMS} to verify: leave verify out for an export that is not our own")
    if checksums is None:
        _regular_files(folder, _READ | {graph.name} | _present(folder, _READ_IF_THERE), listed=False)
    else:
        _verify_built(folder / graph.name, how, checksums)
    return _read_graph(folder / graph.name, checksums)


def _verify_built(graph: Path, how: Verify | None, checksums: Mapping[str, str]) -> None:
    """Size and time of change suffice where these very files were checked before."""
    folder, real = graph.parent, str(graph.parent)
    _check_listed(folder, _READ | {graph.name} | _present(folder, _READ_IF_THERE | _BUILT), checksums)
    now, kept = stamp.make(_regular_files(folder, checksums), checksums), stamp.read(real)
    if kept == now and how != "full":
        return
    if how == "size":
        _check_sizes(folder, now, kept)
    elif damaged := differing(folder, checksums):
        if _has_other_line_ends(folder / damaged[0], checksums[damaged[0]]):
            raise ValueError(f"{folder / damaged[0]} {LINE_ENDS}")
        raise ValueError(f"{folder / damaged[0]} is damaged: it differs from its checksum; {COPY_AGAIN}")
    if how != "size":
        stamp.write(real, now)


def read_checksums(folder: Path) -> dict[str, str] | None:
    """SHA-256 in hex by file name, as `SHA256SUMS` has them; None where there is no such file.

    Raises ValueError for a file that holds something else, or names files outside the folder.
    """
    path = folder / CHECKSUMS
    if not path.exists():
        return None
    _regular_files(folder, [CHECKSUMS])
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}; {COPY_AGAIN}") from None
    if "\r\n" in text:
        raise ValueError(f"{path} {LINE_ENDS}")
    if not text.endswith("\n"):
        raise ValueError(f"{path} is damaged: its last line has no end; {COPY_AGAIN}")
    checksums: dict[str, str] = {}
    for number, line in enumerate(text[:-1].split("\n"), 1):
        match = _LINE.fullmatch(line)
        if match is None or match[2] in checksums or not _is_inside(match[2]):
            raise ValueError(f"{path}, line {number} is damaged: no digest and name of a file in here; {COPY_AGAIN}")
        checksums[match[2]] = match[1]
    return checksums


def differing(folder: Path, checksums: Mapping[str, str]) -> list[str]:
    """Names of the files that are missing or differ from their checksum."""
    return [name for name, checksum in checksums.items() if _digest(folder / name) != checksum]


def _digest(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _has_other_line_ends(path: Path, checksum: str) -> bool:
    """Whether a text would have its checksum with line ends of one character."""
    if path.suffix not in _TEXTS or not path.is_file():
        return False
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest() == checksum


def _check_pin(folder: Path, how: Verify | None, expect: str) -> None:
    if not isinstance(expect, str) or not re.fullmatch("[0-9a-fA-F]{64}", expect):
        raise ValueError(f"expect is {expect!r}; the SHA-256 of {CHECKSUMS}, 64 hexadecimal digits, is expected")
    if how in ("size", "off"):
        raise ValueError(f"expect pins the checksums, which verify={how!r} does not compare; leave verify out")
    found = _digest(folder / CHECKSUMS)
    if found is None:
        raise FileNotFoundError(f"{folder / CHECKSUMS} is missing, which expect pins")
    if found != expect.lower():
        raise ValueError(f"{folder / CHECKSUMS} has SHA-256 {found}, not the expected {expect}: it is another model")


def _present(folder: Path, names: Iterable[str]) -> set[str]:
    return set(names) & set(os.listdir(folder))  # noqa: PTH208  a load waits for it


def _check_listed(folder: Path, names: Iterable[str], checksums: Mapping[str, str]) -> None:
    """What a load reads, and what builds write, must have a checksum."""
    if unlisted := sorted(set(names) - checksums.keys()):
        raise ValueError(f"{folder / unlisted[0]} is not listed in {CHECKSUMS}: it was added later; {COPY_AGAIN}")


def _regular_files(folder: Path, names: Iterable[str], *, listed: bool = True) -> Stats:
    """Of each file, what the system tells. Raises for one that is missing, no file, or a link out of the folder.

    listed: they are in SHA256SUMS, or it itself; then a link to where the hub's cache keeps their content will do.
    """
    stats: Stats = {}
    for name in names:
        path = os.path.join(folder, name)  # noqa: PTH118  a tenth of the time, and a load waits for it
        try:
            found = os.lstat(path)
            if stat.S_ISLNK(found.st_mode) or os.path.basename(name) != name:  # noqa: PTH119
                _check_link(folder, Path(path), listed=listed)
                found = os.stat(path)  # noqa: PTH116
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} is missing; a model folder has one: {COPY_AGAIN}") from None
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{path} is not a file; {COPY_AGAIN}")
        stats[name] = found
    return stats


def _check_link(folder: Path, path: Path, *, listed: bool) -> None:
    inside, target = folder.resolve(), path.resolve()
    # huggingface_hub: models--OWNER--NAME/snapshots/COMMIT/FILE is a link to ../../blobs/DIGEST
    is_blob = inside.parent.name == "snapshots" and target.parent == inside.parent.parent / "blobs"
    if not target.is_relative_to(inside) and not (listed and is_blob):
        raise ValueError(
            f"{path} is a link to {path.resolve()}, which is outside the model folder: "
            "copy the files themselves, or verify='off' follows it"
        )


def _check_sizes(folder: Path, now: stamp.Stamp, kept: stamp.Stamp | None) -> None:
    """Compare with the sizes that were recorded of files with the same checksums, if any."""
    for name, (size, _, checksum) in now.items():
        known = (kept or {}).get(name)
        if known is not None and known[2] == checksum and known[0] != size:
            raise ValueError(f"{folder / name} is damaged: it has {size} bytes, not {known[0]}; {COPY_AGAIN}")


def _read_graph(graph: Path, checksums: Mapping[str, str] | None) -> OnnxModel:
    """At every load: it takes some milliseconds. Raises ValueError for weights outside the folder."""
    model = read_model(graph)
    for location in model.locations:
        if not _is_inside(location):
            raise ValueError(f"{graph} has its weights in {location!r}, which is outside the model folder")
    _regular_files(graph.parent, model.locations, listed=checksums is not None)
    if checksums is not None:
        _check_listed(graph.parent, model.locations, checksums)
    return model


def _is_inside(name: str) -> bool:
    """Whether a relative path stays in its folder, on any system."""
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    rooted = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
    return not rooted and ".." not in parts and "\0" not in name
