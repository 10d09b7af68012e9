"""A line of progress."""

import sys
import time

from tqdm import tqdm


class Progress:
    """A bar on a terminal; elsewhere a line every half minute, so that log files stay short.

    Ask `due` after each step and call `show` when it says so: what is shown may need the device, which a step must not.
    """

    def __init__(self, steps: int, title: str, shown: bool = True) -> None:
        self.shown = shown
        self.terminal = sys.stderr.isatty()
        self.every = 0.5 if self.terminal else 30.0
        self.steps, self.title, self.began = steps, title, time.monotonic()
        self.last = self.began
        self.bar = tqdm(total=steps, desc=title, leave=False, disable=not (shown and self.terminal), dynamic_ncols=True)

    def due(self) -> bool:
        """Whether enough time has passed since the last show."""
        return self.shown and time.monotonic() - self.last >= self.every

    def show(self, step: int, text: str, sequences: int) -> None:
        """Step `step` is done, and so many sequences."""
        self.last = time.monotonic()
        text = f"{text}  {sequences / (self.last - self.began):.1f} sequences/s"
        if self.terminal:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(step - self.bar.n)
        else:
            left = (self.last - self.began) / step * (self.steps - step)
            print(f"{self.title}  step {step}/{self.steps}  {text}  {left:.0f} s left", flush=True)

    def close(self) -> None:
        """Take the bar away."""
        self.bar.close()
