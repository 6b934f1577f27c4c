"""The command `gpt2-edge`, watched: `python -m tests.trials.watched serve ...`.

Once the server listens, what it writes, starts or connects to, and what it reads outside of Python and this project, is
told on standard error, a line each that begins with AUDIT.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from pathlib import Path
from typing import Any

import runtime
import runtime.server.transport.listener as listener
from runtime.cli.parser import main

AUDIT = "audit:"
OURS = tuple(str(Path(place).resolve()) for place in (sys.prefix, sys.base_prefix, Path(runtime.__file__).parent))
NEVER = ("os.", "shutil.", "tempfile.", "subprocess.", "socket.bind", "socket.getaddrinfo", "socket.gethostby")
FINE = ("os.listdir", "os.scandir", "os.walk")  # of imports
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def is_wrong(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether a server has no business with this."""
    if event == "open":
        path, mode, flags = arguments
        writes = set(mode) & set("wax+") if isinstance(mode, str) else flags & WRITES
        return bool(writes) or not str(path).startswith(OURS)
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        return not is_loopback(arguments[1])
    return event.startswith(NEVER) and event not in FINE


def is_loopback(address: Any) -> bool:
    """Windows makes its pairs of sockets over loopback."""
    return isinstance(address, tuple) and ipaddress.ip_address(address[0]).is_loopback


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Tell of an event that is wrong."""
    if is_wrong(event, arguments):
        print(AUDIT, event, ascii(arguments)[:200], file=sys.stderr, flush=True)


class Watched(listener.Server):
    """A server that is watched as soon as it runs."""

    def run(self, sockets: Any = None) -> None:
        """See `uvicorn.Server`."""
        sys.addaudithook(watch)
        super().run(sockets)


if __name__ == "__main__":
    listener.Server = Watched  # type: ignore[misc]
    sys.exit(main())
