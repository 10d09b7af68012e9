"""Moving MNIST: training sequences generated from its training images, 10,000 fixed test sequences from a file."""

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..run.files import DAMAGED, reason_of
from .moving import TRAIN, VAL, MovingDigits

IMAGES = "moving_mnist/train-images-idx3-ubyte.gz"
SEQUENCES = "moving_mnist/mnist_test_seq.npy"
EPOCH = 10_000  # generated sequences a training pass
VAL_SEQUENCES = 1_000
VAL_IMAGES = 5_000  # the last ones of the 60,000 are kept for validation
HELP = "run `bash data/moving_mnist/download_mmnist.sh`, or try the model now with --dataname digits"


def read_idx_images(path: Path) -> np.ndarray:
    """(N, rows, columns) uint8 from a gzipped IDX file. Raises ValueError, naming path, for anything else."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {HELP}")
    try:
        with gzip.open(path) as file:
            data = file.read(16)
            header = np.frombuffer(data, ">i4") if len(data) == 16 else ()
            if len(header) != 4 or header[0] != 2051:
                raise ValueError(f"{path}: not an IDX file of images (magic number 2051): {HELP}")
            count, rows, columns = (int(n) for n in header[1:])
            if not (0 < rows <= 1024 and 0 < columns <= 1024 and 0 < count <= 10_000_000):
                raise ValueError(f"{path}: its header claims {count} images of {rows}x{columns}: {HELP}")
            data = file.read(count * rows * columns + 1)  # one more: reading to the end checks the sum
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a sound gzip file ({error}): {HELP}") from None
    except EOFError:
        raise ValueError(f"{path}: cut short: {HELP}") from None
    if len(data) != count * rows * columns:
        raise ValueError(
            f"{path}: does not hold the {count} images of {rows}x{columns} that its header announces: {HELP}"
        )
    return np.frombuffer(data, np.uint8).reshape(count, rows, columns)


def read_sequences(path: Path) -> np.ndarray:
    """(20, N, 64, 64) uint8, memory-mapped. Raises ValueError, naming path, for anything else."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {HELP}")
    try:
        sequences = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, *DAMAGED) as error:  # a pickle, another format, a file cut short
        raise ValueError(f"{path}: not a sound npy file ({reason_of(error)}): {HELP}") from None
    if (
        sequences.ndim != 4
        or sequences.shape[0] != 20
        or sequences.shape[2:] != (64, 64)
        or sequences.dtype != np.uint8
    ):
        found = f"{sequences.shape} {sequences.dtype}"
        raise ValueError(f"{path}: expected (20, N, 64, 64) uint8, found {found}: {HELP}")
    return sequences


class FixedSequences(Dataset):
    """index -> (past (T, 1, H, W), future (T_out, 1, H, W)), from a (frames, N, H, W) uint8 array."""

    generated = False

    def __init__(self, sequences: np.ndarray, T: int, T_out: int) -> None:
        self.sequences, self.T, self.T_out = sequences, T, T_out

    def __len__(self) -> int:
        return self.sequences.shape[1]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        frames = torch.from_numpy(self.sequences[: self.T + self.T_out, index].copy()).unsqueeze(1) / 255
        return frames[: self.T], frames[self.T :]


def dataset(split, *, data_root, in_shape, out_shape, seed, **_) -> Dataset:
    """The training and validation digits are different images; the test file has 20 frames of 64x64."""
    root = Path(data_root)
    if split == "test":
        T, T_out = in_shape[0], out_shape[0]
        if tuple(in_shape[1:]) != (1, 64, 64) or T + T_out > 20:
            shapes = f"--in_shape {list(in_shape)} --out_shape {list(out_shape)}"
            raise ValueError(f"{shapes}: the test sequences of Moving MNIST are 20 frames of 1x64x64")
        return FixedSequences(read_sequences(root / SEQUENCES), T, T_out)
    images = read_idx_images(root / IMAGES)
    held_out = min(VAL_IMAGES, len(images) // 2)
    if split == "val":
        return MovingDigits(images[-held_out:], VAL_SEQUENCES, in_shape, out_shape, 0, VAL)
    return MovingDigits(images[:-held_out], EPOCH, in_shape, out_shape, seed, TRAIN)
