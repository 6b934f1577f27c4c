"""Errors of a build as one line on the terminal, and as an exit code."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Callable

from export.interrupts import MESSAGE

_MISSING = "{name} is not installed; pip install -e '.[export-light]' in the clone installs all that building needs"
_OWN = ("export", "runtime")


def exit_code(work: Callable[[], None]) -> int:
    """Do the work; returns 0 if it is done, 1 if it failed, 128 + its number for a signal.

    Raises errors that are faults of this program, not of the input or the machine.
    """
    try:
        work()
    except KeyboardInterrupt as error:
        print(f"\n{MESSAGE}", file=sys.stderr)
        return 128 + int(error.args[0] if error.args else signal.SIGINT)
    except MemoryError:
        print("error: not enough memory; nothing was changed", file=sys.stderr)
        return 1
    except Exception as error:
        if not _is_expected(error):
            raise
        print(f"error: {explain(error)}", file=sys.stderr)
        return 1
    return 0


def explain(error: BaseException) -> str:
    """The message of an error on one line, with the cure for the common failures of large writes."""
    if _is_missing_package(error):
        return _MISSING.format(name=getattr(error, "name", None))
    # Imported here: it needs numpy, which may be the missing package.
    from runtime.cli.output import plain

    # The message may quote control characters from a file.
    message = plain(" ".join(str(error).split()))
    code = error.errno if isinstance(error, OSError) else None
    if code == errno.ENOSPC or "No space left" in message:
        return f"the disk is full ({message}); free some space, or name an --output on another disk"
    if code == errno.EFBIG:
        return f"the file system does not take a file so big ({message}); name an --output on another disk"
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission ({message}); name another --output, or change who may write there"
    return message


def _is_expected(error: Exception) -> bool:
    """Whether the error is about the user's input or machine. Others are faults of this program."""
    if isinstance(error, ModuleNotFoundError) and str(error.name).split(".")[0] in _OWN:
        return False
    if isinstance(error, (OSError, ValueError, RuntimeError, ImportError)):
        return True
    # Its base class is Exception. Where the package was not imported, its errors cannot be raised.
    safetensors = sys.modules.get("safetensors")
    return safetensors is not None and isinstance(error, safetensors.SafetensorError)


def _is_missing_package(error: BaseException) -> bool:
    """Whether an import failed, as opposed to a ModuleNotFoundError of our own that says what to do."""
    return isinstance(error, ModuleNotFoundError) and error.name is not None
