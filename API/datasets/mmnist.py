"""Moving MNIST: training sequences generated from MNIST's training images, 10,000 fixed test sequences from a file.

The field trains on all 60,000 digits. Here the last 5,000 are held out, and validation sequences show these digits
only. --val_digits 0 trains on all of them: validation then shows training digits, in motions that training never draws.
"""

import gzip
import hashlib
import zlib
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .. import UserError
from ..run.files import DAMAGED, reason_of
from .moving import TRAIN, VAL, MovingDigits

IMAGES = "moving_mnist/train-images-idx3-ubyte.gz"
SEQUENCES = "moving_mnist/mnist_test_seq.npy"
MD5 = "be083ec986bfe91a449d63653c411eb2"  # of the published SEQUENCES
EPOCH = 10_000  # generated sequences in a training epoch, without --epoch_size
VAL_SEQUENCES = 1_000
VAL_DIGITS = 5_000  # held out of the 60,000, without --val_digits
OPTIONS = ("epoch_size", "val_digits")
HELP = "run `bash data/moving_mnist/download_mmnist.sh`, or try the model now with --dataname digits"


def read_idx_images(path: Path) -> np.ndarray:
    """(N, rows, columns) uint8 from a gzipped IDX file. Raises UserError, naming path, for anything else."""
    if not path.is_file():
        raise UserError(f"{path} is missing: {HELP}")
    try:
        with gzip.open(path) as file:
            data = file.read(16)
            header = np.frombuffer(data, ">i4") if len(data) == 16 else ()
            if len(header) != 4 or header[0] != 2051:
                raise UserError(f"{path}: not an IDX file of images (magic number 2051): {HELP}")
            count, rows, columns = (int(n) for n in header[1:])
            if not (0 < rows <= 1024 and 0 < columns <= 1024 and 0 < count <= 10_000_000):
                raise UserError(f"{path}: its header claims {count} images of {rows}x{columns}: {HELP}")
            data = file.read(count * rows * columns + 1)  # one more: reading to the end checks the sum
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: not a sound gzip file ({error}): {HELP}") from None
    except EOFError:
        raise UserError(f"{path}: cut short: {HELP}") from None
    if len(data) != count * rows * columns:
        raise UserError(
            f"{path}: does not hold the {count} images of {rows}x{columns} that its header announces: {HELP}"
        )
    return np.frombuffer(data, np.uint8).reshape(count, rows, columns)


def read_sequences(path: Path) -> np.ndarray:
    """(20, N, 64, 64) uint8, memory-mapped. Raises UserError, naming path, for anything else."""
    if not path.is_file():
        raise UserError(f"{path} is missing: {HELP}")
    try:
        sequences = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, *DAMAGED) as error:  # a pickle, another format, a file cut short
        raise UserError(f"{path}: not a sound npy file ({reason_of(error)}): {HELP}") from None
    if (
        sequences.ndim != 4
        or sequences.shape[0] != 20
        or sequences.shape[2:] != (64, 64)
        or sequences.dtype != np.uint8
    ):
        found = f"{sequences.shape} {sequences.dtype}"
        raise UserError(f"{path}: expected (20, N, 64, 64) uint8, found {found}: {HELP}")
    return sequences


def md5_of(path: Path) -> str:
    """The md5 sum of a file, in hexadecimal."""
    found = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()


class FixedSequences(Dataset):
    """index -> (past (T, 1, H, W), future (T_out, 1, H, W)), from a file of (frames, N, H, W) uint8."""

    generated = False

    def __init__(self, path: Path, T: int, T_out: int) -> None:
        self.path, self.sequences, self.T, self.T_out = path, read_sequences(path), T, T_out

    def __len__(self) -> int:
        return self.sequences.shape[1]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        frames = torch.from_numpy(self.sequences[: self.T + self.T_out, index].copy()).unsqueeze(1) / 255
        return frames[: self.T], frames[self.T :]

    @cached_property
    def note(self) -> str:
        """What its scores are not: those of the published test set, unless the file's sum is the published one.

        Reads the whole file, in seconds, when it is first asked for."""
        found = md5_of(self.path)
        return "" if found == MD5 else f"generated, not the published set: {self.path.name} has md5 {found}"


def dataset(split, *, data_root, in_shape, out_shape, seed, epoch_size=None, val_digits=None, **_) -> Dataset:
    """The test file has 20 frames of 64x64. Training and validation draw from images: with val_digits the last ones are
    for validation only, with 0 both draw from all of them. epoch_size: training sequences in an epoch."""
    root = Path(data_root)
    if split == "test":
        T, T_out = in_shape[0], out_shape[0]
        if tuple(in_shape[1:]) != (1, 64, 64) or T + T_out > 20:
            shapes = f"--in_shape {list(in_shape)} --out_shape {list(out_shape)}"
            raise UserError(f"{shapes}: the test sequences of Moving MNIST are 20 frames of 1x64x64")
        return FixedSequences(root / SEQUENCES, T, T_out)
    images = read_idx_images(root / IMAGES)
    held_out = min(VAL_DIGITS, len(images) // 2) if val_digits is None else val_digits
    if held_out >= len(images):
        raise UserError(f"--val_digits {held_out}: must leave some of the {len(images)} digits to train on")
    if split == "train":
        digits = images[: len(images) - held_out]
        return MovingDigits(digits, epoch_size or EPOCH, in_shape, out_shape, seed, TRAIN)
    val = MovingDigits(images[-held_out:], VAL_SEQUENCES, in_shape, out_shape, 0, VAL)  # of 0 held out: all of them
    if not held_out:
        val.note = "validation shows digits that are trained on (--val_digits 0), in other motions"
    return val
