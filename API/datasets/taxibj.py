"""TaxiBJ: inflow and outflow of taxis on a 32x32 grid of Beijing, every half hour.

    npz   taxibj/dataset.npz with X_train, Y_train, X_test, Y_test (N, 4, 2, 32, 32) in [-1, 1]
    h5    taxibj/BJ13…BJ16_M32x32_T30_InOut.h5 with data (N, 2, 32, 32) in taxis, and date (N) such as 2013070101

Values are scaled to [0, 1], and the metrics are on that scale: the npz linearly, the h5 files by the largest value of
the training side. From h5 files the last four weeks of the last one are the test set.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import UserError
from ..run.files import read_arrays
from . import BatchedDataset

ARRAYS = ("X_train", "Y_train", "X_test", "Y_test")
YEARS = ("BJ13", "BJ14", "BJ15", "BJ16")
SLOTS_A_DAY, TEST_DAYS = 48, 28
VAL_SHARE = 0.1  # of the training side: its newest part, so that no frame is shared
MOST_BYTES = 2**33
HELP = "see data/taxibj/README.md"


class Flows(BatchedDataset):
    """index -> (past (T, 2, 32, 32), future (T_out, 2, 32, 32)), float32 in [0, 1], from (M, 2, 32, 32) frames.

    windows: (N, T + T_out) frame numbers.
    """

    def __init__(self, frames: np.ndarray, windows: np.ndarray, T: int, name: str) -> None:
        self.frames, self.windows, self.T, self.name = frames, windows, T, name

    def __len__(self) -> int:
        return len(self.windows)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A batch at once."""
        windows = self.windows[indices]
        return torch.from_numpy(self.frames[windows[:, : self.T]]), torch.from_numpy(self.frames[windows[:, self.T :]])

    def sources(self, index: int) -> tuple[str, list]:
        """(the part of the data, names of its frames) of a window; frames of equal content have equal names."""
        return self.name, [hash(self.frames[i].tobytes()) for i in self.windows[index]]


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The four arrays. Raises UserError, naming path, where one is missing or is not what it should be."""
    arrays = read_arrays(path)
    if missing := [name for name in ARRAYS if name not in arrays]:
        raise UserError(f"{path}: has no array {missing[0]}: {HELP}")
    arrays = {name: arrays[name] for name in ARRAYS}
    for name, array in arrays.items():
        if array.ndim != 5 or array.shape[2:] != (2, 32, 32) or array.dtype.kind not in "fiu" or len(array) == 0:
            raise UserError(f"{path}: {name} is {array.shape} {array.dtype}, expected (N, frames, 2, 32, 32)")
        if not (np.isfinite(array).all() and np.abs(array).max() <= 1.0001):
            raise UserError(f"{path}: {name} is not within [-1, 1]")
    return arrays


def from_npz(path: Path, split: str, T: int, T_out: int) -> Flows:
    """As split in the file; validation is the newest tenth of the training sequences."""
    arrays = read_npz(path)
    side = "test" if split == "test" else "train"
    X, Y = arrays[f"X_{side}"], arrays[f"Y_{side}"]
    if len(X) != len(Y) or X.shape[1] < T or T_out > Y.shape[1]:
        shapes = f"X_{side} {X.shape}, Y_{side} {Y.shape}"
        raise UserError(f"{path}: {shapes} do not hold {T} -> {T_out} frames (--in_shape, --out_shape)")
    sequences = np.concatenate([X[:, -T:], Y[:, :T_out]], 1).astype(np.float32)
    if split != "test":
        cut = len(sequences) - max(1, round(VAL_SHARE * len(sequences)))
        gap = T + T_out - 1  # sequences that overlap the first validation sequence are left out
        sequences = sequences[cut:] if split == "val" else sequences[: max(1, cut - gap)]
    frames = ((sequences + 1) / 2).clip(0, 1).reshape(-1, 2, 32, 32)
    windows = np.arange(len(frames)).reshape(-1, T + T_out)
    return Flows(frames, windows, T, f"{path.name}, {split}")


def text_of(stamp: bytes | int) -> str:
    """A date as text, whether it is stored as text or as a number."""
    return stamp.decode("ascii", "replace") if isinstance(stamp, bytes) else str(stamp)


def read_h5(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(taxis (N, 2, 32, 32) float32, half hours since the year 2000 (N)), sorted by time."""
    import h5py

    if not path.is_file():
        raise UserError(f"{path} is missing: {HELP}")
    try:
        with h5py.File(path, "r") as file:
            for name in ("data", "date"):
                if not isinstance(file.get(name), h5py.Dataset):
                    raise UserError(f"{path}: has no dataset '{name}': {HELP}")
            data, date = file["data"], file["date"]
            if data.ndim != 4 or data.shape[1:] != (2, 32, 32) or data.dtype.kind not in "fiu" or len(data) == 0:
                raise UserError(f"{path}: its data are {data.shape} {data.dtype}, expected (N, 2, 32, 32)")
            if data.size * 4 > MOST_BYTES or date.shape != data.shape[:1]:
                raise UserError(f"{path}: {data.shape} data and {date.shape} dates do not belong together")
            values, stamps = data[:].astype(np.float32), [text_of(stamp) for stamp in date[:]]
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a sound h5 file ({str(error).splitlines()[0][:100]}): {HELP}") from None
    if not (np.isfinite(values).all() and values.min() >= 0):
        raise UserError(f"{path}: its data hold negative or no numbers of taxis")
    try:
        days = np.array([f"{s[:4]}-{s[4:6]}-{s[6:8]}" for s in stamps], dtype="datetime64[D]")
        slots = np.array([int(s[8:]) for s in stamps])
    except ValueError:
        raise UserError(f"{path}: its dates are not like 2013070101") from None
    time = (days - np.datetime64("2000-01-01")).astype(int) * SLOTS_A_DAY + slots - 1
    order = np.argsort(time, kind="stable")
    return values[order], time[order]


