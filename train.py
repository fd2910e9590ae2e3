"""Train a model: `python train.py --data-dir data --output-dir out`, or `accelerate launch train.py ...`."""

import sys

from aimonk_hf.cli.main import train_main

if __name__ == "__main__":
    sys.exit(train_main())
