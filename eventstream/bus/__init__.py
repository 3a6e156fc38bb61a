"""The hub that users hold: `EventBus`."""

from .bus import EventBus
from .handlers import Handler, OnError
from .statistics import BusStatistics

__all__ = ("BusStatistics", "EventBus", "Handler", "OnError")
