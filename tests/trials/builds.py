"""Builds that end badly: `python -m tests.trials.builds --count 100`. POSIX only.

One model is replaced by another, again and again, by builds that are killed, run out of disk, lose a permission or
meet a second build. After each, what `load` finds is the old model whole or the new one whole; what a build left
beside it, the next clears away. Builds are forks of this process, its modules imported: every moment is a build's own.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import itertools
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import runtime
from export import build, needs, pipeline  # noqa: F401  the pipeline is imported once, before the forks
from export.folder import folder
from tests.support.building import QUICK, contents, write_tiny
from tests.trials.process import finish, fork
from tests.trials.table import Row, record

NOBODY = 65534  # root may do what permissions forbid
OLD, NEW, LOST = "the old model", "the new one", "neither, or something left"
WHOLE_DISK = 8000  # kilobytes


Ending = Callable[["Site", str, random.Random], int]  # of a build that makes a precision; its exit code


@dataclasses.dataclass
class Site:
    """A place with a model, and the two that replace each other there."""

    place: Path
    checkpoint: Path
    whole: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)  # files by precision
    seconds: float = 0.0  # that a build takes
    become: Callable[[], object] = lambda: None  # the user whose builds these are

    @property
    def output(self) -> Path:
        return self.place / "models" / "model"

    def found(self) -> str | None:
        """The precision of the whole model that a load finds, None where there is none."""
        code = finish(fork(lambda: runtime.load(self.output, threads=1, verify="full").close() or 0))
        files = contents(self.output) if code == 0 else {}
        return next((precision for precision, whole in self.whole.items() if files == whole), None)

    def start(self, precision: str, prepare: Callable[[], object] = lambda: None) -> int:
        """A build's process, which becomes its user and prepares itself first."""
        typed = [str(self.checkpoint), *QUICK, "--precision", precision, "--output", str(self.output), "--force"]

        def work() -> int:
            sys.argv = ["export/build.py", *typed]
            self.become()
            prepare()
            return build.run()

        return fork(work)


