"""One training process a run folder: a lock of the operating system, which ends with the process that holds it."""

import atexit
import contextlib
import errno
import os
import platform
import time
from pathlib import Path
from typing import IO

from .. import UserError

NAME = ".lock"
HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)  # by another process; other errors: this file system has no locks
_open: dict[tuple[int, Path], IO] = {}  # by process: a fork inherits the file, but not the lock


def hold(folder: Path) -> None:
    """Keep other processes from training in folder, until this one ends or lets go; once more is no error.

    After a kill nothing has to be cleaned up: the lock is the operating system's, the file RUN/.lock only names who
    holds it. Raises UserError where another process does, OSError where folder cannot be written to.
    """
    key = (os.getpid(), Path(folder).resolve())
    if key in _open:
        return
    file = _lock_file(folder)
    _open[key] = file
    atexit.register(let_go, folder)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()} (since {time.strftime('%Y-%m-%d %H:%M:%S')})\n")
    file.flush()


def let_go(folder: Path) -> None:
    """Let others train in folder."""
    file = _open.pop((os.getpid(), Path(folder).resolve()), None)
    if file is not None:
        with contextlib.suppress(OSError):  # Windows removes no open file; it stays, and does no harm
            (folder / NAME).unlink()
        with contextlib.suppress(OSError):  # of a full disk; closing is what unlocks
            file.close()


def _lock_file(folder: Path) -> IO:
    """RUN/.lock, open and locked."""
    for attempt in range(10):
        file = (folder / NAME).open("a+", encoding="utf-8")
        try:
            _lock(file)
        except OSError as error:
            if error.errno in HELD:
                file.seek(0)
                who = file.readline(200).strip() or "another process"
                file.close()
                raise UserError(
                    f"{folder}: {who} trains this run already; wait for it or stop it, or start another --ex_name"
                ) from None
            print(f"warning: {folder} cannot be locked ({error.strerror}): see to it that one process trains there")
            return file
        if attempt == 9 or _is_at(file, folder / NAME):  # some network drives number files anew all the time
            break
        file.close()
    return file


def _is_at(file: IO, path: Path) -> bool:
    """Whether path still names the open file; its holder may have removed it before we could lock it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock(file: IO) -> None:
    """Take the lock or raise OSError. Not flock: processes that load data would inherit it and outlive a kill."""
    try:
        import fcntl
    except ImportError:
        import msvcrt

        file.seek(2**30)  # Windows keeps others from reading what is locked
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
