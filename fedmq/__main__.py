"""`python -m fedmq` is the `fedmq` command."""

import sys

from fedmq.cli import main

if __name__ == "__main__":
    sys.exit(main())
