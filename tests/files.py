"""Small files in the real formats, with known content: frame k of every clip is a moving pattern drawn by `picture`."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image


def picture(k: int, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """(H, W, 3) RGB uint8: smooth, coloured, other for every k and seed."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + k / 3 + seed), np.cos(y / 7 - k / 4 + seed), np.sin((x + y) / 11 + k / 5)]
    return np.stack([127 + 100 * wave for wave in waves], -1).astype(np.uint8)


def pictures(frames: int, **kwargs) -> list[np.ndarray]:
    return [picture(k, **kwargs) for k in range(frames)]


def write_video(path: Path, frames: list[np.ndarray], codec: str | None = None) -> Path:
    """avi (MJPG), mp4 and mov (mp4v), mkv (MJPG)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = codec or {".mp4": "mp4v", ".mov": "mp4v"}.get(path.suffix, "MJPG")
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 25, (width, height))
    assert writer.isOpened(), path
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def write_gif(path: Path, frames: list[np.ndarray]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *rest = [Image.fromarray(frame) for frame in frames]
    first.save(path, save_all=True, append_images=rest, duration=40)
    return path


def write_images(folder: Path, frames: list[np.ndarray], name: str = "{:04d}.png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / name.format(k), quality=95)
    return folder


def write_yuv(path: Path, frames: list[np.ndarray], depth: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    planes = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420) for frame in frames])
    path.write_bytes(planes.tobytes() if depth == 8 else (planes.astype("<u2") << (depth - 8)).tobytes())
    return path