def from_h5(root: Path, split: str, T: int, T_out: int) -> Flows:
    """Windows of half hours in a row: the last four weeks test, the last tenth before them validates."""
    parts = [read_h5(root / f"{year}_M32x32_T30_InOut.h5") for year in YEARS]
    frames, time = (np.concatenate(arrays) for arrays in zip(*parts))
    test_from = parts[-1][1][-1] + 1 - TEST_DAYS * SLOTS_A_DAY
    train_side = np.flatnonzero(time < test_from)
    if len(train_side) == 0:
        raise UserError(f"{root}: no half hour lies before the test set, the last {TEST_DAYS} days of {YEARS[-1]}")
    val_from = time[train_side[round((1 - VAL_SHARE) * (len(train_side) - 1))]]
    lower, upper = {"train": (-1, val_from), "val": (val_from, test_from), "test": (test_from, time[-1] + 1)}[split]
    length = T + T_out
    first = np.arange(len(time) - length + 1)
    whole = (
        (time[first + length - 1] - time[first] == length - 1)
        & (time[first] >= lower)
        & (time[first + length - 1] < upper)
    )
    windows = first[whole][:, None] + np.arange(length)
    if len(windows) == 0:
        raise UserError(f"{root}: the {split} part has no {length} half hours in a row (--in_shape, --out_shape)")
    return Flows((frames / frames[train_side].max()).clip(0, 1), windows, T, f"{YEARS[0]}-{YEARS[-1]}, {split}")


def dataset(split, *, data_root, in_shape, out_shape, seed, **_) -> Flows:
    """From the npz where there is one, else from the h5 files."""
    root = Path(data_root) / "taxibj"
    if tuple(in_shape[1:]) != (2, 32, 32) or tuple(out_shape[1:]) != (2, 32, 32):
        raise UserError(f"--in_shape {list(in_shape)}: TaxiBJ is 2x32x32")
    if (root / "dataset.npz").is_file():
        return from_npz(root / "dataset.npz", split, in_shape[0], out_shape[0])
    if not any((root / f"{year}_M32x32_T30_InOut.h5").is_file() for year in YEARS):
        raise UserError(f"{root / 'dataset.npz'} is missing, and so are the h5 files {YEARS[0]}…: {HELP}")
    return from_h5(root, split, in_shape[0], out_shape[0])
