"""The application's own database as the source of snapshots.

Every row has the version at which it was written, from one counter for the whole table. A write commits first and then
publishes with `index=version`, so an event's index and its row's version are the same number. The snapshot source reads
the rows and the counter in one transaction and returns the counter: the bus then sends a new subscriber these rows and
every later event, none missing and none twice, whatever is written meanwhile.

SQLite blocks, so all of it runs in threads. The bus keeps nothing: after a restart the table is still the truth.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import anyio
import msgspec
from anyio import to_thread

from eventstream import Append, Event, EventBus, Position, SnapshotEnd, SnapshotStart, Topic


class Item(msgspec.Struct, frozen=True):
    sku: str
    count: int


items: Topic[Item] = Topic("items", Item, key="sku")


class Warehouse:
    """The table. Its methods block: call them in a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._transaction("IMMEDIATE") as database:
            database.execute("CREATE TABLE item (sku TEXT PRIMARY KEY, count INTEGER, version INTEGER)")
            database.execute("CREATE TABLE counter (version INTEGER)")
            database.execute("INSERT INTO counter VALUES (0)")

    def write(self, item: Item) -> int:
        with self._transaction("IMMEDIATE") as database:
            ((version,),) = database.execute("UPDATE counter SET version = version + 1 RETURNING version").fetchall()
            database.execute("REPLACE INTO item VALUES (?, ?, ?)", (item.sku, item.count, version))
            return int(version)

    def read(self, sku: str | None) -> tuple[int, list[tuple[str, int, int]]]:
        # One transaction: rows and counter are of the same moment. Two would let a write slip in between.
        with self._transaction("DEFERRED") as database:
            ((version,),) = database.execute("SELECT version FROM counter").fetchall()
            rows = database.execute(
                "SELECT sku, count, version FROM item WHERE sku = ?1 OR ?1 IS NULL ORDER BY version", (sku,)
            ).fetchall()
            return version, rows

    @contextmanager
    def _transaction(self, kind: str) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, isolation_level=None)) as database:
            database.execute(f"BEGIN {kind}")
            yield database
            database.execute("COMMIT")  # after an error it is never reached, and closing rolls back


class Store:
    """The application: what is written to the warehouse is told on the bus."""

    def __init__(self, warehouse: Warehouse, bus: EventBus) -> None:
        self._warehouse = warehouse
        self._bus = bus
        self._writing = anyio.Lock()  # one writer at a time: publishes in the order of the commits
        bus.snapshot(items)(self._source)

    async def write(self, item: Item) -> Position:
        # Shielded: a cancellation between the commit and the publish would hide a committed row from all who listen.
        async with self._writing:
            with anyio.CancelScope(shield=True):
                version = await to_thread.run_sync(self._warehouse.write, item)
                position = await self._bus.publish(items, item, index=version)
        return position

    async def _source(self, key: str | None, append: Append) -> int:
        version, rows = await to_thread.run_sync(self._warehouse.read, key)
        for sku, count, row_version in rows:
            append(Item(sku, count), index=row_version)
        return version


async def main(directory: Path) -> None:
    warehouse = await to_thread.run_sync(Warehouse, directory / "warehouse.db")
    for item in (Item("bolt", 100), Item("nut", 80), Item("bolt", 90)):
        await to_thread.run_sync(warehouse.write, item)  # from a life before this bus

    async with EventBus() as bus:
        store = Store(warehouse, bus)
        async with bus.subscribe(items) as subscription:
            await store.write(Item("nut", 70))
            await store.write(Item("washer", 500))
            async for frame in subscription.frames():
                if isinstance(frame, SnapshotStart):
                    print(f"snapshot ({frame.reason})")
                elif isinstance(frame, SnapshotEnd):
                    print(f"complete at version {frame.position.index}; now live")
                    await store.write(Item("bolt", 89))
                elif isinstance(frame, Event):
                    print(f"  version {frame.index}: {frame.payload.sku} {frame.payload.count}")
                    if frame.payload == Item("bolt", 89):
                        break


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        anyio.run(main, Path(directory))
