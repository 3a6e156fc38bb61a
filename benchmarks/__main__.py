"""The command: runs the sections that are asked for, prints their tables. See `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import sys
import time
from importlib import import_module
from importlib.util import find_spec

from .feeds import missing
from .harness import Plan, Section, answer, run_section
from .network.far import missing as missing_peers
from .report import failures, header

NAMES = ("fanout", "publishing", "memory", "resume", "snapshots", "pipes", "remote", "durable")
LOOPS = ("asyncio", "uvloop", "trio")


def main() -> None:
    """Parses, runs, prints. Tables go to stdout, progress to stderr."""
    arguments = _parse()
    if arguments.one:
        print(answer(_sections(NAMES), arguments.one))
        return
    quick = arguments.quick
    wanted = (arguments.loops or ",".join(LOOPS[:1] if quick else LOOPS)).split(",")
    loops = tuple(loop for loop in wanted if find_spec(loop) is not None)
    plan = Plan(loops, arguments.repeats or (1 if quick else 5), arguments.scale or (0.1 if quick else 1.0))

    def progress(line: str) -> None:
        if not arguments.silent:
            print(line, file=sys.stderr, flush=True)

    start = time.perf_counter()
    print(f"{header(plan)}\n", flush=True)
    for section in _sections(arguments.sections or NAMES):
        samples = run_section(section, plan, progress)
        print(f"{section.render(samples)}\n{failures(samples)}", flush=True)
    notes = [f"Left out, not installed: {', '.join(absent)}."] if (absent := _absent(wanted)) else []
    print("\n".join([*notes, f"Measured in {time.perf_counter() - start:.0f} s."]))


def _sections(names: tuple[str, ...] | list[str]) -> list[Section]:
    return [import_module(f".{name}", __package__).SECTION for name in names]


def _absent(loops: list[str]) -> list[str]:
    return [*missing(), *missing_peers(), *(loop for loop in loops if find_spec(loop) is None)]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="What eventstream costs, beside its peers."
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(NAMES)}; all by default")
    parser.add_argument("--loops", help=f"for fan-out and pipes; {','.join(LOOPS)} by default")
    parser.add_argument("--repeats", type=int, help="rounds, whose medians are shown; 5 by default")
    parser.add_argument("--scale", type=float, help="factor on all sizes and counts; 1 by default")
    parser.add_argument("--quick", action="store_true", help="one round at a tenth of the size, on asyncio alone")
    parser.add_argument("--silent", action="store_true", help="no progress on stderr")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a case as JSON: the side of the process that measures
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.sections if name not in NAMES]:
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if unknown := [loop for loop in (arguments.loops or LOOPS[0]).split(",") if loop not in LOOPS]:
        parser.error(f"no loop {', '.join(unknown)}; there are {', '.join(LOOPS)}")
    return arguments


if __name__ == "__main__":
    main()
