"""Stop when asked to, after the step that is running: SIGTERM, SIGINT, and SIGUSR1, which clusters send."""

import signal
from types import FrameType

RESUME_ME = 75  # exit code: temporary failure, start again (EX_TEMPFAIL of sysexits.h)


class Interrupted(Exception):
    """The run was asked to stop and has saved where it stands."""


class StopSignals:
    """A context in which the signals set `asked` instead of ending the process; a second SIGINT ends it at once."""

    NAMES = ("SIGTERM", "SIGINT", "SIGUSR1")  # SIGUSR1 is missing on Windows

    def __enter__(self) -> "StopSignals":
        self.asked = False
        self.before = {}
        for number in (getattr(signal, name) for name in self.NAMES if hasattr(signal, name)):
            try:
                self.before[number] = signal.signal(number, self.ask)
            except ValueError:  # not in the main thread: whoever runs us there handles signals
                break
        return self

    def ask(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        print(f"\n{signal.Signals(number).name}: stopping after this step; a second Ctrl-C stops at once", flush=True)

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
