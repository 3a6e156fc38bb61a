"""The testing kit: a network in memory whose faults follow a seed, and time that passes by itself.

    from eventstream.testing import Faults, Network, run_simulated

For any code over anyio's byte streams, ours or yours. How to use it: docs/how-to/testing.md. Nothing in eventstream
imports this package.
"""

from __future__ import annotations

from .check_log import CheckFailed as CheckFailed
from .check_log import check_log as check_log
from .clock import run_simulated as run_simulated
from .conditions import NetworkStatistics as NetworkStatistics
from .faults import Direction as Direction
from .faults import Faults as Faults
from .link import Link as Link
from .listener import NetworkListener as NetworkListener
from .network import Network as Network
from .proxy import CuttingProxy as CuttingProxy
from .scenarios import Note as Note
from .scenarios import Scenario as Scenario
from .stream import NetworkStream as NetworkStream
from .stuck import Deadlock as Deadlock
from .stuck import OutOfTime as OutOfTime
from .stuck import SimulationError as SimulationError
