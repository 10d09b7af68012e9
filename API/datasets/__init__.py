"""The data sets: one file for each --dataname, and a preset of that name in API/presets.py.

API/datasets/<name>.py has a function dataset(split, *, data_root, in_shape, out_shape, seed, **options) that returns a
PyTorch Dataset of (past (T, C, H, W), future (T_out, C_out, H, W)), float32 in [0, 1]; split is train, val or test. Its
OPTIONS name the flags that it takes, of those in API/run/flags.DATA_FLAGS; any other is refused. The rest is optional:

    __getitems__(indices)   a whole batch at once
    generated = True        it makes up its items: epoch e asks for the indices from e * len on
    skipped, note           what was left out, and what a reader of its scores has to know, in words
    clips                   the Clips that its windows are cut from: `data` lists them, a run keeps them in splits.json
    looks                   what its clips look like, to warn of a film that is in two splits, see video.py
    scale                   the Scale of values that are not those of pixels: adds scores and pictures in their units
    settle(…, multiple)     of the module: the flags that the data decide where they are left open, see arrays.py
    RESIZE, INTERPOLATION   of the module: how frames of other sizes are made to fit, see API/clips/fit.py
    sources(index)          (file, names of its frames) of an item; without it, overlap between splits is not checked
"""

from collections.abc import Sequence

import torch
from torch.utils.data import Dataset


class BatchedDataset(Dataset):
    """A data set that makes batches at once, by __getitems__; a single item is a batch of one."""

    generated = False
    skipped: Sequence[str] = ()
    note = ""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        past, future = self.__getitems__([index])
        return past[0], future[0]
