"""Scenarios that `python -m eventstream.testing.simulate` plays; each in a module of its own."""

from __future__ import annotations

from .scenario import KNOWN as KNOWN
from .scenario import Note as Note
from .scenario import Play as Play
from .scenario import Scenario as Scenario
from .scenario import find_scenario as find_scenario
