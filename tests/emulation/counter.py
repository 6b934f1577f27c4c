"""QEMU with plugins, and the plugin count.c: QEMU's static emulators, which `make emulate` uses, load none."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.emulation.arm64 import download_packages, run
from tests.emulation.processors import PLACE, Processor, environment, find_emulator, python_on

SOURCE = Path(__file__).with_name("count.c")
# The emulators, and the libraries of theirs that a small Debian may lack.
PACKAGES = ("qemu-user", "libcapstone4", "libglib2.0-0", "libnuma1", "libpcre2-8-0", "liburing2")
LIBRARIES = Path("usr", "lib", "x86_64-linux-gnu")


def prepare(place: Path = PLACE) -> None:
    """Unpack the emulators from Debian's packages and compile the plugin, once: 100 MB, after downloads of 15 MB.

    Raises FileNotFoundError where the machine is not Linux on x86-64 or has no C compiler, RuntimeError where a command
    fails.
    """
    find_emulator("x86_64")
    root = place / "counter"
    if not root.is_dir():
        partial = place / "partial-counter"
        shutil.rmtree(partial, ignore_errors=True)
        for package in download_packages(partial / "apt", PACKAGES, "amd64"):
            run("dpkg-deb", "-x", str(package), str(partial / "root"))
        (partial / "root").rename(root)
        shutil.rmtree(partial)
    plugin = _plugin(place)
    if not plugin.is_file() or plugin.stat().st_mtime < SOURCE.stat().st_mtime:
        compiler = shutil.which("cc")
        if compiler is None:
            raise FileNotFoundError("a C compiler is needed to count instructions: apt-get install gcc libc6-dev")
        run(compiler, "-O2", "-Wall", "-shared", "-fPIC", str(SOURCE), "-o", str(plugin))


def _plugin(place: Path) -> Path:
    return place / "counter" / "libcount.so"


def count_python(processor: Processor, arguments: list[str], place: Path = PLACE, limit: float = 1800) -> list[int]:
    """Run Python on an emulated processor; returns how many instructions it had executed at each mark.

    arguments: of Python. limit: seconds. Raises RuntimeError where it fails or takes longer.
    """
    with tempfile.TemporaryDirectory(dir=place) as work:
        counts = Path(work, "counts.txt")
        _run_counted(processor, arguments, place, counts, limit)
        return [int(line) for line in counts.read_text(encoding="ascii").split()]


def _run_counted(processor: Processor, arguments: list[str], place: Path, counts: Path, limit: float) -> None:
    root = place / "counter"
    emulator = root / "usr" / "bin" / f"qemu-{processor.machine}"
    # -U: the emulated program has libraries of its own.
    options = ["-U", "LD_LIBRARY_PATH", "-plugin", f"{_plugin(place)},out={counts}"]
    command = [*python_on(processor, [str(emulator), *options]), *arguments]
    variables = environment(processor) | {"LD_LIBRARY_PATH": str(root / LIBRARIES)}
    try:
        done = subprocess.run(
            command,
            env=variables,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            cwd=Path(__file__).parents[2],
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{processor.name} took longer than {limit:.0f} s") from None
    if done.returncode:
        raise RuntimeError(f"{processor.name} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
