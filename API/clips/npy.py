"""npy arrays -> frames."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..run.files import DAMAGED, reason_of
from .clip import BadClip, check_pixels

MOST_CHANNELS = 4  # an axis this short is the channels


def open_npy(path: Path) -> np.ndarray:
    """A (T, H, W, C) array, uint8 or floating in [0, 1], memory-mapped, from (T, H, W), (T, H, W, C) or (T, C, H, W).

    Raises BadClip for another, OSError where it cannot be opened.
    """
    with path.open("rb"):
        pass
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except DAMAGED as error:
        raise BadClip(f"{path}: not a sound npy file ({reason_of(error)})") from None
    if not isinstance(array, np.ndarray) or array.ndim not in (3, 4) or 0 in array.shape:
        found = getattr(array, "shape", "an archive")
        raise BadClip(f"{path}: expected an array (T, H, W), (T, H, W, C) or (T, C, H, W), found {found}")
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise BadClip(f"{path}: expected uint8, or floats in [0, 1], found {array.dtype}")
    if array.ndim == 3:
        if array.shape[2] <= MOST_CHANNELS:
            raise BadClip(f"{path}: {array.shape} looks like one picture (H, W, C); stack frames to (T, H, W, C)")
        array = array[..., None]
    elif array.shape[1] <= MOST_CHANNELS:
        if array.shape[3] <= MOST_CHANNELS:
            raise BadClip(f"{path}: {array.shape} can be (T, H, W, C) or (T, C, H, W); frames are larger than 4 pixels")
        array = array.transpose(0, 2, 3, 1)
    check_pixels(path, array.shape[1], array.shape[2])
    return array


def read_npy(path: Path) -> Iterator[np.ndarray]:
    """The frames of an npy file, (H, W, C) uint8, with the channels that it has."""
    for frame in open_npy(path):
        if frame.dtype != np.uint8:
            if not (np.isfinite(frame).all() and frame.min() >= 0 and frame.max() <= 1):
                raise BadClip(f"{path}: its floats must lie in [0, 1]")
            frame = (frame * 255).round().astype(np.uint8)
        yield np.ascontiguousarray(frame)
