"""Measure the memory of a process and of those that it started, and end all of them."""

import resource
import threading
from contextlib import suppress
from pathlib import Path

import psutil

_SECONDS_BETWEEN_LOOKS = 0.25


def family(pid: int | None = None) -> list[psutil.Process]:
    """Return the processes that a process started, such as its readers, and itself last; none where it has ended."""
    with suppress(psutil.NoSuchProcess):
        own = psutil.Process(pid)
        return [*own.children(recursive=True), own]
    return []


def family_megabytes(pid: int | None = None) -> float:
    """Return what a process and those that it started hold now; pages that they share count in each."""
    total = 0
    for process in family(pid):
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / 2**20


def kill_family(pid: int) -> None:
    """End a process and those that it started."""
    for process in family(pid):
        with suppress(psutil.NoSuchProcess):
            process.kill()


class PeakMemory:
    """Looks at a process and those that it started four times a second, until the end of its `with` block."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.megabytes = family_megabytes(pid)

    def _watch(self) -> None:
        while not self._ended.wait(_SECONDS_BETWEEN_LOOKS):
            self.megabytes = max(self.megabytes, family_megabytes(self._pid))

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()


def reset_own_peak() -> float:
    """Let the peak begin anew where the system can (Linux), and return the megabytes held now."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return own_peak()


def own_peak() -> float:
    """Return the largest number of megabytes that this process held since `reset_own_peak`, or since it began."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