def main() -> int:
    """Print a row a kind; returns 1 where a model was lost or something left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="builds of each kind (default: 100)")
    parser.add_argument("--kind", choices=KINDS, action="append", help="default: all")
    given = parser.parse_args()
    rows, n_lost = [], 0
    for kind in given.kind or KINDS:
        if (counts := try_kind(kind, given.count)) is not None:
            told = ", ".join(f"{counts[what]:,} times {what}" for what in (OLD, NEW, LOST))
            rows.append(Row(KINDS[kind][0], given.count, told))
            n_lost += counts[LOST]
            print(f"{rows[-1].tried}: {given.count:,}: {told}", flush=True)
    record("builds", rows)
    return int(n_lost > 0)


def try_kind(kind: str, count: int, seed: int = 0) -> collections.Counter[str] | None:
    """What so many builds of a kind left; None where this system cannot make it."""
    about, ending = KINDS[kind]
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        try:
            site, rng = stack.enter_context(open_site(Path(place), kind)), random.Random(seed)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{about}: cannot be made here: {error}", file=sys.stderr)
            return None
        return collections.Counter(try_once(site, ending, rng) for _ in range(count))


def try_once(site: Site, ending: Ending, rng: random.Random) -> str:
    """Replace the model, end the build, and look what is there; then build whole, and look what is left."""
    old = site.found()
    new = "int8" if old == "fp32" else "fp32"
    code = ending(site, new, rng)
    found = site.found()
    if code == 0 and found != new:  # it said that all was well
        return LOST
    if rng.random() < 0.2:  # else the next such build clears up, or is ended before it can
        ended_well = finish(site.start(new)) == 0 and site.found() == new
        if not ended_well or os.listdir(site.output.parent) != [site.output.name]:  # noqa: PTH208
            return LOST
    return {old: OLD, new: NEW}.get(found, LOST)


@contextmanager
def open_site(place: Path, kind: str) -> Iterator[Site]:
    """A place with the two models built, on a small disk of its own where that is to be full."""
    site = Site(place, place / "tiny", become=as_nobody if kind == "permissions" else lambda: None)
    finish(fork(lambda: int(write_tiny(site.checkpoint) is None)))  # this process is to have no threads
    site.output.parent.mkdir()
    if os.getuid() == 0 and kind == "permissions":
        for path in (place, *place.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    with ExitStack() as stack:
        if kind == "disk":
            resize(site, WHOLE_DISK)
            stack.callback(subprocess.run, ["umount", site.output.parent], check=True)
        for precision in ("int8", "fp32"):
            start = time.perf_counter()
            if finish(site.start(precision)) != 0:
                raise OSError("a whole build fails")
            site.seconds = time.perf_counter() - start
            site.whole[precision] = contents(site.output)
        yield site


# how builds end ------------------------------------------------------------------------------------------------------


def kill(site: Site, precision: str, rng: random.Random) -> int:
    """SIGKILL, any time."""
    process = site.start(precision)
    time.sleep(rng.uniform(0, site.seconds))
    os.kill(process, signal.SIGKILL)
    return finish(process)


def kill_in_gap(site: Site, precision: str, rng: random.Random) -> int:
    """SIGKILL between the two renames of a system that cannot exchange names, or beside them."""
    moment, renames = rng.randrange(1, 4), itertools.count(1)

    def die(event: str, _arguments: object) -> None:
        if event == "os.rename" and next(renames) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def prepare() -> None:
        folder._swap_atomically = lambda _first, _second: False
        sys.addaudithook(die)

    return finish(site.start(precision, prepare))


def limit_file_size(site: Site, precision: str, rng: random.Random) -> int:
    """No file may pass a size: writing fails somewhere, as on a full disk."""
    most = max(len(data) for data in site.whole[precision].values())
    size = rng.randrange(most + most // 4)
    return finish(site.start(precision, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))))


def fill_disk(site: Site, precision: str, rng: random.Random) -> int:
    """A disk with hardly any space."""
    resize(site, rng.randrange(4, 800))

    def prepare() -> None:
        needs.free_disk = lambda _output: 10**15  # else the build refuses before it begins

    code = finish(site.start(precision, prepare))
    resize(site, WHOLE_DISK)
    return code


def resize(site: Site, free: int) -> None:
    """A disk of so many free kilobytes where the models are."""
    disk = site.output.parent
    used = sum(path.stat().st_blocks // 2 for path in disk.rglob("*"))
    how = ["-o", "remount"] if os.path.ismount(disk) else ["-t", "tmpfs", "none"]
    subprocess.run(["mount", *how, "-o", f"size={used + free}k", disk], check=True, capture_output=True)


def take_permission(site: Site, precision: str, rng: random.Random) -> int:
    """A folder may not be written, or the checkpoint not be read, from some moment on."""
    process = site.start(precision)
    time.sleep(rng.uniform(0, site.seconds))
    taken = rng.choice([site.output.parent, site.output, site.checkpoint, site.output.with_name(".model.building")])
    try:
        before = stat.S_IMODE(taken.stat().st_mode)
        taken.chmod(0o555 if taken != site.checkpoint else 0)
    except FileNotFoundError:  # the workspace, before it is there or afterwards
        return finish(process)
    code = finish(process)
    if taken.exists():
        taken.chmod(before)
    return code


def as_nobody() -> None:
    """Give up root's rights: they pass over permissions."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def build_twice(site: Site, precision: str, rng: random.Random) -> int:
    """A second build of the same output begins while the first is at work."""
    first = site.start(precision)
    time.sleep(rng.uniform(0, site.seconds))
    second = site.start("int8" if precision == "fp32" else "fp32")
    codes = finish(first), finish(second)
    return 1 if 0 in codes else 0  # which of them was the last is not known; one at least ends well


KINDS: dict[str, tuple[str, Ending]] = {
    "killed": ("build killed (SIGKILL) at a random moment", kill),
    "gap": ("build killed at one of its renames, where names cannot be exchanged", kill_in_gap),
    "size": ("build that may write no file above a random size", limit_file_size),
    "disk": ("build on a disk that fills up", fill_disk),
    "permissions": ("build that loses a permission at a random moment", take_permission),
    "twice": ("two builds of one output at once", build_twice),
}

if __name__ == "__main__":
    sys.exit(main())
