"""What torchrun tells the processes that it starts. Without PyTorch, which takes seconds to load."""

import os
import sys


def processes() -> int:
    """How many processes torchrun has started for this run; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Which of them this is."""
    return int(os.environ.get("RANK", 0))


def starts() -> int:
    """How often torchrun has started this run again, after a process of it was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def leave() -> None:
    """Say goodbye to the other processes, at the end of a run that went well."""
    if processes() > 1 and "torch" in sys.modules:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()
