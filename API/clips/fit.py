"""A frame of any size and colours -> the size and channels that the model takes."""

from pathlib import Path

import cv2
import numpy as np

from .clip import BadClip

INTERPOLATIONS = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


def fit(
    frame: np.ndarray, shape: tuple[int, int, int], resize: str, where: Path, interpolation: str | None = None
) -> np.ndarray:
    """(h, w, c) uint8 or float32 -> (C, H, W): colours to grey or grey to colours, then resized. BadClip names `where`.

    resize: "crop" keeps the aspect ratio and cuts off what is too much, evenly on both sides; "stretch" does not.
    interpolation: "area", "bilinear" or "bicubic", as OpenCV computes them; None: area to shrink, bilinear to enlarge.
    """
    C, H, W = shape
    if frame.shape[-1] != C:
        if frame.shape[-1] == 3 and C == 1:
            frame = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[..., None]
        elif frame.shape[-1] == 1:
            frame = frame.repeat(C, -1)
        else:
            raise BadClip(f"{where}: has {frame.shape[-1]} channels, --in_shape asks for {C}")
    h, w = frame.shape[:2]
    if (h, w) != (H, W):
        if resize == "crop":
            frame = centre(frame, H, W)
        shrinking = frame.shape[0] * frame.shape[1] > H * W
        how = INTERPOLATIONS[interpolation or ("area" if shrinking else "bilinear")]
        frame = cv2.resize(np.ascontiguousarray(frame), (W, H), interpolation=how).reshape(H, W, C)
    return np.ascontiguousarray(frame.transpose(2, 0, 1))


def centre(frame: np.ndarray, H: int, W: int) -> np.ndarray:
    """(h, w, c) -> its largest part of the aspect ratio H : W, from the middle."""
    h, w = frame.shape[:2]
    scale = max(H / h, W / w)
    cut_h, cut_w = min(h, round(H / scale)), min(w, round(W / scale))
    top, left = (h - cut_h) // 2, (w - cut_w) // 2
    return frame[top : top + cut_h, left : left + cut_w]
