"""Stop when asked to, after the step that is running, with everything saved."""

import signal
from contextlib import suppress
from types import FrameType

from .output import reader_gone

RESUME_ME = 75  # exit code: temporary failure, start again (EX_TEMPFAIL of sysexits.h)


class Interrupted(Exception):
    """The run was asked to stop and has saved where it stands."""


class StopSignals:
    """A context in which signals ask the run to stop instead of ending the process; a second SIGINT ends it at once.

    A closed pipe on the standard output asks for the same, see API/run/output.py.
    """

    # SIGUSR1: clusters send it ahead of a time limit; SIGHUP: the terminal is gone. Windows has neither.
    NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")

    def __enter__(self) -> "StopSignals":
        self.signalled = False
        self.before = {}
        for number in (getattr(signal, name) for name in self.NAMES if hasattr(signal, name)):
            if signal.Signals(number).name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup: to go on without a terminal
            try:
                self.before[number] = signal.signal(number, self.ask)
            except ValueError:  # not in the main thread: whoever runs us there handles signals
                break
        return self

    @property
    def asked(self) -> bool:
        """Whether to stop."""
        return self.signalled or reader_gone()

    def ask(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if self.signalled and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signalled = True
        with suppress(OSError):  # the terminal may be gone
            name = signal.Signals(number).name
            print(f"\n{name}: stopping after this step; a second Ctrl-C stops at once", flush=True)

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
