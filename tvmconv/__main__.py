"""``python -m tvmconv``: the command line."""

import sys

from tvmconv.cli import main

if __name__ == "__main__":
    sys.exit(main())
