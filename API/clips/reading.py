"""Any video -> frames: video files, GIFs, folders of images, npy arrays, raw YUV; decoded one frame at a time."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageSequence

from ..run.files import DAMAGED, reason_of

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
YUV = ".yuv"
MOST_PIXELS = 2**26  # of one frame, twice 8K: a header that claims more is damaged or hostile

# What is wrong with a file is said once, by us.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


class BadClip(ValueError):
    """A clip that cannot be read; the message names the file."""


@dataclass(frozen=True)
class Clip:
    """One source of frames. `name` is unique in its data set.

    images: the files of a frame folder, in order; without them `path` itself is decoded. size and depth are those of
    raw YUV 4:2:0: (height, width), and 8 or 10 bits.
    """

    path: Path
    name: str
    images: tuple[Path, ...] = ()
    size: tuple[int, int] | None = None
    depth: int = 8

    def fingerprint(self) -> str:
        """Changes when the source does."""
        lines = [f"{self.size} {self.depth}"]
        for path in self.images or (self.path,):
            status = path.stat()
            lines.append(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}")
        return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()

    def files(self) -> tuple[Path, ...]:
        """Where the frames come from."""
        return self.images or (self.path,)


def natural(path: Path) -> list[tuple]:
    """A sorting key that puts frame 2 before frame 10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", path.name)]


def hidden(path: Path) -> bool:
    """Whether a path below the data set's folder leads into hidden files or folders, such as the cache's."""
    return any(part.startswith(".") for part in path.parts)


def images_in(folder: Path) -> tuple[Path, ...]:
    """The image files right in a folder, in order."""
    images = (p for p in folder.iterdir() if p.suffix.lower() in IMAGES and not p.name.startswith("."))
    return tuple(sorted(images, key=natural))


def find_clips(folder: Path, yuv_size: Sequence[int] | None = None, yuv_depth: int | None = None) -> list[Clip]:
    """Every clip in a folder and the folders in it, in a fixed order; a folder of images is one clip.

    Raises ValueError, naming the folder, where there is none.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: --data_root must hold the data set there")
    clips = []
    places = [p for p in folder.rglob("*") if p.is_dir() and not hidden(p.relative_to(folder))]
    for place in (folder, *sorted(places, key=lambda p: [natural(part) for part in (*reversed(p.parents), p)])):
        if images := images_in(place):
            clips.append(Clip(place, place.relative_to(folder).as_posix(), images))
        for path in sorted(place.iterdir(), key=natural):
            kind = "" if path.name.startswith(".") else path.suffix.lower()
            if kind in (*VIDEOS, ".gif", ".npy") and path.is_file():
                clips.append(Clip(path, path.relative_to(folder).as_posix()))
            elif kind == YUV:
                size, depth = yuv_layout(path, yuv_size, yuv_depth)
                clips.append(Clip(path, path.relative_to(folder).as_posix(), (), size, depth))
    if not clips:
        kinds = " ".join((*VIDEOS, ".gif", ".npy", YUV))
        raise ValueError(f"{folder}: no clips in it; looked for {kinds} and folders of images")
    return clips


def yuv_layout(path: Path, size: Sequence[int] | None, depth: int | None) -> tuple[tuple[int, int] | None, int]:
    """((height, width), bits) of a raw YUV file: as given, else from a name such as clip_3840x2160_10bit.yuv."""
    if size is None and (match := re.search(r"(\d{2,5})x(\d{2,5})", path.stem)):
        size = int(match[1]), int(match[2])
    if depth is None:
        depth = 10 if re.search(r"10 ?-?_?bit|p10", path.stem, re.IGNORECASE) else 8
    return (None if size is None else (size[1], size[0])), depth


def read_frames(clip: Clip) -> Iterator[np.ndarray]:
    """The frames of a clip, uint8 (H, W, C): C is 3 (RGB), but for npy arrays, which keep theirs.

    Raises BadClip, naming the file, where it cannot be read to its end.
    """
    kind = clip.path.suffix.lower()
    if clip.images:
        reader = (read_image(path) for path in clip.images)
    elif kind in VIDEOS:
        reader = read_video(clip.path)
    elif kind == ".gif":
        reader = read_gif(clip.path)
    elif kind == ".npy":
        reader = read_npy(clip.path)
    else:
        reader = read_yuv(clip)
    try:
        size = None
        for frame in reader:
            if size not in (None, frame.shape):
                raise BadClip(f"{clip.path}: mixed sizes, a frame is {describe(frame.shape)} after {describe(size)}")
            size = frame.shape
            yield frame
    except OSError as error:
        raise BadClip(f"{error.filename or clip.path}: {error.strerror or error}") from None


def describe(shape: Sequence[int]) -> str:
    """(H, W, C) in words."""
    return f"{shape[1]}x{shape[0]} of {shape[2]} channels"


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) RGB uint8, any image file."""
    try:
        with path.open("rb") as file, Image.open(file) as image:
            check_pixels(path, *image.size)
            return np.asarray(image.convert("RGB"))
    except BadClip:
        raise
    except Exception as error:  # decoders of images fail in as many ways as images can be damaged
        raise BadClip(f"{path}: not a readable image ({reason_of(error)})") from None


