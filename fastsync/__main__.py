"""``python -m fastsync``: the same as the command."""

import sys

from fastsync.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
