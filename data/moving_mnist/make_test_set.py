#!/usr/bin/env python
"""Make a mnist_test_seq.npy where the published one cannot be had: 10,000 sequences of MNIST's 10,000 test digits.

    python data/moving_mnist/make_test_set.py

Reads t10k-images-idx3-ubyte.gz beside this script, which download_mmnist.sh fetches where it cannot get the published
file, and writes mnist_test_seq.npy there (782 MiB), never over another. It is the same file every time, but not the
published one, and every result on it says so.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from API import UserError
from API.datasets.mmnist import md5_of, read_idx_images
from API.datasets.moving import TEST, MovingDigits

FRAMES, SEQUENCES, SIDE, SEED = 20, 10_000, 64, 0
AT_ONCE = 500  # sequences


def make(images: Path, output: Path, sequences: int = SEQUENCES) -> None:
    """Write (20, sequences, 64, 64) uint8 to output. Raises UserError, naming the file, where it cannot."""
    if output.exists():
        raise UserError(f"{output} is there already: move it away first")
    shape = (FRAMES, 1, SIDE, SIDE)
    moving = MovingDigits(read_idx_images(images), sequences, shape, (0, 1, SIDE, SIDE), SEED, TEST)
    partial = output.with_name(f"{output.name}.partial")
    try:
        array = np.lib.format.open_memmap(partial, "w+", np.uint8, (FRAMES, sequences, SIDE, SIDE))
        for first in range(0, sequences, AT_ONCE):
            numbers = list(range(first, min(first + AT_ONCE, sequences)))
            array[:, numbers[0] : numbers[-1] + 1] = moving.draw(numbers).swapaxes(0, 1)
        array.flush()
        partial.replace(output)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror or error})") from None
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    folder = Path(__file__).resolve().parent
    try:
        make(folder / "t10k-images-idx3-ubyte.gz", folder / "mnist_test_seq.npy")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"mnist_test_seq.npy: generated, not the published set; md5 {md5_of(folder / 'mnist_test_seq.npy')}")
