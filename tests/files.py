"""Small files in the real formats, with known content: `picture` draws frame k of every clip, a moving pattern."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


def picture(k: int, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """(H, W, 3) RGB uint8: smooth, coloured, other for every k and seed."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + k / 3 + seed), np.cos(y / 7 - k / 4 + seed), np.sin((x + y) / 11 + k / 5)]
    return np.stack([127 + 100 * wave for wave in waves], -1).astype(np.uint8)


def pictures(frames: int, **kwargs) -> list[np.ndarray]:
    return [picture(k, **kwargs) for k in range(frames)]


def write_video(
    path: Path,
    frames: list[np.ndarray],
    codec: str | None = None,
    pixels: str = "yuv420p",
    times: list[int] | None = None,
    options: dict | None = None,
    **settings,
) -> Path:
    """mjpeg, in mp4 and mov mpeg4, at 25 frames a second. times: when frames are shown, in milliseconds.

    options: the codec's. settings: attributes of PyAV's codec context, such as sample_aspect_ratio or colorspace.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = codec or {".mp4": "mpeg4", ".mov": "mpeg4"}.get(path.suffix, "mjpeg")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else pixels
        stream.options = {"qmin": "1", "qmax": "1"} if codec in ("mjpeg", "mpeg4") else {}
        stream.options = stream.options | (options or {})
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        matrix = {1: "ITU709", 5: "ITU601"}[settings.get("colorspace", 5)]
        for k, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgba" if frame.shape[-1] == 4 else "rgb24")
            full = {2: "JPEG"}.get(settings.get("color_range"))
            picture = picture.reformat(format=stream.pix_fmt, dst_colorspace=matrix, dst_color_range=full)
            picture.pts, picture.time_base = (k, Fraction(1, 25)) if times is None else (times[k], Fraction(1, 1000))
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
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


def write_yuv(path: Path, frames: list[np.ndarray], depth: int = 8, pixels: str = "yuv420p") -> Path:
    """Raw frames. pixels: FFmpeg's name of an 8-bit layout; of more bits, planar 4:2:0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = pixels if depth == 8 else f"yuv420p{depth}le"
    codec = av.CodecContext.create("rawvideo", "w")
    codec.height, codec.width, codec.pix_fmt, codec.time_base = *frames[0].shape[:2], pixels, Fraction(1, 25)
    pictures = [av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=pixels) for frame in frames]
    path.write_bytes(b"".join(bytes(packet) for picture in pictures for packet in codec.encode(picture)))
    return path
