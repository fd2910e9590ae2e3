"""The command line: each command parses its flags, calls the library and prints."""

import argparse
import os
import sys
from collections.abc import Sequence

from aimonk_hf import __version__
from aimonk_hf.cli.evaluation import add_evaluation_commands
from aimonk_hf.cli.flags import Run
from aimonk_hf.cli.labelling import add_labelling_commands
from aimonk_hf.cli.prediction import add_prediction_commands
from aimonk_hf.cli.sharing import add_sharing_commands
from aimonk_hf.cli.training import add_training_commands
from aimonk_hf.errors import AimonkError, reason_of

# Packages whose modules have another name.
_PACKAGES = {"PIL": "pillow", "pytorch_grad_cam": "grad-cam", "sklearn": "scikit-learn"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0 done, 1 some inputs failed, 2 wrong usage or unusable data."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser("train" in arguments).parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except AimonkError as error:
        told = " ".join(str(error).splitlines())  # a file name may hold line breaks
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        told = f"This command needs {missing}, which is not installed: pip install {_PACKAGES.get(missing, missing)}"
    except (RuntimeError, MemoryError) as error:
        from aimonk_hf.modeling.devices import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        advice = "try a smaller --batch-size or --num-workers, or --device cpu"
        told = f"Out of memory ({reason_of(error)}): {advice}."
    except KeyboardInterrupt:
        print("aimonk-hf: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has gone: nothing more can be said to it, at exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    else:
        return status
    print(f"aimonk-hf: {told}", file=sys.stderr)
    return 2


def train_main() -> int:
    """Run `train.py`: the train command's flags without its name."""
    return main(["train", *sys.argv[1:]])


def _parser(with_train_flags: bool = True) -> argparse.ArgumentParser:
    """Return the parser of all commands; the flags of train, made from its settings, take longest to import."""
    description = "Multi-label image attributes with missing labels."
    parser = argparse.ArgumentParser("aimonk-hf", description=description, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"aimonk-hf {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Run, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        sub.set_defaults(run=run)
        return sub

    add_training_commands(command, with_train_flags)
    for add in (add_labelling_commands, add_prediction_commands, add_evaluation_commands, add_sharing_commands):
        add(command)
    return parser
