"""A line of progress."""

import sys
import time
from collections.abc import Collection, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


class Progress:
    """A bar on a terminal; elsewhere a line every half minute, so that log files stay short.

    Ask `due` after each step and call `show` when it says so: what is shown may need the device, which a step must not.
    first: steps done before, by a run that was stopped; the time left is judged by the others.
    """

    def __init__(self, steps: int, title: str, shown: bool = True, first: int = 0) -> None:
        self.shown = shown
        self.terminal = sys.stderr.isatty()
        self.every = 0.5 if self.terminal else 30.0
        self.steps, self.title, self.first, self.began = steps, title, first, time.monotonic()
        self.last = self.began
        hidden = not (shown and self.terminal)
        self.bar = tqdm(total=steps, desc=title, initial=first, leave=False, disable=hidden, dynamic_ncols=True)

    def due(self) -> bool:
        """Whether enough time has passed since the last show."""
        return self.shown and time.monotonic() - self.last >= self.every

    def show(self, step: int, text: str = "", sequences: int | None = None) -> None:
        """Steps up to `step` are done, and so many sequences since this began."""
        self.last = time.monotonic()
        passed = max(self.last - self.began, 1e-9)
        speed = "" if sequences is None else f"{sequences / passed:.1f} sequences/s"
        text = "  ".join(part for part in (text, speed) if part)
        if self.terminal:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(step - self.bar.n)
        else:
            left = passed / max(step - self.first, 1) * (self.steps - step)
            parts = (self.title, f"step {step}/{self.steps}", text, f"{left:.0f} s left")
            print("  ".join(part for part in parts if part), flush=True)

    def close(self) -> None:
        """Take the bar away."""
        self.bar.close()


def follow(items: Collection[Item], title: str, shown: bool = True) -> Iterator[Item]:
    """items one by one, with a line of progress."""
    progress = Progress(len(items), title, shown)
    try:
        for done, item in enumerate(items, 1):
            yield item
            if progress.due():
                progress.show(done)
    finally:
        progress.close()
