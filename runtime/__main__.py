"""The command `gpt2-edge`, which is `python -m runtime` too: Ctrl-C ends it without a traceback at any time."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

INTERRUPTED = 130


def main() -> int:
    """Run the command; returns its exit status. Ctrl-C raises KeyboardInterrupt only where the command handles it.

    While modules are imported, and while the interpreter ends, the exception would be reported by whatever it hit.
    """
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_default:
        signal.signal(signal.SIGINT, _leave)
    try:
        from runtime.cli import main as run

        if is_default:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return run()
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        if is_default:
            signal.signal(signal.SIGINT, _leave)


def _leave(_number: int, _frame: object) -> NoReturn:
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
