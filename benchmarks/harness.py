"""Cases, the processes that measure them, and the medians of what they say.

The rules that make two numbers of one table comparable:

* a measurement is a process of its own, so none inherits another's heap, caches or garbage;
* the cases of a section take turns, and the whole round is repeated: a slow minute of the machine hits all rows;
* a cell is the median of the repeats; a *ratio* is taken within each repeat, where its two sides ran side by side, and
  the median of the ratios is shown, so it is not the ratio of the two medians.

Nothing here knows what is measured, and nothing asserts a time.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

__all__ = ("Case", "Figures", "Plan", "Samples", "Section", "run_section")

Figures: TypeAlias = dict[str, float]

TIMEOUT = 120.0  # seconds for one measurement: several times what the slowest takes


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run.

    Attributes:
        loops: Event loops, where a section's numbers depend on them.
        repeats: Rounds.
        scale: Factor on all sizes and counts; below 1 for a quick look.
    """

    loops: tuple[str, ...]
    repeats: int
    scale: float

    def sizes(self, *sizes: int) -> list[int]:
        """The sizes to measure at, scaled; 1 stays 1, and what falls together is measured once."""
        return list(dict.fromkeys(size if size == 1 else max(2, int(size * self.scale)) for size in sizes))


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement: a row of a section, at a size, on a loop."""

    section: str
    row: str
    size: int
    loop: str = "asyncio"
    scale: float = 1.0
    rounds: int = 1000  # at most; fewer for what takes long

    def count(self, full: int, least: int = 1) -> int:
        """How many of something to do: `full` in a whole run."""
        return max(least, int(full * self.scale))


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report.

    Attributes:
        name: What selects it on the command line.
        cases: The measurements of one round, in the order of their turns.
        measure: Runs one case; called in its own process.
        render: The tables, as markdown.
        most_repeats: So many rounds are enough: bytes hardly vary, and some cases take seconds.
    """

    name: str
    cases: Callable[[Plan], list[Case]]
    measure: Callable[[Case], Figures]
    render: Callable[[Samples], str]
    most_repeats: int = 1000


@dataclass(slots=True)
class Samples:
    """The figures of every round; None where a measurement failed."""

    rounds: dict[Case, list[Figures | None]] = field(default_factory=dict)
    failures: dict[Case, str] = field(default_factory=dict)

    def add(self, case: Case, outcome: Figures | str) -> None:
        """Takes in figures, or what went wrong."""
        figures = None if isinstance(outcome, str) else outcome
        self.rounds.setdefault(case, []).append(figures)
        if isinstance(outcome, str):
            self.failures[case] = outcome

    def find(self, row: str, size: int, loop: str = "asyncio") -> Case | None:
        """The case of a row, if it was run."""
        return next((c for c in self.rounds if (c.row, c.size, c.loop) == (row, size, loop)), None)

    def median(self, case: Case | None, column: str) -> float | None:
        """Over the rounds that have the figure."""
        got = [value for _, value in self._column(case, column)]
        return statistics.median(got) if got else None

    def ratio(self, case: Case | None, base: Case | None, column: str) -> float | None:
        """The median, over the rounds that have both, of the case's figure by the base's."""
        bases = dict(self._column(base, column))
        got = [value / bases[turn] for turn, value in self._column(case, column) if bases.get(turn)]
        return statistics.median(got) if got else None

    def rows(self) -> list[str]:
        """The names of the rows that were run, in their order."""
        return list(dict.fromkeys(case.row for case in self.rounds))

    def sizes(self) -> list[int]:
        """The sizes that were run, in their order."""
        return list(dict.fromkeys(case.size for case in self.rounds))

    def loops(self) -> list[str]:
        """The loops that were run, in their order."""
        return list(dict.fromkeys(case.loop for case in self.rounds))

    def _column(self, case: Case | None, column: str) -> Iterator[tuple[int, float]]:
        for turn, figures in enumerate(self.rounds.get(case, []) if case is not None else []):
            if figures is not None and column in figures:
                yield turn, figures[column]


def run_section(section: Section, plan: Plan, progress: Callable[[str], None]) -> Samples:
    """All rounds of a section. A case that failed once is not tried again."""
    samples = Samples()
    cases = section.cases(plan)
    repeats = min(plan.repeats, section.most_repeats)
    for turn in range(repeats):
        for case in cases:
            if case in samples.failures or turn >= case.rounds:
                continue
            outcome = _in_process(case)
            samples.add(case, outcome)
            progress(f"{section.name} {turn + 1}/{repeats}  {case.row}  {case.size}  {case.loop}  {outcome}")
    return samples


def answer(sections: Sequence[Section], request: str) -> str:
    """The other side of `_in_process`: measures the case that `request` describes."""
    case = Case(**json.loads(request))
    section = next(section for section in sections if section.name == case.section)
    return json.dumps(section.measure(case))


def _in_process(case: Case) -> Figures | str:
    command = [sys.executable, "-m", "benchmarks", "--one", json.dumps(asdict(case))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return f"took more than {TIMEOUT:.0f} s"
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if any(map(str.isalpha, line))]  # not a group's frame
        return said[-1].strip(" |") if said else f"exit status {done.returncode}"
    figures: Any = json.loads(done.stdout.splitlines()[-1])
    return {str(name): float(value) for name, value in figures.items()}
