"""Where readers wait: one list for each buffer, woken by one callback for each event loop.

A publish must cost the same for one waiting reader and for ten thousand. So it only notes that the buffer's *lot* has
to be woken; the loop then makes one callback, which steps all the tasks that parked there. Several publishes within
one turn of the loop wake a reader once. Nothing is made for readers that do not wait, and a reader's *spot* is
made once and used for all its waits.

How a task is parked:

* asyncio: a spot is a future-like object (the protocol that `asyncio.isfuture` names). The task hands it its wake-up
  callback and the task's context; the waker's callback calls that within the context, which steps the task at once.
  A future for each wait, made, resolved and scheduled singly, costs twice as much.
* trio: a spot is `wait_task_rescheduled`, as trio's own parking lot does it.

A few readers are woken one by one, at once: for them the callback would cost more than it saves. A crowd is woken one
turn of the loop later: that takes so long that what is published meanwhile would come to each of them apart.

Who calls: `Lot.wake` any thread that publishes; everything else only the thread of the loop. Between threads: a
reader parks *first* and then looks again whether something came, a publisher appends *first* and then looks whether
somebody is parked; whichever way they interleave, one of them sees the other. Nothing can come in between where all
is in one thread, so the second look is left out until a publisher from elsewhere has shown up (`Waker.foreign`).

Rejected: `anyio.Event` (2 µs to make, one a wait), a future shared by all readers (dies with the first that is
cancelled), a condition (a lock across an await).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from asyncio import AbstractEventLoop, Future
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from contextvars import Context
from threading import get_ident
from types import NoneType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from anyio import BusyResourceError
from anyio.lowlevel import current_token

if TYPE_CHECKING:
    from trio.lowlevel import Abort, RaiseCancelT, Task, TrioToken

__all__ = ("Lot", "Spot", "Waiter", "Waker", "current_waker")

CROWD: Final = 256  # waking more takes milliseconds: a publisher gets one more turn first, so that they find more
FEW: Final = 4  # waking so many tasks one by one costs less than a callback for all of them does


class Waiter(Protocol):
    """Who waits at a spot."""

    def ready(self) -> bool:
        """Whether waiting is no longer needed."""
        ...


class Spot(ABC):
    """The place of one waiting task: `await spot` returns after the next wake-up, maybe for nothing: look again.

    A second task that would wait here gets `anyio.BusyResourceError`.

    Attributes:
        lot: Where to wait; set by the waiter. None: there is nothing to wait for, so a wait ends at once.
    """

    __slots__ = ("lot",)

    def __init__(self) -> None:
        self.lot: Lot | None = None

    @property
    @abstractmethod
    def occupied(self) -> bool:
        """Whether a task waits here, or was woken and did not run yet."""

    @abstractmethod
    def __await__(self) -> Generator[Any, Any, None]: ...

    @abstractmethod
    def wake(self) -> None:
        """Wakes the task that waits here, if there is one. Safe from any thread."""


class Lot:
    """The spots that wait for one buffer."""

    __slots__ = ("parked", "scheduled", "waker")

    def __init__(self, waker: Waker) -> None:
        self.waker: Waker = waker
        self.parked: dict[Any, None] = {}  # in the order of waiting, so that a run can be repeated
        self.scheduled: bool = False

    def wake(self) -> None:
        """Wakes all that wait here, soon. Safe from any thread; needless if nobody is parked, or it is scheduled."""
        if self.parked and not self.scheduled:
            self.waker.wake(self)


class Waker(ABC):
    """One event loop's callback for all lots of a bus.

    Attributes:
        thread: Whose loop it is.
        foreign: Whether another thread has ever published; to be set before that thread first appends.
    """

    def __init__(self) -> None:
        self.thread: int = get_ident()
        self._pending: deque[Lot] = deque()
        self._scheduled = False
        self._callback = self.run  # bound once: a publish should not have to
        self._later = self._run_later
        self.foreign: bool = False

    @abstractmethod
    def spot(self, waiter: Waiter) -> Spot:
        """A new spot for a task of this loop."""

    @abstractmethod
    def call_soon(self, function: Callable[[], object]) -> None:
        """Calls `function` in the loop's thread, soon. Safe from any thread."""

    @abstractmethod
    def once(self) -> Awaitable[None]:
        """Something that happens once, for one task of this loop to await: the loop's own, which is the cheapest."""

    @abstractmethod
    def happen(self, once: Any) -> None:
        """Lets that task go on. In the loop's thread; does nothing if the task was cancelled."""

    def wake(self, lot: Lot) -> None:
        """Notes that a lot has to be woken, and asks for the callback unless that was done."""
        lot.scheduled = True
        self._pending.append(lot)
        if not self._scheduled:
            self._scheduled = True
            self.call_soon(self._callback if len(lot.parked) <= CROWD else self._later)

    def _run_later(self) -> None:
        self.call_soon(self._callback)

    def run(self) -> None:
        """The callback: wakes what was noted up to now."""
        self._scheduled = False  # first: a publish that finds it False after its own note asks again
        pending = self._pending
        for _ in range(len(pending)):
            lot = pending.popleft()
            lot.scheduled = False  # a publish that comes after this asks for another turn
            spots, lot.parked = lot.parked, {}
            try:
                self._step_all(lot, spots)
            except BaseException:  # see `_step_all`: the lots behind this one are noted already, so nobody asks again
                if pending and not self._scheduled:
                    self._scheduled = True
                    self.call_soon(self._callback)
                raise

    @abstractmethod
    def _step_all(self, lot: Lot, spots: dict[Any, None]) -> None:
        """Lets all tasks go on that waited at a lot."""


