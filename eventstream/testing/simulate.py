"""`python -m eventstream.testing.simulate SCENARIO --seeds N`: plays a scenario under many seeds, in simulated time.

Prints what was played and how fast, or the first seed that failed, with its error and the command that plays it again.
Exit codes: 0 all passed, 1 a seed failed, 2 wrong usage, 130 interrupted.

A run depends on the scenario, the seed, the backend, and on `PYTHONHASHSEED`, since sets of strings are gone through in
its order: so this sets it to 0 for itself and its processes, unless it is set.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
import time
import traceback
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Final, Literal

from .clock import run_simulated
from .crew import Outcome, play_in_processes
from .scenarios import KNOWN, find_scenario

__all__ = ("main",)

Backend = Literal["trio", "asyncio"]
FAILED: Final = 1
INTERRUPTED: Final = 130


def play_seed(name: str, backend: Backend, verbose: bool, seed: int) -> Outcome:
    """Plays a scenario once. Runs in whatever process has a processor free."""
    scenario = find_scenario(name)
    trace: list[str] = []
    try:
        with _unlogged():
            run_simulated(
                scenario.play,
                seed,
                trace.append if verbose else _ignore,
                seed=seed,
                backend=backend,
                limit=scenario.limit,
            )
    except Exception:
        return Outcome(seed, traceback.format_exc(), trace)
    return Outcome(seed, None, trace)


@contextmanager
def _unlogged() -> Generator[None, None, None]:
    """What goes wrong here does so on purpose: it is in the trace, and no warning to anybody."""
    logger = logging.getLogger("eventstream")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command.

    Args:
        arguments: As on the command line, without the program's name. None: those of the process.

    Returns:
        The exit code.
    """
    options = _parse(arguments)
    began = time.perf_counter()
    played = 0
    try:
        with closing(_outcomes(options)) as outcomes:
            for outcome in outcomes:
                played += 1
                if options.verbose:
                    _print(f"seed {outcome.seed}", *outcome.trace)
                if outcome.error is not None:
                    _print(
                        f"seed {outcome.seed} of {options.scenario} failed on {options.backend}:",
                        outcome.error,
                        f"again: {_again(options, outcome.seed)}",
                    )
                    return FAILED
    except KeyboardInterrupt:
        _print(f"interrupted after {_rate(played, began)}")
        return INTERRUPTED
    last = options.first + options.seeds - 1
    _print(
        f"{options.scenario} on {options.backend}, seeds {options.first} to {last}: {_rate(played, began)}, all passed"
    )
    return 0


def _outcomes(options: argparse.Namespace) -> Generator[Outcome, None, None]:
    seeds = range(options.first, options.first + options.seeds)
    play = partial(play_seed, options.scenario, options.backend, options.verbose)
    yield from map(play, seeds) if options.jobs == 1 else play_in_processes(play, seeds, options.jobs)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m eventstream.testing.simulate", description="Plays a scenario under many seeds."
    )
    parser.add_argument("scenario", help=f"{', '.join(sorted(KNOWN))}, or yours as module:attribute")
    parser.add_argument("--seeds", type=int, default=100, help="how many (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (%(default)s)")
    parser.add_argument("--backend", choices=("trio", "asyncio"), default="trio", help="the event loop (%(default)s)")
    parser.add_argument("--verbose", action="store_true", help="print what happens in each run")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.jobs < 1:
        parser.error("--seeds and --jobs are at least 1")
    try:
        find_scenario(options.scenario)
    except LookupError as error:
        parser.error(str(error.args[0]))
    return options


def _again(options: argparse.Namespace, seed: int) -> str:
    words = [sys.executable, "-m", "eventstream.testing.simulate", options.scenario]
    words += ["--first", str(seed), "--seeds", "1", "--backend", options.backend, "--verbose"]
    hashing = os.environ.get("PYTHONHASHSEED", "0")
    return ("" if hashing == "0" else f"PYTHONHASHSEED={hashing} ") + shlex.join(words)


def _rate(played: int, began: float) -> str:
    seconds = time.perf_counter() - began
    return f"{played} seeds in {seconds:.1f} s, {played / seconds:.0f} seeds/s"


def _print(*lines: str) -> None:
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def _ignore(_: str) -> None:
    """A note that nobody reads."""


def _fix_hashing() -> None:
    """Starts this program again with a fixed order of sets, where that is possible in place."""
    if "PYTHONHASHSEED" not in os.environ and sys.platform != "win32":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606  # itself, with its own arguments


if __name__ == "__main__":
    _fix_hashing()
    sys.exit(main())
