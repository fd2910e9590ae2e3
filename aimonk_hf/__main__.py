"""`python -m aimonk_hf` is the command line."""

import sys

from aimonk_hf.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
