"""`python -m eventstream.cli`: the same as `eventstream`."""

from . import main

if __name__ == "__main__":
    main()
