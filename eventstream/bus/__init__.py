"""The hub that users hold: `EventBus`."""

from .bus import EventBus
from .handlers import Handler, OnError
from .statistics import BusStatistics
from .submission import submit

__all__ = ("BusStatistics", "EventBus", "Handler", "OnError", "submit")
