"""Reports branch coverage, and fails if a module is below its floor: an average hides what nobody tests."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

FLOOR = 90.0  # percent of a module's lines and branches


def main() -> None:
    """Reads the data that `coverage combine` left."""
    coverage = [sys.executable, "-m", "coverage"]
    subprocess.run([*coverage, "report"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "coverage.json")
        subprocess.run([*coverage, "json", "--quiet", "-o", str(report)], check=True)
        files = json.loads(report.read_text())["files"]
    covered = {name: file["summary"]["percent_covered"] for name, file in files.items()}
    low = {name: percent for name, percent in covered.items() if percent < FLOOR}
    for name, percent in sorted(low.items()):
        print(f"{name}: {percent:.1f} % is covered, {FLOOR:.0f} % is the least")
    if low or not covered:
        sys.exit("coverage is below its floor" if low else "nothing was covered: did any test run?")


if __name__ == "__main__":
    main()
