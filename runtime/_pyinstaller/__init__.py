"""Where PyInstaller finds the hook of this package: it asks by the entry point `pyinstaller40`."""

from __future__ import annotations

from pathlib import Path


def hook_folders() -> list[str]:
    """The folder of `hook-runtime.py`.

    >>> hook_folders()  # doctest: +SKIP
    ['/usr/lib/python3/dist-packages/runtime/_pyinstaller']
    """
    return [str(Path(__file__).parent)]
