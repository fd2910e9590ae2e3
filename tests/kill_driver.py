"""Run a training again and again, killing it at random moments, until one attempt gets to its end; prints how often it
was killed.

Every attempt is a fork of this process, which has imported everything and computed nothing: an attempt costs its own
work only. `python kill_driver.py KILLS SEED FLAGS...` with the flags of `aimonk-hf train`.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import aimonk_hf.training.run
from aimonk_hf.cli.main import main

torch.set_num_threads(1)


def attempt(flags: list[str]) -> int:
    """Start the training in a child; return its process number."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(main(["train", "--resume", *flags]))
    return child


def newest(checkpoints: Path) -> str:
    found = sorted(path.name for path in checkpoints.glob("step-*"))
    return found[-1] if found else ""


def drive(kills: int, seed: int, flags: list[str]) -> None:
    assert aimonk_hf.training.run  # imported before the first fork
    checkpoints = Path(flags[flags.index("--output-dir") + 1]) / "checkpoints"
    chance, killed, places = random.Random(seed), 0, []
    while killed < kills:
        before = newest(checkpoints)
        child = attempt(flags)
        while newest(checkpoints) == before:  # it gets a step further before it is killed: the run must end some time
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run ended before all kills were made"
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.25))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            break  # it was faster
        killed += 1
        places.append(newest(checkpoints))
    _, status = os.waitpid(attempt(flags), 0)
    assert os.waitstatus_to_exitcode(status) == 0
    print(f"killed {killed} times, last checkpoints {' '.join(places)}")


if __name__ == "__main__":
    drive(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
