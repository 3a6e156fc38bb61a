"""The command line. It needs the extra `cli`; this module alone does not, so that it can say so.

Nothing else of eventstream imports from here.
"""

from __future__ import annotations

import logging
import sys
from typing import Final

__all__ = ("main",)

EXTRA: Final = frozenset({"cyclopts", "rich"})


def main() -> None:
    """Runs the command that `sys.argv` names, and exits with its code."""
    try:
        from .app import call  # only here: without the extra this module must still be importable
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRA:
            raise  # not the extra: something is broken, and its traceback tells what
        sys.exit(f"eventstream: the command line needs {missing}, which is not installed.\n"
                 "Install the extra: pip install 'eventstream[cli]'")  # fmt: skip
    except KeyboardInterrupt:
        sys.exit(130)  # before there is anything to end
    logging.getLogger("eventstream.pipes").setLevel(logging.ERROR)  # each command tells of its connection by itself
    sys.exit(call(sys.argv[1:]))
