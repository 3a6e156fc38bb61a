"""`eventstream demo`: a week of flights through a bus, watched, and counted at the end.

Reading order: `flights` (the input), `counting` (what the table at the end is worth), `stage` and `readers` (who acts),
`play` (all of it together), `board` (drawing), `show` (the run on a terminal or without one).
"""

from .show import Options, run

__all__ = ("Options", "run")
