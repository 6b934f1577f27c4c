"""Python for arm64, with what the runtime imports: Debian's packages and PyPI's wheels, unpacked and not installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

# Python 3.11 is Debian 12's; its keyring is on every Debian.
SOURCE = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main\n"
PACKAGES = (
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib"),
    *("libc6", "libexpat1", "libffi8", "libgcc-s1", "libssl3", "libstdc++6", "zlib1g"),
)
WHEELS = ("numpy", "onnxruntime", "tokenizers")  # in the versions that are installed here
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux2014_aarch64")


def make_root(place: Path) -> Path:
    """`place/root`, made once: 200 MB, after downloads of 55 MB. No root rights, nothing outside `place` changes.

    Raises FileNotFoundError for a missing command, RuntimeError with the last words of one that failed.
    """
    root, partial = place / "root", place / "partial"
    if root.is_dir():
        return root
    shutil.rmtree(partial, ignore_errors=True)
    for package in download_packages(partial / "apt", PACKAGES, "arm64"):
        run("dpkg-deb", "-x", str(package), str(partial / "root"))
    _download_wheels(partial / "root" / "wheels")
    (partial / "root").rename(root)
    shutil.rmtree(partial)
    return root


def download_packages(apt: Path, packages: Sequence[str], architecture: str) -> list[Path]:
    """Files of Debian 12's packages, by an apt whose lists and state are its own, in the folder `apt`."""
    for name in ("lists/partial", "cache/archives/partial", "packages"):
        (apt / name).mkdir(parents=True)
    (apt / "status").touch()
    (apt / "sources.list").write_text(SOURCE, encoding="utf-8")
    settings = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "root",  # another user may not read this place
        "Dir::Cache": apt / "cache",
        "Dir::Etc::sourcelist": apt / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State": apt,
        "Dir::State::status": apt / "status",
    }
    command = ["apt-get", "--quiet", *(f"-o{name}={value}" for name, value in settings.items())]
    run(*command, "update")
    run(*command, "download", *packages, folder=apt / "packages")
    return sorted((apt / "packages").iterdir())


def _download_wheels(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
    platforms = [f"--platform={platform}" for platform in PLATFORMS]
    pinned = [f"{name}=={version(name)}" for name in WHEELS]
    run(*command, *platforms, "--python-version=3.11", f"--target={folder}", *pinned)


def run(*command: str, folder: Path | None = None) -> None:
    """Run a command. Raises FileNotFoundError where it is missing, RuntimeError with its last words where it fails."""
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{command[0]} is not there: what emulation needs is made from Debian's packages"
        ) from None
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{' '.join(command)} failed: {error.stderr.strip()[-500:]}") from None
