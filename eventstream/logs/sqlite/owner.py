"""One owner for each file: a lock that ends with its process.

The lock is on a file beside the log's (`<path>.lock`), since SQLite needs the locks on the log's own for itself. The
operating system lets it go when the process ends, however it ends; so there is no stale lock to be cleaned up, and the
file that stays behind means nothing. Its text, the owner's process id, is only for the message of who comes second.

It is a file's lock, not a path's: symbolic links are followed first. A process that was forked has the lock's
descriptor too, so it is let go explicitly: closing ours would leave it with the child.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Final

from ...errors import LogInUse, LogRefused

__all__ = ("Ownership", "is_ours")

_ours: Final[set[str]] = set()  # the files that logs of this process own

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # far behind the text, which others may so read
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


class Ownership:
    """Held from the call on.

    Raises:
        LogInUse: if somebody else holds it, in this process or in another.
        LogRefused: if the lock's file cannot be made.
    """

    __slots__ = ("_descriptor", "_file", "_process")

    def __init__(self, path: str) -> None:
        file = os.path.realpath(path)
        try:
            descriptor = os.open(f"{file}.lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        except OSError as error:
            raise LogRefused(path, "unreachable", f"its lock cannot be made: {error.strerror}") from error
        try:
            _lock(descriptor)
        except (BlockingIOError, PermissionError):
            owner = _read_owner(descriptor)
            os.close(descriptor)
            raise LogInUse(path, owner) from None
        except OSError as error:
            os.close(descriptor)
            raise LogRefused(path, "unreachable", f"it cannot be locked: {error.strerror}") from error
        self._descriptor: int | None = descriptor
        self._file = file
        self._process = os.getpid()
        _ours.add(file)
        with suppress(OSError):  # a full disk: the lock is held, and only the name for others is missing
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Lets the next one in. Idempotent."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            _ours.discard(self._file)
            if self._process == os.getpid():  # else we were forked, and the lock is our parent's
                with suppress(OSError):  # closing lets it go as well
                    _unlock(descriptor)
            os.close(descriptor)


def is_ours(path: str) -> bool:
    """Whether a log of this process owns the file."""
    return os.path.realpath(path) in _ours


def _read_owner(descriptor: int) -> int:
    os.lseek(descriptor, 0, os.SEEK_SET)
    text = os.read(descriptor, 32).decode("ascii", "replace").strip()
    return int(text) if text.isdecimal() else 0
