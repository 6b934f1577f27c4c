"""What went wrong, in words for whoever typed the command."""

from __future__ import annotations

import errno

from runtime.cli.output import plain


def explain(error: BaseException) -> str:
    """The message on one line, with the cure for what commonly goes wrong with a big write."""
    message = plain(" ".join(str(error).split()))  # it may quote the names in a file
    code = error.errno if isinstance(error, OSError) else None
    if code == errno.ENOSPC or "No space left" in message:
        return f"the disk is full ({message}); free some space, or name an --output on another disk"
    if code == errno.EFBIG:
        return f"the file system does not take a file so big ({message}); name an --output on another disk"
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission ({message}); name another --output, or change who may write there"
    return message
