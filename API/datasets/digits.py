"""Moving Digits: Moving MNIST with the 1,797 handwritten digits that scikit-learn ships. Needs no download."""

import cv2
import numpy as np

from .moving import TEST, TRAIN, VAL, MovingDigits

SIDE = 28
# Digit images per split, no image in two. Sequences per pass (a training pass is an epoch).
IMAGES = {"train": 1397, "val": 200, "test": 200}
SEQUENCES = {"train": 600, "val": 100, "test": 500}
OPTIONS = ("epoch_size",)


def digit_images(split: str) -> np.ndarray:
    """(N, 28, 28) uint8 digits of a split. The split is fixed: no flag changes it, so runs can be compared."""
    from sklearn.datasets import load_digits  # seconds to import

    images = load_digits().images / 16 * 255  # (1797, 8, 8)
    images = np.stack([cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) for image in images])
    images = images.round().clip(0, 255).astype(np.uint8)
    first = {"train": 0, "val": IMAGES["train"], "test": IMAGES["train"] + IMAGES["val"]}[split]
    return images[np.random.default_rng(0).permutation(len(images))[first : first + IMAGES[split]]]


def dataset(split, *, in_shape, out_shape, seed, epoch_size=None, **_) -> MovingDigits:
    """Train is generated anew each epoch from seed; validation and test are the same for every seed.

    epoch_size: training sequences in an epoch.
    """
    stream = {"train": TRAIN, "val": VAL, "test": TEST}[split]
    length = epoch_size if split == "train" and epoch_size else SEQUENCES[split]
    return MovingDigits(digit_images(split), length, in_shape, out_shape, seed if split == "train" else 0, stream)
