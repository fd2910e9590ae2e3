"""Run `aimonk-hf` in forks of one process that has imported everything, with signals at chosen moments.

A fork costs its own work only, has its own process group, and ends with a real exit status. `ForkedRuns` is the side
of the tests; run as a script, this file is the process that forks: it reads a request a line and answers with a line.
"""

import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}


class Ended(NamedTuple):
    """Exit status (below 0: the signal that killed it) and everything that was printed."""

    status: int
    printed: str


class ForkedRuns:
    """Start runs, each `aimonk-hf` (or a Python file) with its arguments, and wait for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
        )

    def start(self, arguments: list[str], rank: int = 0, **options: Any) -> int:
        """Return the process number; `at=("step", 3), number=SIGTERM` sends it the signal at the third step."""
        return self._ask(arguments=arguments, log=str(self._log(rank)), **options)

    def wait(self, process: int, rank: int = 0) -> Ended:
        return Ended(self._ask(wait=process), self._log(rank).read_text())

    def run(self, *arguments: str, **options: Any) -> Ended:
        return self.wait(self.start(list(arguments), **options))

    def run_two(
        self,
        arguments: list[str],
        second: list[str] | None = None,
        signal: dict[str, Any] | None = None,
        **options: Any,
    ) -> list[Ended]:
        """Run both processes of one run, each on a machine of its own, as `torchrun --nnodes 2` does.

        The second one may have other arguments, and gets the signal (`at` and `number`).
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        place |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        started = [
            self.start(given, rank, environment=place | {"RANK": str(rank)}, **options, **own)
            for rank, (given, own) in enumerate(((arguments, {}), (second or arguments, signal or {})))
        ]
        return [self.wait(process, rank) for rank, process in enumerate(started)]

    def close(self) -> None:
        self.process.communicate()

    def _log(self, rank: int) -> Path:
        return self.folder / f"printed-{rank}.txt"

    def _ask(self, **request: Any) -> int:
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())


def _send_at(moment: str, which: int, number: int, group: bool) -> None:
    """Send the signal when the moment comes for the `which`th time."""
    import torch
    from torch.nn.modules.module import register_module_forward_pre_hook
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from aimonk_hf import AimonkModel

    counter = count(1)

    def reached() -> None:
        if next(counter) == which:
            os.killpg(0, number) if group else os.kill(os.getpid(), number)

    def before(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def signalled(*given: Any, **named: Any) -> Any:
            reached()
            return real(*given, **named)

        setattr(owner, name, signalled)

    def scored(module: torch.nn.Module, _: Any) -> None:
        if isinstance(module, torch.nn.Linear) and not module.training:
            reached()

    begin = torch.utils.data.DataLoader.__iter__

    def batches(loader: Any) -> Any:
        for batch in begin(loader):
            reached()
            yield batch

    if moment == "step":
        register_optimizer_step_post_hook(lambda *_: reached())
    elif moment == "score":
        register_module_forward_pre_hook(scored)
    elif moment == "batch":
        torch.utils.data.DataLoader.__iter__ = batches  # type: ignore[method-assign]
    else:
        before(*{"rename": (os, "rename"), "save": (AimonkModel, "save_pretrained")}[moment])


def _fork(request: dict[str, Any]) -> int:
    child = os.fork()
    if child:
        return child
    os.setsid()
    sink = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(sink, stream)
    status: Any = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a script that starts pytest with & ignores it
        os.environ.update(request.get("environment", {}))
        if limit := request.get("file_limit"):
            import resource

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        if "at" in request:
            _send_at(*request["at"], request["number"], request.get("group", False))
        if "program" in request:
            sys.argv = [request["program"], *request["arguments"]]
            runpy.run_path(request["program"])
            status = 0
        else:
            status = main(request["arguments"])
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    import torch
    from matplotlib.figure import Figure

    from aimonk_hf.cli.main import main
    from aimonk_hf.training import finish

    for name in ("aimonk_hf.training.run", "huggingface_hub.repocard", "sklearn.linear_model", "sklearn.metrics"):
        import_module(name)  # that a run imports late
    torch.set_num_threads(1)
    Figure.savefig = lambda figure, path, **_: Path(path).write_bytes(b"")  # type: ignore[method-assign]
    finish.onnx_line = lambda model, folder: "onnx: none in tests"
    finish.plot_predictions = lambda dataset, predictions, path: path.write_bytes(b"")  # type: ignore[assignment]
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        asked = json.loads(line)
        answer = os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1]) if "wait" in asked else _fork(asked)
        print(answer, flush=True)