def current_waker() -> Waker:
    """A waker for the event loop that runs the calling task.

    Raises:
        anyio.NoEventLoopError: if there is none.
    """
    token = current_token().native_token
    if isinstance(token, AbstractEventLoop):
        return _AsyncioWaker(token)
    return _TrioWaker(token)  # type: ignore[arg-type]  # anyio knows these two kinds


class _AsyncioWaker(Waker):
    def __init__(self, loop: AbstractEventLoop) -> None:
        super().__init__()
        self.loop = loop

    def spot(self, waiter: Waiter) -> Spot:
        return _AsyncioSpot(self, waiter)

    def once(self) -> Future[None]:
        return self.loop.create_future()

    def happen(self, once: Future[None]) -> None:
        if not once.done():
            once.set_result(None)

    def call_soon(self, function: Callable[[], object]) -> None:
        if get_ident() == self.thread:
            self.loop.call_soon(function)
        else:
            self.loop.call_soon_threadsafe(function)

    def wake(self, lot: Lot) -> None:
        if len(lot.parked) > FEW or get_ident() != self.thread:
            super().wake(lot)
            return
        spots, lot.parked = lot.parked, {}
        for spot in spots:
            callback = spot.callback
            if callback is not None:
                spot.callback = None
                self.loop.call_soon(callback, spot, context=spot.context)

    def _step_all(self, lot: Lot, spots: dict[_AsyncioSpot, None]) -> None:
        try:
            for spot in spots:
                callback = spot.callback
                if callback is not None:  # not cancelled by one that was stepped before it
                    spot.callback = None
                    spot.context.run(callback, spot)
        except BaseException:  # a task raised KeyboardInterrupt or SystemExit through us: the others still have to wake
            lot.parked = {spot: None for spot in spots if spot.callback is not None} | lot.parked
            lot.wake()
            raise


