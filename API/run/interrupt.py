"""Stop when asked to, after the step that is running, with everything saved."""

import multiprocessing
import signal
from contextlib import suppress
from types import FrameType

from .output import reader_gone

RESUME_ME = 75  # exit code: temporary failure, start again (EX_TEMPFAIL of sysexits.h)


class Interrupted(Exception):
    """The run was asked to stop and has saved where it stands."""


# SIGUSR1: clusters send it ahead of a time limit; SIGHUP: the terminal is gone. Windows has neither.
NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
STOP_SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


def ignore_stop_signals(worker: int) -> None:
    """worker_init_fn of a DataLoader: a signal that stops a run reaches all of its processes (Ctrl-C, Slurm, systemd,
    timeout), but the step that is running still needs its batches. The main process ends its workers: end_workers."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_workers() -> None:
    """At exit: end the workers that are left, as after a bug. Python itself would send SIGTERM, and wait for ever."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler takes this for a failure
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


class StopSignals:
    """A context in which signals ask the run to stop instead of ending the process; a second SIGINT ends it at once.

    A closed pipe on the standard output asks for the same, see API/run/output.py.
    """

    def __enter__(self) -> "StopSignals":
        self.signalled = False
        self.before = {}
        for number in STOP_SIGNALS:
            if number.name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN:
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
