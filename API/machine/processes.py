"""What torchrun tells the processes that it starts. Without PyTorch, which takes seconds to load."""

import os
import platform
import sys
from typing import NoReturn

from .. import UserError


def processes() -> int:
    """How many processes torchrun has started for this run; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Which of them this is."""
    return int(os.environ.get("RANK", 0))


def starts() -> int:
    """How often torchrun has started this run again, after a process of it was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def launch() -> str | None:
    """Which torchrun started this process: the same after a restart, another one for another call. None without it."""
    if processes() == 1:
        return None
    if int(os.environ.get("LOCAL_WORLD_SIZE", processes())) < processes():  # on many machines: what the user calls it
        return os.environ.get("TORCHELASTIC_RUN_ID")
    return f"process {os.getppid()} on {platform.node()}"


def check_launch() -> None:
    """Raise UserError where something else than torchrun has set WORLD_SIZE, and not all that goes with it."""
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            several = f"WORLD_SIZE is {os.environ['WORLD_SIZE']} in the environment, as of several processes"
            raise UserError(f"{several}, but {name} is not set; start them with torchrun, or unset WORLD_SIZE")


def leave(code: int, well: bool = True) -> NoReturn:
    """End this process with an exit code; after a run that went well, say goodbye to the others.

    One of several is ended without shutting Python down: a thread of Gloo that lets go of a tensor meanwhile aborts it.
    """
    if processes() == 1 or "torch" not in sys.modules:
        sys.exit(code)
    import torch.distributed as dist

    if well and dist.is_initialized():
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
