"""Where and how to compute: device, precision, processes and seeds; and what failures of the hardware look like."""

import importlib.util
import os
import random
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from .. import UserError
from ..speed.memory import keep_freed_memory
from .distributed import World
from .processes import processes

PRECISIONS = ("auto", "fp32", "tf32", "bf16")
# Parts of messages. PyTorch's own allocator raises OutOfMemoryError; these are of libraries that allocate beside it.
OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "not enough memory",
    "out of memory",  # CUDA's own error, also inside NCCL
    "Failed to CUDA",  # NCCL: … calloc, malloc, host alloc
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUFFT_ALLOC_FAILED",
    "CUFFT_INTERNAL_ERROR",  # cuFFT, where there is no memory for a plan
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
)
PEER_IS_LOST = (
    "gloo",
    "Connection closed",
    "Connection reset",
    "Broken pipe",
    "ncclRemoteError",
    "ncclSystemError",
    "remote process exited",
    "collective operation timeout",
    "NCCL communicator was aborted",
    "Timed out waiting",  # the store that processes meet at
    "wait timeout after",
)


def choose_device(name: str, gpu: int = 0) -> torch.device:
    """--device: auto takes a GPU where there is one. Raises UserError where the asked one is not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(device for device in ("cuda", "mps", "cpu") if there[device])
    if name not in there:
        raise UserError(f"--device {name}: is one of auto, {', '.join(there)}; --gpu says which of many")
    if not there[name]:
        raise UserError(f"--device {name}: PyTorch finds none here; --device auto takes what there is")
    if name == "cuda" and gpu >= torch.cuda.device_count():
        raise UserError(f"--gpu {gpu}: there are {torch.cuda.device_count()} GPUs, counted from 0")
    return torch.device(name, gpu) if name == "cuda" else torch.device(name)


def choose_precision(name: str, device: torch.device) -> str:
    """--precision: auto is bfloat16 where the hardware multiplies it natively, else float32."""
    if name not in PRECISIONS:
        raise UserError(f"--precision {name}: is one of {', '.join(PRECISIONS)}")
    if name != "auto":
        return name
    if device.type == "cuda":
        with torch.cuda.device(device):  # of many, the one that is meant
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)  # not public, absent from old versions
    return "bf16" if device.type == "cpu" and native() else "fp32"


class Machine:
    """The device and precision of a run: moves batches there and opens the autocast context.

    Making one seeds the random generators, sets PyTorch's backends, and joins the other processes of the run, if any:
    with those, each takes the GPU of its own number.
    """

    def __init__(
        self, device: str, gpu: int, precision: str, seed: int, deterministic: bool, timeout: float = 10.0
    ) -> None:
        self.device = choose_device(device, int(os.environ.get("LOCAL_RANK", 0)) if processes() > 1 else gpu)
        if self.device.type == "cuda":
            # PyTorch's current GPU is 0 until told otherwise: what names no device would be computed or asked there.
            torch.cuda.set_device(self.device)
        self.world = World(self.device, timeout)
        self.precision = choose_precision(precision, self.device)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - the global one, which other packages may use
        torch.manual_seed(seed)
        torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = self.precision == "tf32"
        torch.backends.cudnn.benchmark = not deterministic
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first matrix product runs
            torch.use_deterministic_algorithms(True)

    @property
    def compiles(self) -> bool:
        """Whether compiled blocks pay here: on GPUs that multiply bfloat16, where Triton is at hand; not on CPUs."""
        if self.device.type != "cuda" or torch.cuda.get_device_capability(self.device) < (8, 0):
            return False
        return importlib.util.find_spec("triton") is not None

    @property
    def captures(self) -> bool:
        """Whether computations can be CUDA graphs here; not where processes exchange gradients in them."""
        return self.device.type == "cuda" and self.world.size == 1

    def autocast(self) -> torch.autocast:
        """bfloat16 where that is the precision, else nothing."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def move(self, batch: Iterable[Tensor]) -> tuple[Tensor, ...]:
        """The batch on the device; on CUDA without waiting for the copy.

        Elsewhere it must wait: MPS would read the batch after the loader has let go of it.
        """
        return tuple(x.to(self.device, non_blocking=self.device.type == "cuda") for x in batch)

    def __str__(self) -> str:
        processes = f", {self.world.size} processes" if self.world.size > 1 else ""
        return f"{self.device} in {self.precision}{processes}"


def prepare(config: SimpleNamespace) -> Machine:
    """The device and precision of the flags of main.py; the random generators are seeded.

    Raises UserError for flags that this machine has no use for.
    """
    machine = Machine(config.device, config.gpu, config.precision, config.seed, config.deterministic, config.timeout)
    if config.graphs and not machine.captures:
        raise UserError(f"--graphs: takes a GPU and a single process, and this is {machine}; leave it out")
    if machine.device.type == "cpu" and not config.plain:
        keep_freed_memory()
    return machine


def free_memory(device: torch.device) -> int | None:
    """Bytes that device has free; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
        if limit.exists() and limit.read_text().strip() != "max":  # a container's share
            free = min(free, int(limit.read_text()) - int(used.read_text()))
    except (OSError, StopIteration, ValueError):
        return None
    return free


def describe_failure(error: RuntimeError) -> str | None:
    """What to tell the user of a failure that is not the code's: memory ran out, or another process is gone. None of
    any other."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or any(mark in text for mark in OUT_OF_MEMORY):
        return (
            "out of memory: compute the batch in parts (--accumulate 2, 4, …), keep less (--checkpoint_blocks, "
            "--precision bf16), or lower --batch_size; `summary` predicts what a run takes"
        )
    if "DataLoader worker" in text and ("killed" in text or "exited unexpectedly" in text):
        return (
            "a process that loads data was killed, by the system if memory ran short: lower --num_workers or "
            "--batch_size; what was saved is whole, --resume goes on with it"
        )
    if processes() > 1 and any(mark in text for mark in PEER_IS_LOST):
        return "another process of this run is gone, or has not answered within --timeout; its own message says why"
    return None
