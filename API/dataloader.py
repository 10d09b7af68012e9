"""load_data: the one door to every data set.

What a data set is stands in API/datasets/__init__.py.
"""

import ctypes
import multiprocessing
from collections.abc import Iterator, Sequence
from importlib import import_module
from multiprocessing.context import BaseContext
from multiprocessing.sharedctypes import RawValue

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from .machine.distributed import World
from .presets import PRESETS

SPLITS = ("train", "val", "test")


class EpochBatches(Sampler):
    """Lists of item indices, one a batch: a pure function of (seed, epoch), so that any epoch can be entered anywhere.

    shuffle: training; whole batches only, in an order of its own each epoch. Set `epoch`, and `start` to skip that many
    batches, before iterating. Of many processes each takes its share of every batch, or without shuffle of all items.
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


def collate(items: list | tuple) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch from __getitems__ is one already; single items are stacked."""
    return items if isinstance(items, tuple) else tuple(default_collate(items))


class Flag:
    """An event between processes, without the lock of multiprocessing's: a process that is killed while it holds that
    one, be it to look, leaves all others waiting for ever."""

    def __init__(self) -> None:
        self.value = RawValue(ctypes.c_bool, False)

    def is_set(self) -> bool:
        """Whether set has been called."""
        return self.value.value

    def set(self) -> None:
        """Raise the flag, for all processes."""
        self.value.value = True


def worker_context() -> BaseContext:
    """What starts the processes that load data: as multiprocessing does here, but with Flags for events."""

    class Context(type(multiprocessing.get_context())):
        def Event(self) -> Flag:
            return Flag()

    return Context()


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
    **options,
) -> dict[str, DataLoader]:
    """Loaders of the asked splits of data set `name`, by split; batches are (B, T, C, H, W), (B, T_out, C_out, H, W).

    Raises: ValueError or FileNotFoundError in one line that names the flag or file and says what to do.
    """
    if name not in PRESETS:
        raise ValueError(f"--dataname {name}: unknown, choose from {', '.join(PRESETS)}")
    module = import_module(f".datasets.{name}", __package__)
    loaders = {}
    for split in splits:
        data = module.dataset(
            split, data_root=data_root, in_shape=tuple(in_shape), out_shape=tuple(out_shape), seed=seed, **options
        )
        train = split == "train"
        if world is not None and world.size > 1 and len(data) < (batch_size if train else world.size):
            raise ValueError(
                f"--dataname {name}: {len(data)} sequences in {split} are too few for {world.size} processes"
            )
        loaders[split] = DataLoader(
            data,
            batch_sampler=EpochBatches(data, batch_size if train else val_batch_size, train, seed, world),
            collate_fn=collate,
            num_workers=num_workers,
            persistent_workers=train and num_workers > 0,
            multiprocessing_context=worker_context() if num_workers else None,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # its own: the global generator is left alone
        )
    return loaders
