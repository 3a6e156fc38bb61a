"""One reader's place, and the rules by which it moves: filters, marks, the ends of snapshots, interruptions.

A cursor is moved by its reader alone, in the reader's thread, without a lock. It hands out *chunks*, slices of a
segment. Who reads one by one leaves the chunk with the cursor, and works it off through `rest`, an iterator that all
ways of reading share. So how much of a chunk was handed out is known from `rest` alone, and an event costs its reader
nothing but the step of that iterator. `settled` derives the reader's position from it: never ahead of what was handed
out, never inside a batch.

Others may do one thing: `interrupt` it. The publisher does, when the reader is past its bound: the place is cleared
(so that a reader that never comes back pins nothing but the chunk in its hands) and the reader finds out at its next
step. The order of the writes makes that safe between threads; see `advance`.

Where a cursor can stand, in this order:

    snapshot's chain ──end──▶ splice ──▶ live channel           (`snapshot` set, `mark` after it)
    history, filtered by key ──`detour`──▶ key's channel  (resume of one key)
    pages of what a log keeps ──`detour`──▶ live channel  (resume from further back than memory)
    live channel                                                (`plain`: the fast path)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterator
from operator import length_hint
from typing import Final, Literal, NamedTuple, Protocol, TypeAlias

from ..errors import EventStreamError
from ..events import Bookmark, Position, ResetReason, Resumed, SnapshotEnd, SnapshotStart
from .buffer import INDEX, SEGMENT_SIZE, AnyEvent, Buffer, Place, Segment
from .channel import Channel
from .disposal import Disposal
from .laggards import Watch
from .parking import Spot, Waker

__all__ = ("Chain", "Cursor", "Detour", "Guide", "Mark", "Pages", "Select", "Step", "Taken")

Select: TypeAlias = Callable[[list[AnyEvent]], list[AnyEvent]]
Taken: TypeAlias = Callable[[int], None]
Mark: TypeAlias = Resumed | SnapshotStart | SnapshotEnd | Bookmark
Step: TypeAlias = list[AnyEvent] | Mark | Literal[False] | None

NOWHERE: Final = Segment(0, None, [])  # type: ignore[arg-type]  # nobody ever waits here: `ready` says so
DONE: Final[Iterator[AnyEvent]] = iter(())
NOTHING: Final[list[AnyEvent]] = []  # never written to
UNKNOWN: Final = -1
PATIENCE: Final = 16  # segments, most of whose events are not for this reader, before others get a turn


class Chain(Protocol):
    """A snapshot as its readers see it, maybe while it is being built."""

    buffer: Buffer
    first: Segment | None
    index: int | None
    pinned: int
    last: Segment | None
    error: EventStreamError | None


class Detour(NamedTuple):
    """The way of a reader of one key that comes late: the whole topic's history, filtered, and then the key's channel.

    Attributes:
        until: Where the history need not be read any further.
        channel: Where to go on.
        place: Where in it.
        after: The index up to which everything was handed out then.
    """

    until: Place
    channel: Channel
    place: Place
    after: int


class Guide(Protocol):
    """What all readers of one topic share. It knows the way on where the chain itself does not.

    Attributes:
        bound: How many events a reader may be behind.
        disposal: Frees what readers let go of.
    """

    bound: int
    disposal: Disposal

    def reopen(self, cursor: Cursor, reason: ResetReason) -> None:
        """Places a cursor anew that lost its place.

        Raises:
            EventStreamError: if there is no snapshot to start from.
        """

    def switch(self, cursor: Cursor) -> None:
        """Leads a cursor on that came to the end of its detour."""


class Pages(Protocol):
    """The way of a reader that is further back than memory: what a log reads for it, page by page.

    Attributes:
        until: Where its present page ends; None while there is none.
    """

    until: Place | None

    def behind(self, seen: int) -> int:
        """How many events are published and not handed out, if `seen` of those that it brought were."""
        ...


class Cursor:
    """A reader's state.

    Attributes:
        key: The one key that is followed, or None.
        principal: Whose it is, if anybody's.
        spot: Where its task waits.
        chunk: The stretch that is being handed out one by one; empty when all of it was, and more was asked for.
        rest: What remains of the chunk; whoever reads next takes from here. Set with it, by who reads one by one.
        index: The index up to which everything was handed out when the present chunk was taken.
        channel: Where it is watched for lag; None while it refers to nothing.
        detour: How it gets to its channel, while it catches up with history.
        pending: What to tell the reader before anything else.
        wants_bookmarks: Whether it is read by frames.
        bookmark_due: Whether such a reader should be told its position at the next chance.
        interrupted: Why it has to start again.
        closed: Why it reads no more; raised at each step.
        delivered: Events handed out in all earlier chunks and this one.
        resets: How often it had to start again.
    """

    __slots__ = (
        "_allowance", "_end", "_guide", "_mark", "_offset", "_overtaken", "_plain", "_segment", "_select", "_skipped",
        "_snapshot", "_taken", "bookmark_due", "channel", "chunk", "closed", "delivered", "detour", "epoch", "index",
        "interrupted", "key", "pending", "principal", "resets", "rest", "spot", "wants_bookmarks", "watch",
    )  # fmt: skip

    def __init__(
        self,
        guide: Guide,
        waker: Waker,
        *,
        key: str | None,
        select: Select | None,
        taken: Taken | None,
        principal: Hashable | None,
    ) -> None:
        self.key: str | None = key
        self.principal: Hashable | None = principal
        self.spot: Spot = waker.spot(self)
        self.wants_bookmarks: bool = False
        self.bookmark_due: bool = False
        self.epoch: str = ""
        self.index: int = 0
        self.rest: Iterator[AnyEvent] = DONE
        self.delivered: int = 0
        self.resets: int = 0
        self.pending: Mark | None = None
        self.detour: Detour | Pages | None = None
        self.channel: Channel | None = None
        self.watch: Watch | None = None
        self.interrupted: ResetReason | None = None
        self.closed: EventStreamError | None = None
        self._select = select
        self._taken = taken  # is told how many events the reader takes, as it takes them
        self._guide = guide
        self._allowance = UNKNOWN
        self._overtaken = 0
        self.chunk: list[AnyEvent] = NOTHING
        self._end = 0
        self._segment = NOWHERE
        self._offset = 0
        self._snapshot: Chain | None = None
        self._mark = 0
        self._skipped = 0
        self._plain = False

    # Entering a chain, in the reader's thread, under the topic's lock.

    def enter(self, channel: Channel | None, place: Place, after: int) -> None:
        """Stands at a place; everything up to index `after` counts as handed out."""
        self._segment, self._offset = place
        self.spot.lot = place[0].lot
        self.index = self._end = after
        self.channel = channel
        self.detour = None
        self._allowance = UNKNOWN
        self._plain = self._select is None and self.pending is None and not self._mark

    def catch_up(self, detour: Detour | Pages) -> None:
        """What was entered is history: read it, filtered by key, as far as needed."""
        self.detour = detour
        self._plain = False

    def follow(self, snapshot: Chain) -> None:
        """What was entered is a snapshot."""
        self._snapshot = snapshot
        self._plain = False

    def skip_to(self, index: int) -> None:
        """Events up to `index`, should they come, are known already."""
        self._mark = index
        self._plain = False

    # Moving, in the reader's thread.

    def advance(self) -> Step:
        """Goes on after the present chunk. A list: the next one, which counts as handed out. None: nothing yet.

        False: nothing for this reader among many events; ask again, after others had their turn.

        Raises:
            EventStreamError: `closed`, or what prevents the reader from starting again.
        """
        # Between threads: an interrupting publisher sets `interrupted`, then clears `_plain`, then `_segment`. Whatever
        # is written here in between is undone below, so a chain that was let go is never held again.
        while self._plain:
            segment, offset = self._segment, self._offset
            following = segment.next  # before the length: see topics/buffer.py
            items = segment.items
            stop = len(items)
            if offset < stop:
                # A list of one is by far the most frequent slice, and cheaper made than cut.
                chunk = items[offset:stop] if stop - offset > 1 else [items[offset]]
                if following is not None and (end := len(following.items)) <= SEGMENT_SIZE - len(chunk):
                    chunk += following.items[segment.next_offset : end]  # a burst that went over the link is one chunk
                    stop = end
                    self._segment = following
                self._offset = stop
                self.index = self._end
                self._end = chunk[-1].index
                self.delivered += len(chunk)
                if self.interrupted is not None:
                    self._let_go()
                if self._taken is not None:
                    self._taken(len(chunk))
                return chunk
            if following is None:
                self.index = self._end  # as in `_move`
                self.chunk = NOTHING
                self.rest = DONE
                return None
            self._offset = segment.next_offset
            self._segment = following
        return self._advance_slowly()

    def _advance_slowly(self) -> Step:
        for _ in range(PATIENCE):
            if self.closed is not None:
                raise self.closed.with_traceback(None)
            if self.interrupted is not None:
                self._start_again(self.interrupted)
            if self.pending is not None:
                mark, self.pending = self.pending, None
                self._become_plain()
                return mark
            step = self._move()
            if step is not False:
                return step
            if self._plain:
                return self.advance()
        return False

    def _start_again(self, reason: ResetReason) -> None:
        self._let_go()
        self._mark = 0
        self.interrupted = None
        self.resets += 1
        try:
            self._guide.reopen(self, reason)
        except BaseException:
            self.interrupted = reason  # it still has no place
            raise

    def _move(self) -> Step:
        """One move along the chain. False: nothing for this reader there, look again."""
        # Read once: a publisher in another thread may interrupt at any line, and clears all of these.
        segment, offset, snapshot, detour = self._segment, self._offset, self._snapshot, self.detour
        until = None if detour is None else detour.until
        following = segment.next
        items = segment.items
        stop = until[1] if until is not None and segment is until[0] else len(items)
        if offset < stop:
            return self._take(items[offset:stop], stop, snapshot, until)
        if until is not None and segment is until[0]:
            self._guide.switch(self)
            return False
        if snapshot is not None:
            if snapshot.error is not None:
                raise snapshot.error.with_traceback(None)
            if snapshot.last is segment:
                return self._finish(snapshot, segment)
        if following is None:
            self.index = self._end  # all was handed out, and more was asked for
            self.chunk = NOTHING  # so that an idle reader keeps no event alive, nor the iterator
            self.rest = DONE
            return None
        self._step_to(following, segment.next_offset)
        return False

    def _step_to(self, segment: Segment, offset: int) -> None:
        self._offset = offset
        self._segment = segment
        if self.interrupted is not None:
            self._let_go()

    def _take(self, taken: list[AnyEvent], stop: int, snapshot: Chain | None, until: Place | None) -> Step:
        events, mark = taken, self._mark
        end = max(taken[-1].index, mark) if snapshot is None else 0
        if mark and snapshot is None:
            # The source had read commits that are published only now: the snapshot has told of them already.
            events = events[bisect_right(events, mark, key=INDEX) :]
            if events:
                mark = 0
        if until is not None and self.key is not None:
            events = [event for event in events if event.key == self.key]
        if self._select is not None and events:
            events = self._select(events)
            if self.closed is not None or self.interrupted is not None:  # by what it was asked
                return False
        # Only now, for if the selection raised, nothing was taken.
        self._offset, self._mark = stop, mark
        self.index, self._end = self._end, end
        if self.interrupted is not None:
            self._let_go()
        if events:
            self._skipped = 0
            self.delivered += len(events)
            self._become_plain()
            if self._taken is not None:
                self._taken(len(events))
            return events
        self._skipped += len(taken)
        if self._skipped < SEGMENT_SIZE or snapshot is not None:
            return False
        self._skipped = 0
        return Bookmark(Position(self.epoch, end))

    def _finish(self, snapshot: Chain, segment: Segment) -> SnapshotEnd:
        assert snapshot.index is not None, "a snapshot has its index before it has a last segment"
        assert segment.next is not None, "a finished snapshot is spliced"
        self._mark = self.index = self._end = snapshot.index
        self.spot.lot = segment.next.lot
        self._step_to(segment.next, segment.next_offset)
        self._snapshot = None  # last: a publisher that asks where the reader stands must not count in two buffers
        return SnapshotEnd(Position(self.epoch, snapshot.index))

    def _become_plain(self) -> None:
        self._plain = (
            self._select is None
            and self._snapshot is None
            and self.detour is None
            and not self._mark
            and self.closed is None
        )
        if self.interrupted is not None:  # asked after the assignment, which may have overruled a publisher's
            self._plain = False

    # Standing.

    @property
    def settled(self) -> int:
        """The index up to which everything was handed out. Inside a batch, the one before the batch's."""
        left = length_hint(self.rest)
        chunk = self.chunk
        if not self._end:  # nothing but (a part of) a snapshot was handed out
            return 0
        if not left:
            # While the last event is in the reader's hands, its own index; after that, also what was filtered out.
            return chunk[-1].index if chunk and self.index != self._end else self._end
        handed_out = len(chunk) - left
        coming = chunk[handed_out].index
        index = chunk[handed_out - 1].index if handed_out else self.index
        return index if index != coming else coming - 1  # nothing for this reader stands between two batches

    @property
    def idle(self) -> bool:
        """Whether the reader asked for more than there is, and follows the live events."""
        return (
            self.index == self._end
            and self.channel is not None
            and self._snapshot is None
            and self.detour is None
            and not self.ready()
        )

    @property
    def filtered(self) -> bool:
        """Whether events pass by that this reader does not get."""
        return self.key is not None or self._select is not None

    @property
    def left(self) -> int:
        """How many events of the present chunk were not handed out yet."""
        return length_hint(self.rest)

    @property
    def lag(self) -> int:
        """How many events were published and not handed out, a snapshot's own included."""
        channel = self.channel
        if channel is None:
            detour = self.detour
            return self._overtaken if detour is None or isinstance(detour, Detour) else detour.behind(self._seen())
        behind = channel.buffer.count - self._seen()
        if self._snapshot is not None:
            behind += self._snapshot.buffer.count - self._segment.start - self._offset
        return behind

    def _seen(self) -> int:
        """How many of the channel's events need not be kept for this reader."""
        snapshot = self._snapshot
        if snapshot is not None:
            return snapshot.pinned
        return self._segment.start + self._offset - length_hint(self.rest)

    # For its spot (see `parking.Waiter`).

    def ready(self) -> bool:
        """Whether `advance` would give something."""
        segment = self._segment
        snapshot = self._snapshot
        return (
            len(segment.items) > self._offset
            or segment.next is not None
            or self.interrupted is not None
            or self.closed is not None
            or self.pending is not None
            or (snapshot is not None and snapshot.error is not None)
        )

    # For laggards (see `laggards.Tracked`), under the topic's lock, maybe in another thread.

    def deadline(self, published: int) -> int:
        """A reader that starts far behind may stay as far behind until it has first caught up."""
        seen = self._seen()
        behind = published - seen
        bound = self._guide.bound
        if behind <= bound:
            self._allowance = 0
        elif self._allowance == UNKNOWN:
            self._allowance = behind
        return seen + bound + max(self._allowance, 0)

    def overtaken(self, published: int) -> None:
        """The publisher lets this reader's place go; the chunk in its hands is still in order."""
        self._overtaken = published - self._seen()
        self.channel = None
        self.interrupt("lagged")

    # Interrupting.

    def interrupt(self, reason: ResetReason) -> None:
        """Has to start again from a snapshot. From any thread, under the topic's lock."""
        if self.interrupted is None:
            self.interrupted = reason
        self._plain = False  # after the reason, which `_become_plain` looks at after it
        self._let_go()

    def discard(self, index: int) -> None:
        """Forgets the rest of the chunk too: its position stays at `index`. Only in the reader's thread."""
        self.delivered -= length_hint(self.rest)
        self.index = self._end = index
        # Emptied, not replaced: an `async for` over the old iterator is stopped by it.
        self.chunk.clear()
        self.chunk = NOTHING

    def close(self, reason: EventStreamError, index: int) -> None:
        """Nothing more is handed out; the first reason stays. Only in the reader's thread."""
        if self.closed is None:
            self._plain = False
            self.closed = reason
            self.discard(index)
            self._let_go()
            self.pending = None

    def take(self) -> list[AnyEvent]:
        """Hands out the rest of the chunk at once."""
        left = length_hint(self.rest)
        chunk = self.chunk if left == len(self.chunk) else list(self.rest)
        self.chunk = NOTHING
        self.rest = DONE
        return chunk

    def _let_go(self) -> None:
        segment, self._segment = self._segment, NOWHERE
        self.spot.lot = None
        self._offset = 0
        self._snapshot = self.detour = None
        if segment is not NOWHERE:
            self._guide.disposal.drop(segment)
