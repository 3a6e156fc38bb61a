"""A typed view: the present state of a compacted topic as a mapping, and reading your own writes.

A view never shows half of anything: a batch is seen whole, and what is read between two awaits is of one moment. It is
current as of `view.position`; who has just published waits for that with `view.reached(position)`.
"""

from __future__ import annotations

import anyio
import msgspec

from eventstream import EventBus, Topic


class Flag(msgspec.Struct, frozen=True):
    name: str
    percent: int


flags: Topic[Flag] = Topic("flags", Flag, key="name", compacted=True)


async def main() -> None:
    async with EventBus() as bus:
        await bus.publish_many(flags, [Flag("dark-mode", 100), Flag("new-search", 5)])

        async with bus.view(flags) as view:
            await view.ready()
            print("first state: ", {name: flag.percent for name, flag in view.items()})

            changes = view.changes()
            position = await bus.publish(flags, Flag("new-search", 50))
            await view.reached(position)  # without this the view might not have come so far yet
            print("my own write:", view["new-search"].percent, "percent, at index", position.index)

            # `expect` makes it safe to change what was read: nobody else has changed this key in between.
            seen = view["new-search"]
            position = await bus.publish(flags, Flag(seen.name, seen.percent * 2), expect=position.index)
            await bus.delete(flags, "dark-mode")
            position = await bus.publish(flags, Flag("beta", 1))
            await view.reached(position)
            print("changed:     ", ", ".join(sorted(await anext(changes))))
            print("last state:  ", {name: flag.percent for name, flag in view.items()})


if __name__ == "__main__":
    anyio.run(main)
