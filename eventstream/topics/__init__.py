"""Topics: linked event buffers and the subscriptions that read them.

Reading order: `buffer` (the list and the splice), `parking` (how readers wait), `cursor` (how one reader moves),
`history` and `laggards` (what is kept, and who is too far behind), `past` (what a log keeps beyond that), `channel`,
`lock` and `live` (a topic with its keys), `subscription` (the public face), `disposal` (freeing without a pause).
"""

from .buffer import AnyEvent, Buffer, Place, Segment, walk
from .channel import Channel
from .cursor import Chain, Cursor
from .disposal import Disposal
from .laggards import Watch
from .live import Care, LiveTopic, TopicStatistics
from .parking import Lot, Spot, Waker, current_waker
from .past import Page, Past
from .subscription import Opening, Subscription, SubscriptionStatistics

__all__ = (
    "AnyEvent",
    "Buffer",
    "Care",
    "Chain",
    "Channel",
    "Cursor",
    "Disposal",
    "LiveTopic",
    "Lot",
    "Opening",
    "Page",
    "Past",
    "Place",
    "Segment",
    "Spot",
    "Subscription",
    "SubscriptionStatistics",
    "TopicStatistics",
    "Waker",
    "Watch",
    "current_waker",
    "walk",
)
