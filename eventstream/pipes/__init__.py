"""Backed pipes: byte streams that outlive their connections.

Reading order: `frames` (what passes over a link), `pieces` and `ring` (bytes kept by reference), `writer` and `reader`
(the two halves of a session), `liveness`, `retry` and `handshake` (decisions), `session` (one end, with its table of
states): all of these are pure. Then the shells that wait: `signal`, `tcp` and `direct` (the way to a socket), `link`
(one connection), `pipe` (what programs hold), `dialing` (the end that dials), `registry`, `served` and `server` (the
end that is dialed).
"""

from .dialing import BackedPipe, Reconnector, is_temporary
from .pipe import Pipe
from .reader import BackedReader
from .retry import Retry
from .ring import RingBuffer
from .server import PipeHandler, PipeLimits, PipeServer, PipeServerStatistics
from .session import PipeStatistics
from .writer import BackedWriter

__all__ = (
    "BackedPipe",
    "BackedReader",
    "BackedWriter",
    "Pipe",
    "PipeHandler",
    "PipeLimits",
    "PipeServer",
    "PipeServerStatistics",
    "PipeStatistics",
    "Reconnector",
    "Retry",
    "RingBuffer",
    "is_temporary",
)
