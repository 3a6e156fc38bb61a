"""Errors of files: of a log's, and of an outbox's."""

from __future__ import annotations

import os
from typing import Literal

from .root import EventStreamError, shown

__all__ = (
    "LogError",
    "LogFailed",
    "LogFull",
    "LogInUse",
    "LogRefused",
    "NotAccepted",
    "NotStored",
    "OutboxClosed",
    "OutboxFull",
    "OutboxUnusable",
    "UnknownEntry",
)


class LogError(EventStreamError):
    """Something about the file in which a log keeps its events. What, and whose fault it is, its subclasses say."""

    path: str

    @property
    def name(self) -> str:
        """The file's name alone: what another process may be told."""
        return self.path.replace("\\", "/").rpartition("/")[2]


class LogInUse(LogError):
    """A log's file has an owner already. Your fault: one process at a time; others connect to it over the network.

    `owner` is that process's id, 0 if it cannot be told. The lock goes when that process ends, however it ends.
    """

    def __init__(self, path: str, owner: int = 0) -> None:
        self.path = path
        self.owner = owner
        if owner == os.getpid():
            text = "by another log of this process: use one bus for both, or close that one"
        else:
            who = f"process {owner}" if owner else "another process"
            text = f"by {who}: close it there, or connect to that process over the network"
        super().__init__(f"{path} is in use {text}")


class LogRefused(LogError):
    """A file is not opened as a log; nothing in it was changed. Your fault, unless the disk has damaged it.

    `why` is `foreign` (it is something else: give another path), `newer` (a later version of eventstream wrote it:
    update), `damaged` (it is torn or corrupt: restore a backup, or export what can be read) or `unreachable` (it
    or its directory is not there, or you may not read or write it).
    """

    def __init__(self, path: str, why: str, detail: str) -> None:
        self.path = path
        self.why = why
        self.detail = detail
        advice = {
            "foreign": "give the path of a log, or of a file that does not exist yet",
            "newer": "update eventstream, or give another path",
            "damaged": "restore a backup, or save what can be read with 'eventstream log export'",
            "unreachable": "check the path, and that its directory exists and you may read and write there",
        }
        super().__init__(f"{path}: {detail}; {advice.get(why, 'look at the file')}. Nothing in it was changed")


class LogFull(LogError):
    """The disk, or the file by its own bound, has no room. What was to be published was not.

    Nobody's fault: make room, then publish again. The log goes on by itself as soon as there is room.
    """

    temporary = True

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(
            f"{path}: there is no room for this event; nothing was published. Make room, then publish again"
        )


class LogFailed(LogError):
    """The disk could not be read or written. Nobody's fault, mostly the disk's: look at `why`.

    What was to be published cannot be read now. If the process ends before anything else is published, it may be there
    after the next start: publish again with the same `id`, which makes one event of both.
    """

    temporary = True

    def __init__(self, path: str, why: str) -> None:
        self.path = path
        self.why = why
        super().__init__(f"{path}: {why}; look at the disk, then try again, a publish with the same id")


class OutboxClosed(EventStreamError):
    """The outbox is not open. Your fault: use it inside `async with Outbox(...) as outbox`, once.

    What it had is in its file.
    """

    def __init__(self, state: Literal["new", "closed"]) -> None:
        self.state = state
        texts = {
            "new": "the outbox was not opened: use 'async with outbox'",
            "closed": "the outbox is closed; what it had is in its file",
        }
        super().__init__(texts[state])


class OutboxFull(EventStreamError):
    """The outbox has as much as it may; nothing was kept of this publish. Your fault, or that of a long outage.

    Let it drain, discard what is dead, or raise its limits. `limit` is `entries` or `bytes`.
    """

    def __init__(self, limit: str, bound: int) -> None:
        self.limit = limit
        self.bound = bound
        super().__init__(f"the outbox is full, its bound is {bound} {limit}: let it drain, or discard what is dead")


class OutboxUnusable(EventStreamError):
    """A file cannot be the outbox of this program. Your fault, or the disk's; the file was not changed.

    `why` is one of `busy` (another process, or another `Outbox`, has it), `foreign` (it is something else), `newer` (a
    later version made it), `damaged` and `unreachable` (its directory is not there, or you may not read or write it).
    """

    def __init__(self, path: str, why: str, detail: str) -> None:
        self.path = path
        self.why = why
        self.detail = detail
        advice = {
            "busy": "another process has it: use that one, or stop it",
            "foreign": "it is not an outbox: give another path",
            "newer": "a later version of eventstream made it: update this one",
            "damaged": "it is damaged: keep a copy, restore it with 'sqlite3 FILE .recover', or give another path",
            "unreachable": "check the path, and that its directory exists and you may read and write there",
        }
        super().__init__(f"{path} cannot be the outbox; {advice[why]} ({detail})")


class NotStored(EventStreamError):
    """The outbox could not write to its disk. The disk's fault: make room or repair it, then go on.

    `why` is `full` or `failed`. What was to be kept was not; after a failure (not of room) and a power loss it may turn
    up all the same, so repeat a publish with its id. Nothing that was kept before is lost by this.
    """

    temporary = True

    def __init__(self, path: str, why: str, detail: str) -> None:
        self.path = path
        self.why = why
        self.detail = detail
        what = "there is no room" if why == "full" else "its disk fails"
        super().__init__(f"the outbox {path} cannot be written, {what}: {detail}; nothing was kept, try again")


class NotAccepted(EventStreamError):
    """An entry of the outbox will not be published as it is. Whose fault, and what to do, depends on its `state`.

    `conflict` and `unknown` wait for a person, with those of their key behind them: `retry` or `discard` it. `dead` can
    be retried when the cause is gone. `discarded` was given up. `closed`: the outbox was left while it waited; the
    entry is in the file.
    """

    def __init__(self, id: str, state: str, reason: str) -> None:
        self.id = id
        self.state = state
        self.reason = reason
        super().__init__(f"entry {id!r} is {state}{': ' if reason else ''}{reason}")


class UnknownEntry(EventStreamError, LookupError):
    """The outbox has no entry of this id. Your fault, or it was accepted or discarded before."""

    def __init__(self, id: str) -> None:
        self.id = id
        super().__init__(f"there is no entry {shown(id)}: it was accepted or discarded, or never was here")
