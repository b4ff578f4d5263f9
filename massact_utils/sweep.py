"""The command `python -m massact_utils.sweep`; what it does stands in massact_utils/results/sweep.py."""

import sys

from .results.sweep import main

if __name__ == "__main__":
    sys.exit(main())
