"""Frames -> a file: H.264 video, GIF, a folder of PNGs or an npy array, by the name of the output."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

MOVIES = (".mp4", ".mov", ".mkv")
KINDS = (*MOVIES, ".gif", ".npy", "")


def check_output(path: Path, kinds: Sequence[str] = KINDS) -> None:
    """Raise ValueError, in one line, for a kind of file or a folder that cannot be written."""
    if path.suffix.lower() not in kinds:
        known = " ".join(kind or "(a folder of PNG images: a name without an ending)" for kind in kinds)
        raise ValueError(f"--output {path}: unknown kind of file, choose from {known}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.parent / f".{path.name}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--output {path}: cannot be written there ({error.strerror})") from None


def write_clip(path: Path, frames: np.ndarray, rate: float) -> None:
    """frames (N, h, w, c) uint8, at `rate` frames a second; under a hidden name until all is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    kind = path.suffix.lower()
    if kind == ".npy":
        with partial.open("wb") as file:
            np.save(file, frames)
    elif kind == "":
        path.mkdir(exist_ok=True)
        for k, frame in enumerate(as_colour(frames)):
            Image.fromarray(frame).save(path / f"{k:05d}.png")
        return
    elif kind == ".gif":
        first, *rest = [Image.fromarray(frame) for frame in as_colour(frames)]
        first.save(
            partial, format="GIF", save_all=True, append_images=rest, duration=max(20, round(1000 / rate)), loop=0
        )
    else:
        write_movie(partial, as_colour(frames), rate)
    partial.replace(path)


def as_colour(frames: np.ndarray) -> np.ndarray:
    """(N, h, w, c) -> (N, h, w, 3): grey three times, of other channel counts the mean."""
    if frames.shape[-1] == 3:
        return frames
    return frames.mean(-1, keepdims=True).round().astype(np.uint8).repeat(3, -1)


def write_movie(path: Path, frames: np.ndarray, rate: float) -> None:
    """H.264 in yuv420p, which every browser plays; odd sizes are padded by a pixel."""
    from fractions import Fraction

    import av

    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "18"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
