"""load_data: the one door to every data set.

What a data set is stands in API/datasets/__init__.py.
"""

import atexit
import ctypes
import functools
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import import_module
from multiprocessing.connection import Listener
from multiprocessing.context import BaseContext
from multiprocessing.sharedctypes import RawValue
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from . import UserError
from .datasets.noise import NoisyPast
from .machine.device import Machine
from .machine.distributed import World
from .presets import PRESETS
from .run.flags import DATA_FLAGS
from .run.interrupt import end_workers, ignore_stop_signals

SPLITS = ("train", "val", "test")
# Options that change no number; a data set that has no use for them is not given them.
HARMLESS = ("cache_dir", "no_cache", "skip_bad")


class EpochBatches(Sampler):
    """Lists of item indices, one a batch: a pure function of (seed, epoch), so that a run can resume at any step.

    shuffle: for training; whole batches only, in another order each epoch. Set `epoch`, and `start` to skip that many
    batches, before iterating. Each of many processes takes its share of every batch, or, without shuffle, of all items.
    """

    def __init__(self, dataset: Dataset, batch_size: int, shuffle: bool, seed: int, world: World | None = None) -> None:
        self.items, self.batch_size, self.shuffle, self.seed = len(dataset), batch_size, shuffle, seed
        self.share = world.share if world else lambda items: items
        self.generated = getattr(dataset, "generated", False)
        self.epoch = self.start = 0

    def __len__(self) -> int:
        if self.shuffle:
            return max(self.items // self.batch_size, 1)
        return -(-len(self.share(range(self.items))) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(self.items)
        if self.shuffle and self.generated:
            order += self.epoch * self.items  # new ones: there is nothing to shuffle
        elif self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(order)
        if not self.shuffle:
            order = self.share(order)
        for batch in range(self.start, len(self)):
            indices = order[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()
            yield self.share(indices) if self.shuffle else indices


class ThroughPipe:
    """A batch that is pickled with its bytes, instead of handed over in shared memory; unpickled, it is the batch."""

    def __init__(self, batch: tuple[torch.Tensor, ...]) -> None:
        self.batch = batch

    def __reduce__(self) -> tuple:
        return from_arrays, tuple(x.numpy() for x in self.batch)


def from_arrays(*arrays: np.ndarray) -> tuple[torch.Tensor, ...]:
    """Arrays -> tensors on the same memory."""
    return tuple(map(torch.from_numpy, arrays))


class Flag:
    """An event between processes without a lock. multiprocessing's Event takes one even to look at it, and a process
    that is killed then leaves all others waiting for ever."""

    def __init__(self) -> None:
        self.value = RawValue(ctypes.c_bool, False)

    def is_set(self) -> bool:
        """Whether set has been called."""
        return self.value.value

    def set(self) -> None:
        """Raise the flag, for all processes."""
        self.value.value = True


class Collate:
    """Makes a batch of items; what __getitems__ returns is a batch already. Its tensors are contiguous: others would be
    copied once more, through pageable memory, on their way to a GPU.

    A worker moves the batch to shared memory here and not later, in multiprocessing's own thread: where that memory is
    full (Docker gives a container 64 MB), the thread loses the batch, and the training process waits for it for ever.
    So it does where the socket that hands the memory over has too long a path, in a long TMPDIR. Here the batch goes
    through a pipe instead, and one worker says so.
    """

    def __init__(self) -> None:
        self.told = Flag()

    def __call__(self, items: list | tuple) -> tuple[torch.Tensor, ...] | ThroughPipe:
        batch = items if isinstance(items, tuple) else map(torch.stack, zip(*items))
        batch = tuple(x.contiguous() for x in batch)
        if get_worker_info() is None:
            return batch
        try:
            try_socket()
            return tuple(x.share_memory_() for x in batch)
        except (OSError, RuntimeError) as error:
            if not self.told.is_set():
                self.told.set()
                why = no_socket(error) if isinstance(error, OSError) else shared_memory()
                print(f"warning: {why}; batches go through pipes, which is slower", file=sys.stderr, flush=True)
            return ThroughPipe(batch)


def shared_memory() -> str:
    """What is known of the shared memory that batches do not fit into."""
    try:
        size = os.statvfs("/dev/shm")
    except (OSError, AttributeError):
        return "shared memory cannot be used"
    return f"/dev/shm, of {size.f_blocks * size.f_frsize >> 20} MB, is full (more of it: docker run --shm-size=8g)"


@functools.cache
def try_socket() -> None:
    """Open a socket in TMPDIR, as multiprocessing does to hand memory over; once is enough. Raises OSError."""
    Listener().close()


def no_socket(error: OSError) -> str:
    """Why processes cannot hand each other memory."""
    return f"TMPDIR={tempfile.gettempdir()} takes no socket ({error}; a shorter one does: TMPDIR=/tmp)"


def worker_context() -> BaseContext:
    """The multiprocessing context of the workers: the platform's default, but with Flags for events."""
    atexit.register(end_workers)

    class Context(type(multiprocessing.get_context())):
        def Event(self) -> Flag:
            return Flag()

    return Context()


def data_module(name: str) -> ModuleType:
    """API/datasets/<name>.py. Raises UserError where there is none: a checkpoint may be of someone else's data set."""
    if name not in PRESETS:
        raise UserError(f"--dataname {name}: unknown, choose from {', '.join(PRESETS)}")
    return import_module(f".datasets.{name}", __package__)


def how_to_fit(name: str, resize: str | None = None) -> tuple[str, str | None]:
    """(resize, interpolation) that data set `name` makes frames of another size fit with, see clips/fit.py; --resize
    wins. So `predict` can treat frames as training did. Raises UserError for an unknown name."""
    module = data_module(name)
    return resize or getattr(module, "RESIZE", "stretch"), getattr(module, "INTERPOLATION", None)


def settle_data(config: SimpleNamespace, multiple: int) -> None:
    """Put into config what the data decide where flags leave it open: shapes, value_range. Needs a data set with a
    function `settle`; UserError where another one's shapes are not whole. multiple: of which H and W are to be."""
    module = import_module(f".datasets.{config.dataname}", __package__)
    if hasattr(module, "settle"):
        flags = {flag: getattr(config, flag, None) for flag in DATA_FLAGS}
        vars(config).update(module.settle(**flags, multiple=multiple))
    for flag in ("in_shape", "out_shape"):
        if len(shape := getattr(config, flag)) != 4:
            raise UserError(f"--{flag} {' '.join(map(str, shape))}: give four numbers, T C H W")


def load_data(
    name: str,
    *,
    data_root: str = "data",
    in_shape: Sequence[int],
    out_shape: Sequence[int],
    batch_size: int,
    val_batch_size: int,
    num_workers: int = 0,
    seed: int = 1,
    pin_memory: bool = False,
    world: World | None = None,
    splits: Sequence[str] = SPLITS,
    noise: float = 0.0,
    **options,
) -> dict[str, DataLoader]:
    """Loaders of the asked splits of data set `name`, by split; batches are (B, T, C, H, W), (B, T_out, C_out, H, W).

    noise: standard deviation of Gaussian noise on past frames, see datasets/noise.py.
    options: see OPTIONS of the data set; those that are None or False are as good as not given.
    Raises: UserError, one line that names the flag or file and says what to do.
    """
    module = data_module(name)
    taken = getattr(module, "OPTIONS", ())
    options = {flag: value for flag, value in options.items() if value is not None and value is not False}
    if unused := [flag for flag in options if flag not in (*taken, *HARMLESS)]:
        raise UserError(f"--{unused[0]}: --dataname {name} does not use it, leave it out")
    options = {flag: value for flag, value in options.items() if flag in taken}
    loaders, collate = {}, Collate()
    for split in splits:
        data = module.dataset(
            split, data_root=data_root, in_shape=tuple(in_shape), out_shape=tuple(out_shape), seed=seed, **options
        )
        train = split == "train"
        if noise:
            data = NoisyPast(data, noise, seed if train else 0)
        if world is not None and world.size > 1 and len(data) < (batch_size if train else world.size):
            raise UserError(
                f"--dataname {name}: {len(data)} sequences in {split} are too few for {world.size} processes"
            )
        loaders[split] = DataLoader(
            data,
            batch_sampler=EpochBatches(data, batch_size if train else val_batch_size, train, seed, world),
            collate_fn=collate,
            num_workers=num_workers,
            worker_init_fn=ignore_stop_signals,
            persistent_workers=train and num_workers > 0,
            multiprocessing_context=worker_context() if num_workers else None,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # its own: the global generator is left alone
        )
    return loaders


def build_loaders(config: SimpleNamespace, machine: Machine, splits: Sequence[str]) -> dict[str, DataLoader]:
    """The data of the flags of main.py; prints a line for every clip that --skip_bad leaves out."""
    flags = {flag: getattr(config, flag, None) for flag in DATA_FLAGS}
    pin = machine.device.type == "cuda"
    loaders = load_data(config.dataname, pin_memory=pin, world=machine.world, splits=splits, **flags)
    skipped = (reason for loader in loaders.values() for reason in getattr(loader.dataset, "skipped", ()))
    for reason in dict.fromkeys(skipped) if config.mode != "data" else ():  # the report lists them itself
        print(f"left out: {reason}", flush=True)
    return loaders
