"""Frames -> a file: H.264 video, GIF, a folder of PNGs or an npy array, by the name of the output."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .. import UserError
from .video import pyav

MOVIES = (".mp4", ".mov", ".mkv")
KINDS = (*MOVIES, ".gif", ".npy", "")
MARK = ("Comment", "predicted frame")  # in PNGs: what may be removed when others are written in their place
BT709 = LIMITED = 1  # the numbers of ITU-T H.273 for matrix, primaries and transfer; FFmpeg's of limited range


def check_output(path: Path, kinds: Sequence[str] = KINDS) -> None:
    """Raise UserError, in one line, for a kind of file or a folder that cannot be written."""
    if path.suffix.lower() not in kinds:
        known = " ".join(kind or "(a folder: a name without an ending)" for kind in kinds)
        raise UserError(f"--output {path}: unknown kind of file, choose from {known}")
    if path.suffix.lower() in MOVIES:
        pyav()  # a missing package is told before frames are computed
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.parent / f".{path.name}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written there ({error.strerror})") from None


def write_clip(path: Path, frames: np.ndarray, rate: float) -> None:
    """frames (N, h, w, c) uint8, or (N, h, w) into an npy file, at `rate` frames a second. Raises UserError, in one
    line, where they cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (*MOVIES, ".gif", ".npy"):
            write_file(path, frames, rate)
        else:  # a folder, perhaps with dots in its name
            write_images(path, as_colour(frames))
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written ({error.strerror or error})") from None


def write_file(path: Path, frames: np.ndarray, rate: float) -> None:
    """A file that is under a hidden name until all is there."""
    partial, kind = path.with_name(f".{path.name}"), path.suffix.lower()
    try:
        if kind == ".npy":
            with partial.open("wb") as file:
                array = np.ascontiguousarray(frames)
                np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
                file.write(array.data)  # np.save would not say why it fails
        elif kind == ".gif":
            first, *rest = [Image.fromarray(frame) for frame in as_colour(frames)]
            shown = max(20, round(1000 / rate))  # milliseconds; browsers slow shorter ones down
            first.save(partial, format="GIF", save_all=True, append_images=rest, duration=shown, loop=0)
        else:
            write_movie(partial, as_colour(frames), rate)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_images(folder: Path, frames: np.ndarray) -> None:
    """00000.png and so on, in place of those that were written there before. UserError where it holds anything else."""
    check_folder(folder)
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    mark = PngInfo()
    mark.add_text(*MARK)
    for k, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{k:05d}.png", pnginfo=mark)


def check_folder(folder: Path) -> None:
    """Raise UserError where a folder for images holds anything but images that were written here."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if not written_here(path):
            raise UserError(f"--output {folder}: is a folder with other files, such as {path.name}; name a new one")


def written_here(path: Path) -> bool:
    """Whether a file is a PNG with our mark."""
    try:
        with Image.open(path) as image:
            return image.info.get(MARK[0]) == MARK[1]
    except OSError:
        return False


def as_colour(frames: np.ndarray) -> np.ndarray:
    """(N, h, w, c) -> (N, h, w, 3): grey three times, of other channel counts the mean."""
    if frames.shape[-1] == 3:
        return frames
    return frames.mean(-1, keepdims=True).round().astype(np.uint8).repeat(3, -1)


def write_movie(path: Path, frames: np.ndarray, rate: float) -> None:
    """H.264 in yuv420p, which every browser plays; odd sizes are padded by a pixel.

    Colours are those of BT.709 and the file says so: of files that do not, players guess BT.709 for HD and BT.601 else.
    """
    av = pyav()
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with av.open(f"file:{path}", "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "18"}
        codec = stream.codec_context
        codec.colorspace = codec.color_primaries = codec.color_trc = BT709
        codec.color_range, codec.sample_aspect_ratio = LIMITED, Fraction(1)
        for frame in frames:
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            yuv = rgb.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            container.mux(stream.encode(yuv))
        container.mux(stream.encode())