def read_gif(path: Path) -> Iterator[np.ndarray]:
    """The frames of a GIF, RGB."""
    try:
        with path.open("rb") as file, Image.open(file) as image:
            check_pixels(path, *image.size)
            for frame in ImageSequence.Iterator(image):
                yield np.asarray(frame.convert("RGB"))
    except BadClip:
        raise
    except Exception as error:
        raise BadClip(f"{path}: not a readable GIF ({reason_of(error)})") from None


def read_video(path: Path) -> Iterator[np.ndarray]:
    """The frames of a video file, RGB, with OpenCV and the FFmpeg in it."""
    with path.open("rb"):  # a missing file or permission is told apart from a damaged video
        pass
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        if not video.isOpened():
            raise BadClip(f"{path}: not a video that OpenCV can decode")
        check_pixels(path, video.get(cv2.CAP_PROP_FRAME_WIDTH), video.get(cv2.CAP_PROP_FRAME_HEIGHT))
        announced, count = int(video.get(cv2.CAP_PROP_FRAME_COUNT)), 0
        while True:
            there, frame = video.read()
            if not there:
                break
            count += 1
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        # The count in the header is exact for whole files but for a frame or two at the ends.
        if count == 0 or count < announced - max(2, announced // 50):
            raise BadClip(f"{path}: cut short or damaged, {count} of {announced} frames can be decoded")
    except cv2.error as error:
        raise BadClip(f"{path}: not a video that OpenCV can decode ({error.code})") from None
    finally:
        video.release()


def open_npy(path: Path) -> np.ndarray:
    """A (T, H, W) or (T, H, W, C) array, uint8 or floating in [0, 1], memory-mapped. Raises BadClip for another."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise BadClip(f"{path}: {error.strerror or error}") from None
    except DAMAGED as error:
        raise BadClip(f"{path}: not a sound npy file ({reason_of(error)})") from None
    if not isinstance(array, np.ndarray) or array.ndim not in (3, 4) or 0 in array.shape:
        raise BadClip(
            f"{path}: expected an array (T, H, W) or (T, H, W, C), found {getattr(array, 'shape', 'an archive')}"
        )
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise BadClip(f"{path}: expected uint8, or floats in [0, 1], found {array.dtype}")
    check_pixels(path, array.shape[1], array.shape[2])
    return array if array.ndim == 4 else array[..., None]


def read_npy(path: Path) -> Iterator[np.ndarray]:
    """The frames of an npy file, with the channels that it has."""
    for frame in open_npy(path):
        if frame.dtype != np.uint8:
            if not (np.isfinite(frame).all() and frame.min() >= 0 and frame.max() <= 1):
                raise BadClip(f"{path}: its floats must lie in [0, 1]")
            frame = (frame * 255).round().astype(np.uint8)
        yield np.asarray(frame)


def read_yuv(clip: Clip) -> Iterator[np.ndarray]:
    """The frames of a raw planar YUV 4:2:0 file, RGB; 10 bits are little-endian in two bytes."""
    if clip.size is None:
        raise BadClip(
            f"{clip.path}: raw YUV does not say its size; give --yuv_size WIDTH HEIGHT or put 3840x2160 in the name"
        )
    height, width = clip.size
    if height % 2 or width % 2 or not (0 < height * width <= MOST_PIXELS):
        raise BadClip(f"{clip.path}: YUV 4:2:0 frames have even sizes, not {width}x{height}")
    dtype = np.dtype("<u2" if clip.depth > 8 else "u1")
    values = height * width * 3 // 2
    size = clip.path.stat().st_size
    if size == 0 or size % (values * dtype.itemsize):
        frame = f"{values * dtype.itemsize} bytes a frame of {width}x{height} in {clip.depth} bits"
        raise BadClip(
            f"{clip.path}: its {size} bytes are no whole number of frames ({frame}); see --yuv_size, --yuv_depth"
        )
    with clip.path.open("rb") as file:
        while data := file.read(values * dtype.itemsize):
            planes = np.frombuffer(data, dtype)
            if clip.depth > 8:
                planes = (planes >> (clip.depth - 8)).clip(0, 255).astype(np.uint8)
            yield cv2.cvtColor(planes.reshape(height * 3 // 2, width), cv2.COLOR_YUV2RGB_I420)


def check_pixels(path: Path, width: float, height: float) -> None:
    """Raise BadClip where a header claims frames that would fill the memory."""
    if not 0 < width * height <= MOST_PIXELS:
        raise BadClip(f"{path}: its header claims frames of {width:.0f}x{height:.0f} pixels")
