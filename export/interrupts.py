"""Signals during a build: Ctrl-C and others end it with one line, without a traceback and without half a model.

While modules are imported, the process exits at once. While the model is built, the signal becomes a
KeyboardInterrupt, so that temporary files are removed. While the model is published, it is ignored.
"""

from __future__ import annotations

import os
import signal
import sys

MESSAGE = "interrupted: nothing was changed"
# Windows has no SIGHUP.
_OTHERS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def exit_at_once() -> None:
    """From here on Ctrl-C ends the process at once. A Ctrl-C that is ignored, as under nohup, stays ignored.

    Modules may report a KeyboardInterrupt in the middle of their import as an error of their own.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


def raise_keyboard_interrupt() -> None:
    """From here on Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt; does nothing without `exit_at_once` before."""
    if signal.getsignal(signal.SIGINT) is not _exit:
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in _OTHERS:
        # nohup ignores SIGHUP
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _raise)


def ignore() -> None:
    """From here on these signals come too late: publishing is some renames, and what follows only cleans up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in _OTHERS:
        if signal.getsignal(number) is _raise:
            signal.signal(number, signal.SIG_IGN)


def _exit(number: int, _frame: object) -> None:
    print(MESSAGE, file=sys.stderr, flush=True)
    os._exit(128 + number)


def _raise(number: int, _frame: object) -> None:
    raise KeyboardInterrupt(number)
