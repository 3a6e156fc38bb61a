"""What a test does to links by hand, done by a seed: beside the faults that a network draws by itself."""

from __future__ import annotations

from random import Random

import anyio

from ..faults import Direction
from ..network import Network

__all__ = ("harm_links",)


async def harm_links(network: Network, random: Random, most: int) -> None:
    """Does some harm, about once a second, to links that happen to live then; at most so many times."""
    for _ in range(random.randrange(most)):
        await anyio.sleep(random.expovariate(1))
        if not network.links:
            continue
        link = random.choice(network.links)
        direction: Direction | None = random.choice(("up", "down", None))
        harm = random.choice(("cut", "lossy", "close", "stall", "half_open", "later", "duplicate", "dials"))
        if harm in ("cut", "lossy"):
            link.cut(lose=harm == "lossy")
        elif harm == "close":
            link.close()
        elif harm == "stall":
            link.stall(random.expovariate(1), direction=direction)
        elif harm == "half_open":
            link.half_open(direction)
        elif harm == "later":
            link.cut_after(random.randrange(2000), direction=direction)
        elif harm == "duplicate":
            network.duplicate(link)
        else:
            network.hang_dials(1)
            network.delay_dials(random.random(), 0)
            await anyio.sleep(1)
            network.release_dials(newest_first=True)
