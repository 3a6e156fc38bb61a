"""What a scenario is, and how one is found by name.

A scenario is an async function that plays something through under a seed and raises if what it saw was wrong. The
runner (`eventstream.testing.simulate`) knows nothing else about it.
"""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import msgspec

__all__ = ("KNOWN", "Note", "Play", "Scenario", "find_scenario")

Note: TypeAlias = Callable[[str], object]
"""Takes a line of what happens; printed by `--verbose`."""

Play: TypeAlias = Callable[[int, Note], Awaitable[object]]
"""Called with the seed and a `Note`; raises if something went wrong."""

KNOWN: Final = {
    "bus": "eventstream.testing.scenarios.bus:scenario",
    "network": "eventstream.testing.scenarios.network:scenario",
    "pipes": "eventstream.testing.scenarios.pipes:scenario",
}
"""Where the scenarios with short names are. Text, so that running one does not import all others."""


class Scenario(msgspec.Struct, frozen=True):
    """Something to be played under many seeds.

    Attributes:
        name: What it is called where results are printed.
        play: The async function. All its randomness comes from the seed that it is given.
        limit: Virtual seconds after which a run counts as failed.
    """

    name: str
    play: Play
    limit: float = 3600.0


def find_scenario(name: str) -> Scenario:
    """The scenario of a short name, or at `module:attribute`.

    Args:
        name: One of `KNOWN`, or where to import a `Scenario` from.

    Raises:
        LookupError: if there is none; the text says what there is.
    """
    module, found, attribute = KNOWN.get(name, name).partition(":")
    if not found:
        raise LookupError(f"no scenario {name!r}: there are {', '.join(sorted(KNOWN))}, and yours as module:attribute")
    try:
        scenario = getattr(importlib.import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise LookupError(f"no scenario {name!r}: {error}") from error
    if not isinstance(scenario, Scenario):
        raise LookupError(f"{name!r} is not a Scenario: {scenario!r}")
    return scenario
