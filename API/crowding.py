"""Tell when other processes take cores that a run on a CPU computes on.

PyTorch's threads meet at every operator. Where another process has one's core, all others wait until the system gives
it back, milliseconds for an operator of microseconds: beside one busy process training took ten to a hundred times as
long on both of two cores, and one and a half times on one of them (README, Speed and memory).
"""

import contextlib
import time
from pathlib import Path

import torch
from tqdm import tqdm

TASKS = Path("/proc/self/task")  # Linux; elsewhere nothing is told
EVERY = 20.0  # seconds
OFTEN = 0.3  # seconds a second, over all threads


def waited() -> float:
    """Seconds that this process's threads have been ready to run, while others had the cores."""
    total = 0
    for task in TASKS.glob("*/schedstat"):
        with contextlib.suppress(OSError, IndexError, ValueError):  # it has ended, or the system does not count
            total += int(task.read_text().split()[1])
    return total / 1e9


class Crowding:
    """Looks again whenever look is called and EVERY has passed, and warns once."""

    def __init__(self, device: torch.device) -> None:
        self.told = device.type != "cpu"
        self.began, self.waited = time.monotonic(), waited()

    def look(self) -> None:
        """Print a warning if this process's threads have often waited for a core."""
        now, threads = time.monotonic(), torch.get_num_threads()
        if self.told or threads == 1 or now - self.began < EVERY:
            return
        then, self.waited = self.waited, waited()
        share, self.began = (self.waited - then) / (now - self.began), now
        if share > OFTEN:
            self.told = True
            tqdm.write(
                f"warning: other processes have cores that this one's {threads} threads wait for, {min(share, 1):.0%} "
                f"of the time; OMP_NUM_THREADS={threads - 1}, or as many as cores are free, may be many times as fast"
            )
