"""Which sequences a test was of: a number for every sequence, computed from its frames."""

import hashlib
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor


def fingerprints(frames: Tensor) -> Tensor:
    """(B, T, C, H, W) in [0, 1] -> (B,) int64 on the CPU: equal where the frames are, rounded to 8 bits."""
    images = (frames.float().clamp(0, 1) * 255).round().byte().cpu().numpy()
    shape = str(images.shape[1:]).encode()
    digests = b"".join(hashlib.blake2b(shape + image.tobytes(), digest_size=8).digest() for image in images)
    return torch.from_numpy(np.frombuffer(digests, "<i8").astype(np.int64))


def digest(*numbers: np.ndarray) -> str:
    """One short name for any arrays of int64, in their order."""
    return hashlib.blake2b(b"".join(n.astype("<i8").tobytes() for n in numbers), digest_size=8).hexdigest()


def match(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fingerprints (N,) and (M,) -> (positions in ours, positions in theirs) of the sequences that are in both.

    Sequences that occur several times are matched first with first, second with second.
    """
    places = defaultdict(list)
    for place, number in reversed(list(enumerate(theirs.tolist()))):
        places[number].append(place)
    pairs = [(place, places[number].pop()) for place, number in enumerate(ours.tolist()) if places.get(number)]
    found = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]
