"""The state of a compacted topic: the newest event of each key, in the order of their indexes. Tombstones remove.

Kept up with every publish, under the topic's lock, so that a snapshot at the head can be taken at any moment.
"""

from __future__ import annotations

from ..topics import AnyEvent

__all__ = ("Compaction",)


class Compaction:
    """Follows one topic.

    Invariant: the events of `_newest` stand in the order of their indexes, since each change moves its key to the end.
    """

    __slots__ = ("_newest",)

    def __init__(self) -> None:
        self._newest: dict[str, AnyEvent] = {}

    def observe(self, events: list[AnyEvent], dropped: list[object]) -> None:
        """Takes in one batch; puts what it replaces into `dropped`."""
        newest = self._newest
        for event in events:
            if event.key in newest:
                dropped.append(newest.pop(event.key))
            if event.payload is not None:
                newest[event.key] = event

    def clear(self) -> object:
        """The history starts anew. Returns what was there, to be freed by the caller."""
        newest, self._newest = self._newest, {}
        return newest

    def state(self, key: str | None) -> list[AnyEvent]:
        """The newest event of one key, or of all."""
        if key is None:
            return list(self._newest.values())
        event = self._newest.get(key)
        return [] if event is None else [event]

    def __len__(self) -> int:
        return len(self._newest)
