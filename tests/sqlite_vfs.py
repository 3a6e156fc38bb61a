"""A disk that fails: SQLite's own file system layer, with a write or an fsync that fails when it is told to.

It is put before the system's by `ctypes`, in the very library that `sqlite3` uses, so SQLite itself has to deal with
what a failing disk does to it: half a transaction written, a commit of which it is not known whether it happened.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

NAME = b"failing"
VFS_BYTES = 168  # of the structure sqlite3_vfs, version 3
METHODS_BYTES = 152  # of sqlite3_io_methods, version 3
X_OPEN, X_WRITE, X_SYNC, Z_NAME = 40, 24, 40, 24  # where in them

Open = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
Write = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64)
Sync = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)

FAILURES = [("write", 10 | 3 << 8), ("write", 13), ("sync", 10 | 4 << 8)]  # with SQLite's codes; 13: the disk is full
EVERY = int(os.environ.get("EVENTSTREAM_EVERY", "6"))  # of the operations of a test fails every so many

_kept: list[Any] = []  # what the library refers to
_methods: dict[int, Any] = {}


def fails(_: str) -> int:
    """Asked before each "write" and "sync": an error code of SQLite, or 0. Tests put their own in its place."""
    return 0


def available() -> bool:
    """Whether `sqlite3` uses a library that can be found."""
    name = ctypes.util.find_library("sqlite3")
    if name is None:
        return False
    try:
        library = ctypes.CDLL(name)
        library.sqlite3_libversion.restype = ctypes.c_char_p
        return bool(library.sqlite3_libversion().decode() == sqlite3.sqlite_version)
    except OSError:
        return False


def install() -> None:
    """Once in a process."""
    if _kept:
        return
    library = ctypes.CDLL(ctypes.util.find_library("sqlite3"))
    library.sqlite3_vfs_find.restype = ctypes.c_void_p
    original = library.sqlite3_vfs_find(None)
    vfs = ctypes.create_string_buffer(ctypes.string_at(original, VFS_BYTES), VFS_BYTES)
    true_open = Open(_pointer(original + X_OPEN).value or 0)

    def opened(_: int, name: int, file: int, flags: int, out: int) -> int:
        code = int(true_open(original, name, file, flags, out))
        methods = _pointer(file)
        if code == 0 and methods.value:
            methods.value = ctypes.addressof(_failing(methods.value))
        return code

    callback, name = Open(opened), ctypes.create_string_buffer(NAME)
    _pointer(ctypes.addressof(vfs) + X_OPEN).value = ctypes.cast(callback, ctypes.c_void_p).value
    _pointer(ctypes.addressof(vfs) + Z_NAME).value = ctypes.addressof(name)
    _kept.extend([library, vfs, callback, name, true_open])
    assert library.sqlite3_vfs_register(ctypes.c_void_p(ctypes.addressof(vfs)), 0) == 0


def _failing(original: int) -> Any:
    """A table of a file's methods, of which two may fail."""
    found = _methods.get(original)
    if found is not None:
        return found
    table = ctypes.create_string_buffer(ctypes.string_at(original, METHODS_BYTES), METHODS_BYTES)
    true_write = Write(_pointer(original + X_WRITE).value or 0)
    true_sync = Sync(_pointer(original + X_SYNC).value or 0)

    def write(file: int, data: int, count: int, offset: int) -> int:
        code = fails("write")
        if code:
            true_write(file, data, count // 2, offset)  # torn: half of it arrived
            return code
        return int(true_write(file, data, count, offset))

    def sync(file: int, flags: int) -> int:
        return fails("sync") or int(true_sync(file, flags))

    callbacks = Write(write), Sync(sync)
    for at, callback in zip((X_WRITE, X_SYNC), callbacks, strict=True):
        _pointer(ctypes.addressof(table) + at).value = ctypes.cast(callback, ctypes.c_void_p).value
    _kept.extend([callbacks, true_write, true_sync])
    _methods[original] = table
    return table


def _pointer(address: int) -> ctypes.c_void_p:
    return ctypes.c_void_p.from_address(address)


def connect(path: str | Path, **options: Any) -> sqlite3.Connection:
    """As `sqlite3.connect` does, on this disk."""
    uri = f"{Path(path).absolute().as_uri()}?vfs={NAME.decode()}"
    return sqlite3.connect(uri, uri=True, **{"isolation_level": None, "check_same_thread": False} | options)


class Disk:
    """Fails at one operation, by its number, and maybe at all that follow, until it is repaired."""

    def __init__(self, at: int, code: int, kind: str, *, for_good: bool) -> None:
        self.at = at
        self.code = code
        self.kind = kind
        self.for_good = for_good
        self.count = 0

    def fails(self, kind: str) -> int:
        if kind != self.kind:
            return 0
        self.count += 1
        return self.code if self.count == self.at or (self.for_good and self.count > self.at > 0) else 0

    def repair(self) -> None:
        self.at = -1


async def fail_each(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    failing: Callable[[int], Disk],
    play: Callable[[Path, Disk], Awaitable[int]],
) -> None:
    """Plays on disks that fail at their first operation, then later and later, until there is none left to fail.

    Args:
        failing: Makes the disk that fails at an operation.
        play: Uses a file on it; returns how many calls failed.
    """
    install()
    failed, at = 0, 1
    while True:
        disk = failing(at)
        monkeypatch.setattr("sqlite_vfs.fails", disk.fails)
        failed += await play(folder / f"{at}.db", disk)
        if disk.count < at:
            break
        at += EVERY
    assert failed > 0
