"""A Starlette application that owns a bus: POST publishes, GET streams server-sent events that resume.

A browser's `EventSource` sends the last id that it saw as `Last-Event-ID` when it reconnects. Here ids are positions,
so it goes on exactly where it was; if that is no longer possible it gets a `reset` event and the state anew, never a
gap. `frames()` tells of a reset as a frame; plain iteration would raise `SubscriptionReset` in its place.

In production run it with any ASGI server: `uvicorn embed_starlette:app`. Run as a script it is its own client.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import anyio
import msgspec
from anyio.streams.memory import MemoryObjectReceiveStream
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from eventstream import (
    BusClosed,
    Event,
    EventBus,
    InvalidPosition,
    Resumed,
    SnapshotEnd,
    SnapshotStart,
    Subscription,
    Topic,
)


class Price(msgspec.Struct, frozen=True):
    symbol: str
    bid: float


prices: Topic[Price] = Topic("prices", Price, key="symbol", compacted=True)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """The bus lives as long as the application."""
    async with EventBus() as app.state.bus:
        yield


async def publish(request: Request) -> Response:
    try:
        price = msgspec.json.decode(await request.body(), type=Price)
    except msgspec.DecodeError as error:
        return JSONResponse({"error": str(error)}, status_code=422)
    position = await request.app.state.bus.publish(prices, price)
    return JSONResponse({"position": str(position)}, status_code=201)


async def events(request: Request) -> Response:
    after = request.headers.get("last-event-id")
    try:
        subscription = request.app.state.bus.subscribe(prices, after=after or None)
    except InvalidPosition as error:
        return JSONResponse({"error": str(error)}, status_code=400)
    return EventStream(subscription)


class EventStream(StreamingResponse):
    """Holds its subscription exactly as long as it is being sent, however that ends."""

    def __init__(self, subscription: Subscription[Price]) -> None:
        self._subscription = subscription
        self._texts = server_sent(subscription)
        super().__init__(self._texts, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._subscription, aclosing(self._texts):
            await super().__call__(scope, receive, send)


async def server_sent(subscription: Subscription[Price]) -> AsyncGenerator[str, None]:
    """Each frame as one server-sent event. Its id is the reader's position once it has this frame."""
    try:
        async for frame in subscription.frames():
            # Within a snapshot the position stays that of its start: who breaks off there gets it all again.
            text = f"id: {subscription.position}\n"
            if isinstance(frame, Event):
                text += f"event: price\ndata: {msgspec.json.encode(frame.payload).decode()}\n"
            elif isinstance(frame, SnapshotStart):
                text += f"event: reset\ndata: {frame.reason}\n"  # the page forgets what it shows
            elif isinstance(frame, SnapshotEnd):
                text += "event: ready\ndata: \n"
            elif isinstance(frame, Resumed):
                text += "event: resumed\ndata: \n"
            yield text + "\n"  # a Bookmark is an id alone: the browser notes it and tells nobody
    except BusClosed:
        return  # the application shuts down; the browser will come back with its id


app = Starlette(routes=[Route("/prices", publish, methods=["POST"]), Route("/events", events)], lifespan=lifespan)


# A client without a network, for this script alone: it calls the application as a server would.


async def post(price: Price) -> None:
    statuses: list[int] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": msgspec.json.encode(price)}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await app(_scope("POST", "/prices"), receive, send)
    assert statuses == [201]


@asynccontextmanager
async def listen(last_id: str = "") -> AsyncGenerator[MemoryObjectReceiveStream[str], None]:
    """A browser's `EventSource`; leaving is its tab being closed."""
    sender, receiver = anyio.create_memory_object_stream[str](100)
    gone = anyio.Event()

    async def receive() -> Message:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message.get("body"):
            await sender.send(message["body"].decode())

    async with sender, receiver, anyio.create_task_group() as tasks:
        tasks.start_soon(app, _scope("GET", "/events", (b"last-event-id", last_id.encode())), receive, send)
        yield receiver
        gone.set()


def _scope(method: str, path: str, *headers: tuple[bytes, bytes]) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": list(headers),
    }


async def show(stream: MemoryObjectReceiveStream[str], until: str) -> str:
    """Prints what comes, up to what holds a text; returns the last id."""
    while True:
        fields = dict(line.split(": ", 1) for line in (await stream.receive()).splitlines() if line)
        event, data = fields.get("event", "bookmark"), fields.get("data", "")
        print(f"  {event:8} {data}")
        if until in (event, data):
            return fields["id"]


async def main() -> None:
    async with app.router.lifespan_context(app):
        await post(Price("X", 1.0))
        await post(Price("Y", 7.5))
        print("A browser comes:")
        async with listen() as stream:
            await show(stream, "ready")
            await post(Price("X", 1.5))
            last_id = await show(stream, '{"symbol":"X","bid":1.5}')
        await post(Price("X", 2.0))
        await post(Price("Y", 8.0))
        print("It lost its connection, and comes back with its last id:")
        async with listen(last_id) as stream:
            await show(stream, '{"symbol":"Y","bid":8.0}')
        print("Another has an id from before the server was restarted; it shares the first one's snapshot:")
        async with listen("0123456789abcdef.3") as stream:
            await show(stream, '{"symbol":"Y","bid":8.0}')


if __name__ == "__main__":
    anyio.run(main)