class _AsyncioSpot(Spot):
    """A future-like object that is used again for each wait of one reader."""

    __slots__ = (
        "_asyncio_future_blocking", "_loop", "_once", "_parked_in", "_waiter", "_waker", "callback", "context",
    )  # fmt: skip

    context: Context
    result: ClassVar[Callable[[], None]] = NoneType  # asyncio calls it after each wake-up: nothing to tell, and in C

    def __init__(self, waker: _AsyncioWaker, waiter: Waiter) -> None:
        super().__init__()
        self._waker = waker
        self._waiter = waiter
        self._asyncio_future_blocking = False
        self._once = (self,)
        self._parked_in: Lot | None = None  # where it waits, or did last: `lot` may have moved on
        self._loop = waker.loop  # asyncio asks for it where there is no `get_loop`, which would be a call more
        self.callback: Callable[[Any], object] | None = None  # Invariant: set iff a task waits here

    def __await__(self) -> Generator[Any, Any, None]:
        if self.callback is not None:
            raise BusyResourceError("reading from")
        self._asyncio_future_blocking = True
        return iter(self._once)  # type: ignore[return-value]  # yields itself, then ends: a third of a generator's size

    def wake(self) -> None:
        self._waker.call_soon(self._unpark)

    @property
    def occupied(self) -> bool:
        return self.callback is not None

    def _unpark(self) -> None:
        if self._parked_in is not None:
            self._parked_in.parked.pop(self, None)
        self._step()

    def _step(self) -> None:
        callback, self.callback = self.callback, None
        if callback is not None:
            self.context.run(callback, self)

    # What asyncio asks of a future that a task waits for.

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Context) -> None:
        self.callback = callback
        self.context = context
        lot = self._parked_in = self.lot
        if lot is None:
            self.wake()
        else:
            lot.parked[self] = None
            if self._waker.foreign and self._waiter.ready():
                self.wake()

    def done(self) -> bool:
        return self.callback is None or (self._parked_in is not None and self._parked_in.scheduled)

    def cancel(self, msg: object = None) -> bool:
        """Says that it was not: the task then raises the cancellation itself, at the step that is made for it here."""
        if self.callback is not None:
            if self._parked_in is not None:
                self._parked_in.parked.pop(self, None)
            self._loop.call_soon(self._step)
        return False


class _TrioWaker(Waker):
    def __init__(self, token: TrioToken) -> None:
        super().__init__()
        self._token = token
        self._onces = Lot(self)

    def spot(self, waiter: Waiter) -> Spot:
        return _TrioSpot(self, waiter)

    def once(self) -> _TrioSpot:
        spot = _TrioSpot(self, _NEVER)
        spot.lot = self._onces
        return spot

    def happen(self, once: _TrioSpot) -> None:
        once.unpark()

    def call_soon(self, function: Callable[[], object]) -> None:
        self._token.run_sync_soon(function)

    def wake(self, lot: Lot) -> None:
        if len(lot.parked) <= FEW and get_ident() == self.thread:
            spots, lot.parked = lot.parked, {}
            self._step_all(lot, spots)
        else:
            super().wake(lot)

    def _step_all(self, lot: Lot, spots: dict[_TrioSpot, None]) -> None:
        for spot in spots:
            spot.step()


class _Never:
    """Waits for nothing that could be there already."""

    def ready(self) -> bool:
        return False


_NEVER: Final = _Never()


class _TrioSpot(Spot):
    __slots__ = ("_parked_in", "_task", "_waiter", "_waker")

    def __init__(self, waker: _TrioWaker, waiter: Waiter) -> None:
        super().__init__()
        self._waker = waker
        self._waiter = waiter
        self._parked_in: Lot | None = None
        self._task: Task | None = None  # Invariant: set iff a task waits here

    def __await__(self) -> Generator[Any, Any, None]:
        from trio.lowlevel import current_task, wait_task_rescheduled  # installed, since trio runs this task

        if self._task is not None:
            raise BusyResourceError("reading from")
        self._task = current_task()
        lot = self._parked_in = self.lot
        if lot is None:
            self.wake()
        else:
            lot.parked[self] = None
            if self._waker.foreign and self._waiter.ready():
                self.wake()
        return wait_task_rescheduled(self._abort).__await__()  # noqa: ASYNC105  # by whom this is awaited

    def _abort(self, _: RaiseCancelT) -> Abort:
        from trio.lowlevel import Abort

        self._task = None
        if self._parked_in is not None:
            self._parked_in.parked.pop(self, None)
        return Abort.SUCCEEDED

    def wake(self) -> None:
        self._waker.call_soon(self.unpark)

    @property
    def occupied(self) -> bool:
        return self._task is not None

    def unpark(self) -> None:
        if self._parked_in is not None:
            self._parked_in.parked.pop(self, None)
        self.step()

    def step(self) -> None:
        from trio.lowlevel import reschedule

        task, self._task = self._task, None
        if task is not None:
            reschedule(task)
