"""Training batches on the device, with a line of progress, and how long they took."""

import time
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from .progress import Progress


class Pace:
    """Iterates over a loader; the batches come moved to machine's device.

    title: of the progress line. first: steps of this pass done before, which the loader leaves out.
    """

    def __init__(self, loader: Any, machine: Any, title: str, first: int = 0) -> None:
        self.loader, self.machine, self.step = loader, machine, first
        self.progress = Progress(len(loader), title, machine.world.main, first)
        self.sequences, self.waited, self.began = 0, 0.0, time.perf_counter()

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        batches, mark = iter(self.loader), time.perf_counter()
        while (batch := next(batches, None)) is not None:
            batch = self.machine.move(batch)
            self.waited += time.perf_counter() - mark
            yield batch
            self.step += 1
            mark = time.perf_counter()
        self.progress.close()

    def show(self, sequences: int, loss: Tensor, lr: float) -> None:
        """A step of so many sequences is taken. Reads the loss, for which a GPU must wait, only where it is shown."""
        self.sequences += sequences * self.machine.world.size
        if self.progress.due():
            self.progress.show(self.step + 1, f"loss {loss.item():.4g}  lr {lr:.2g}", self.sequences)

    def report(self) -> dict[str, float]:
        """{"seconds", "sequences_per_second", "waiting": share of the time spent waiting for data}."""
        seconds = time.perf_counter() - self.began
        pace = {"seconds": seconds, "sequences_per_second": self.sequences / seconds}
        return pace | {"waiting": self.waited / seconds}
