"""Numbers as GitHub-flavoured markdown, to be pasted into the docs as they are."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .harness import Plan, Samples

__all__ = ("failures", "header", "number", "table", "times")

_WITH = (
    "eventstream",
    "anyio",
    "msgspec",
    "uvloop",
    "trio",
    "aiopubsub",
    "blinker",
    "broadcaster",
    "nats-py",
    "redis",
    "hiredis",
)


def header(plan: Plan) -> str:
    """When, on what, and how often."""
    facts = [
        time.strftime("%Y-%m-%d"),
        f"{platform.python_implementation()} {platform.python_version()}",
        f"loops {', '.join(plan.loops)}",
        f"{_cores()} cores",
        _processor(),
        f"medians of {plan.repeats}" + (" (memory, resume, snapshots: 3)" if plan.repeats > 3 else ""),
    ]
    if plan.scale != 1:
        facts.append(f"**sizes and counts scaled by {plan.scale:g}**")
    return f"{'; '.join(facts)}.\n\n{', '.join(_versions())}."


def table(head: Sequence[str], rows: Sequence[Sequence[str | float | None]]) -> str:
    """A table; numbers are shortened, and stand to the right."""
    cells = [list(head), *([cell if isinstance(cell, str) else number(cell) for cell in row] for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(head))]
    lines = [
        "| "
        + " | ".join(_justify(cell, width, at) for at, (cell, width) in enumerate(zip(row, widths, strict=True)))
        + " |"
        for row in cells
    ]
    rule = "|".join("-" * (width + 2) if not at else "-" * (width + 1) + ":" for at, width in enumerate(widths))
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def number(value: float | None) -> str:
    """Three digits: more than the machine repeats would be noise."""
    if value is None:
        return "-"
    for scale, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= scale * 0.9995:
            value /= scale
            return f"{value:.0f}{unit}" if abs(value) >= 100 else f"{value:.3g}{unit}"
    if abs(value) >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def times(ratio: float | None) -> str:
    """A ratio."""
    if ratio is None:
        return "-"
    return f"{ratio:.2f}x" if ratio >= 0.01 else f"{ratio:.1g}x"


def failures(samples: Samples) -> str:
    """A line for each measurement that failed: a row that is not there must not look like one that was not tried."""
    return "".join(
        f"\n* {case.row}, {case.size:,}, {case.loop}: failed: {error}" for case, error in samples.failures.items()
    )


def _justify(cell: str, width: int, at: int) -> str:
    return cell.rjust(width) if at else cell.ljust(width)


def _versions() -> list[str]:
    found = []
    for name in _WITH:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} (not installed)")
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
