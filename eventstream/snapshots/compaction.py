"""The state of a compacted topic: the newest event of each key, in the order of their indexes. Tombstones remove.

Kept up with every publish, under the topic's lock, so that a snapshot at the head can be taken at any moment. Where a
log has kept events since before the bus began, the state is *partial* at first: it knows what was published since, and
which keys were deleted since, until somebody needs the whole and `adopt` adds what the log knows.
"""

from __future__ import annotations

from ..topics import AnyEvent

__all__ = ("Compaction",)


class Compaction:
    """Follows one topic.

    Invariant: the events of `_newest` stand in the order of their indexes, since each change moves its key to the end.
    """

    __slots__ = ("_gone", "_newest")

    def __init__(self) -> None:
        self._newest: dict[str, AnyEvent] = {}
        self._gone: set[str] | None = None  # while partial: the keys that were ever deleted

    @property
    def partial(self) -> bool:
        """Whether there may be keys that only the log knows."""
        return self._gone is not None

    def observe(self, events: list[AnyEvent], dropped: list[object]) -> None:
        """Takes in one batch; puts what it replaces into `dropped`."""
        newest = self._newest
        for event in events:
            if event.key in newest:
                dropped.append(newest.pop(event.key))
            if event.payload is not None:
                newest[event.key] = event
            elif self._gone is not None:
                self._gone.add(event.key)

    def adopt(self, older: dict[str, AnyEvent], dropped: list[object]) -> None:
        """Completes a partial state by what the log knows; what was observed here since is newer. Takes `older`."""
        dropped.extend([older.pop(key, None) for key in (self._gone or set()) | self._newest.keys()])
        older.update(self._newest)
        self._newest, self._gone = older, None

    def clear(self, partial: bool = False) -> object:
        """The history starts anew, or from what a log has kept. Returns what was there, to be freed by the caller."""
        newest, self._newest = self._newest, {}
        self._gone = set() if partial else None
        return newest

    def state(self, key: str | None) -> list[AnyEvent]:
        """The newest event of one key, or of all."""
        if key is None:
            return list(self._newest.values())
        event = self._newest.get(key)
        return [] if event is None else [event]

    def __len__(self) -> int:
        return len(self._newest)
