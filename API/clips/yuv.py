"""Raw YUV -> frames: size and layout as the flags say, else as the name of the file says."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from .clip import MOST_PIXELS, BadClip, Clip
from .video import pyav, read_video

ENDING = ".yuv"
SIZE = re.compile(r"(?<!\d)(\d{2,5})x(\d{2,5})(?!\d)")
BITS = re.compile(r"(?<![a-z0-9])(\d{1,2})(?:[ _-]?bits?|le)(?![a-z0-9])")
PLANAR = re.compile(r"(?:yuv|i)?(420|422|444)(?:p(\d{1,2})?(?:le)?)?")  # yuv420p, 420, i422, yuv444p10le
SEMIPLANAR = re.compile(r"p([024])(1[0-6])(?:le)?")  # p010, p216le
LIKE_A_LAYOUT = re.compile(
    r"(?:yuv[aj]?|yuyv|uyvy|yvyu|yv|nv|i4|v2|y4|y2|p[024]1|gray|rgb|bgr|gbrp)\d\w*|rgba|bgra|gbrp"
)
OTHER_NAMES = {
    "iyuv": "yuv420p", "yuy2": "yuyv422", "yuyv": "yuyv422", "uyvy": "uyvy422", "y800": "gray", "gray8": "gray",
    "gray": "gray", "grey": "gray",
}  # fmt: skip
NV = {"0": "nv12", "2": "nv16", "4": "nv24"}
DEEP = {"nv12": "p0{}le", "nv16": "p2{}le", "nv24": "p4{}le", "gray": "gray{}le"}  # the same in more than 8 bits
ASK = "give --yuv_format with FFmpeg's name of it, such as yuv420p, nv12 or yuv422p10le"


def yuv_clip(path: Path, name: str, size: Sequence[int] | None, depth: int | None, pixels: str | None) -> Clip:
    """The clip of a raw YUV file. size: (width, height), depth: bits, pixels: FFmpeg's name of the pixel format.

    What is not given is read off the name, such as clip_3840x2160_yuv422p_10bit.yuv. A name that says nothing of the
    layout means planar 4:2:0, and of the depth 8 bits. What is not known is the clip's `problem`.
    """
    if size is None and (match := SIZE.search(path.stem)):
        size = int(match[1]), int(match[2])
    size = None if size is None else (size[1], size[0])
    try:
        return Clip(path, name, (), size, agreed(path, pixels, depth) if pixels else pixels_of(path, depth))
    except BadClip as error:
        return Clip(path, name, (), size, problem=str(error))


def agreed(path: Path, pixels: str, depth: int | None) -> str:
    """pixels. Raises BadClip where they have another depth than is asked for."""
    if depth is None:
        return pixels
    try:
        bits = pyav().VideoFormat(pixels).components[0].bits
    except (ValueError, IndexError):
        return pixels  # read_yuv says so
    if depth != bits:
        raise BadClip(f"{path}: --yuv_format {pixels} has {bits} bits, --yuv_depth asks for {depth}; leave one out")
    return pixels


def pixels_of(path: Path, depth: int | None) -> str:
    """FFmpeg's name of the pixel format that the name of a file says. Raises BadClip where it says two."""
    stem, layouts = SIZE.sub(" ", path.stem.lower()), set()
    depths, words = {int(bits) for bits in BITS.findall(stem)}, re.split(r"[^a-z0-9]+", stem)
    if {"422", "444"} & {*words} and not depths and "yuv" not in words:  # a layout, or the number of a clip
        raise BadClip(f"{path}: does its name say a layout, or is it a number? {ASK}")
    for word in words:
        if match := PLANAR.fullmatch(word):
            layouts.add(f"yuv{match[1]}p")
            depths |= {int(match[2])} if match[2] else set()
        elif match := SEMIPLANAR.fullmatch(word):
            layouts.add(NV[match[1]])
            depths.add(int(match[2]))
        elif word in OTHER_NAMES or LIKE_A_LAYOUT.fullmatch(word):
            layouts.add(OTHER_NAMES.get(word, word))
    depths = depths if depth is None else {depth}
    if len(layouts) > 1 or len(depths) > 1:
        raise BadClip(f"{path}: its name says {' and '.join(map(str, sorted(layouts | depths, key=str)))}; {ASK}")
    layout, bits = next(iter(layouts), "yuv420p"), next(iter(depths), 8)
    return layout if bits == 8 else DEEP.get(layout, f"{layout}{{}}le").format(bits)


def read_yuv(clip: Clip) -> Iterator[np.ndarray]:
    """The frames of a raw YUV file, (H, W, 3) RGB uint8."""
    if clip.size is None:
        raise BadClip(
            f"{clip.path}: raw YUV does not say its size; give --yuv_size WIDTH HEIGHT or put 3840x2160 in the name"
        )
    height, width = clip.size
    try:
        pixels = pyav().VideoFormat(clip.pixels, width, height)
    except ValueError:
        pixels = None
    if pixels is None or not pixels.padded_bits_per_pixel:  # of a GPU's memory, such as vaapi
        raise BadClip(f"{clip.path}: {clip.pixels} is not a layout of files that FFmpeg knows; {ASK}")
    across, down = 4 // pixels.chroma_width(4), 4 // pixels.chroma_height(4)
    if height % down or width % across or not 0 < height * width <= MOST_PIXELS:
        multiple = f"multiples of {across} and {down}" if max(across, down) > 1 else f"at most {MOST_PIXELS} pixels"
        raise BadClip(f"{clip.path}: {clip.pixels} frames have sizes that are {multiple}, not {width}x{height}")
    frame, size = height * width * pixels.padded_bits_per_pixel // 8, clip.path.stat().st_size
    if size == 0 or size % frame:
        raise BadClip(
            f"{clip.path}: its {size} bytes are no whole number of frames ({frame} bytes a frame of {width}x{height} "
            f"in {clip.pixels}); see --yuv_size, --yuv_depth, --yuv_format"
        )
    yield from read_video(
        clip.path, format="rawvideo", options={"video_size": f"{width}x{height}", "pixel_format": clip.pixels}
    )
