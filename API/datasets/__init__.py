"""The data sets: one file for each --dataname, and a preset of that name in API/presets.py.

API/datasets/<name>.py has a function dataset(split, *, data_root, in_shape, out_shape, seed, **options) that returns a
PyTorch Dataset of (past (T, C, H, W), future (T_out, C_out, H, W)), float32 in [0, 1]. It may have __getitems__(indices),
which returns a batch of both at once. One with generated = True makes up its items: epoch e asks for the indices from
e * len on. One with sources(index) says where an item comes from, so that overlap between splits can be checked.
"""

from collections.abc import Sequence

import torch
from torch.utils.data import Dataset


class BatchedDataset(Dataset):
    """A data set that makes batches at once, by __getitems__; a single item is a batch of one."""

    generated = False
    skipped: Sequence[str] = ()  # what was left out of it, in words

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        past, future = self.__getitems__([index])
        return past[0], future[0]
