"""Video files -> frames, with PyAV: what FFmpeg decodes, as a player shows it."""

import errno
import re
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np

from .. import UserError
from ..run.files import reason_of
from .clip import MOST_PIXELS, BadClip, Unreadable, check_pixels

ENDINGS = (
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".h264", ".hevc", ".ivf", ".m2t", ".m2ts", ".m2v",
    ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".qt", ".rm",
    ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".y4m",
)  # fmt: skip
DEFAULT_RATE = 25.0  # frames a second, where a clip does not say

B_FRAME, MOST_B_FRAMES = 3, 16  # FFmpeg's number of the kind; how many H.264 allows in a row

# Damage that FFmpeg reports in its log only.
TOLD = re.compile("CRC mismatch|File ended prematurely")
PASSING = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EIO)  # errors that may be gone the next time


def pyav() -> ModuleType:
    """The package av. Raises UserError where it is missing."""
    try:
        import av
        import av.logging
    except ImportError:
        raise UserError("PyAV, which reads and writes videos, is missing: pip install av") from None
    return av


def bad(path: Path, error: Exception, what: str) -> BadClip:
    """The exception to raise for one of PyAV's."""
    reason = getattr(error, "strerror", None) or reason_of(error)
    if getattr(error, "errno", None) in PASSING:
        return Unreadable(f"{path}: {reason}")
    return BadClip(f"{path}: {what} ({reason})")


@contextmanager
def opened(path: Path, **options):
    """(container, its video stream) of a file. options: of av.open. Raises BadClip or OSError."""
    av = pyav()
    with path.open("rb"):  # a missing file or permission is told apart from a damaged video
        pass
    try:
        container = av.open(f"file:{path}", **options)
    except (av.FFmpegError, ValueError) as error:
        raise bad(path, error, "not a video that FFmpeg can read") from None
    with container:
        if (stream := container.streams.best("video")) is None or stream.codec_context is None:
            raise BadClip(f"{path}: holds no video that FFmpeg can decode")
        yield container, stream


@contextmanager
def errors_logged() -> Iterator[list[tuple[int, str, str]]]:
    """The errors that FFmpeg logs meanwhile: (level, who, text)."""
    log = pyav().logging
    log.set_skip_repeated(False)
    log.set_level(log.ERROR)
    try:
        with log.Capture(local=False) as lines:
            yield lines
    finally:
        log.set_level(None)


def decode(path: Path, container, stream) -> Iterator:
    """The frames of a stream, av.VideoFrame. Raises BadClip where the container or the decoder finds damage.

    A stream that does not begin with a key frame, as recordings and cuts of broadcasts do, begins with its first frame
    that can be decoded, as in a player. B-frames, which build on the frame after them, are held back until that one is
    known to be sound.
    """
    av, packets = pyav(), container.demux(stream)
    # Where each frame stands alone, every error is one. Where frames build on others, decoders also call it an error
    # that a cut has removed some of them; but they mark the frames that are damaged.
    strict = "+explode" if stream.codec_context.codec.intra_only else ""
    stream.codec_context.options = {
        "err_detect": f"crccheck+bitstream+buffer{strict}",
        "max_pixels": str(MOST_PIXELS),
    }
    count, received, begun, held = 0, 0, False, deque()
    while True:
        packet, frames, damage = None, [], None
        with errors_logged() as log:
            try:
                packet = next(packets)
                received += packet.size > 0
                frames = packet.decode()
            except StopIteration:
                break
            except av.FFmpegError as error:
                damage = error
        begun = begun or packet is None or packet.is_keyframe or bool(frames)
        if any(frame.is_corrupt for frame in frames):
            damage = "the decoder marks what follows as damaged"
        elif damage is None and packet.is_corrupt:
            damage = "the container marks what follows as damaged"
        if told := [text.strip() for _, _, text in log if TOLD.search(text)]:
            begun, damage = True, told[0]
        if begun and damage is not None:
            raise damaged(path, count, damage)
        for frame in frames:
            held.append(frame)
            while held and (frame.pict_type != B_FRAME or len(held) > MOST_B_FRAMES):
                count += 1
                yield held.popleft()
    count += len(held)
    yield from held
    if received < sum(entry.size > 0 for entry in stream.index_entries):
        raise damaged(path, count, "it ends before its last packet")
    if count == 0:
        raise BadClip(f"{path}: damaged, no frame can be decoded")


def damaged(path: Path, frames: int, damage: Exception | str) -> BadClip:
    """The exception for a stream that is damaged after so many sound frames."""
    what = f"cut short or damaged after {frames} frames"
    return bad(path, damage, what) if isinstance(damage, Exception) else BadClip(f"{path}: {what} ({damage})")


def deinterlaced(frames: Iterator) -> Iterator:
    """As many frames: from the first interlaced one on, every interlaced frame has its missing lines interpolated."""
    av, graph = pyav(), None

    def filtered() -> Iterator:
        while True:
            try:
                yield graph.pull()
            except (BlockingIOError, EOFError):  # it wants another frame, or there is none left
                return

    for frame in frames:
        if graph is None and frame.interlaced_frame:
            graph = av.filter.Graph()
            source = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
            )
            source.link_to(bwdif := graph.add("bwdif", "mode=send_frame:deint=interlaced"))
            bwdif.link_to(graph.add("buffersink"))
            graph.configure()
        if graph is None:
            yield frame
        else:
            graph.push(frame)
            yield from filtered()
    if graph is not None:
        graph.push(None)
        yield from filtered()


def read_video(path: Path, **options) -> Iterator[np.ndarray]:
    """The frames of a video file, (H, W, 3) RGB uint8, as a player shows them: deinterlaced, with square pixels,
    upright, in the colours that the file says, transparent parts over black.

    options: of av.open. Raises BadClip where it is damaged, OSError where it cannot be opened.
    """
    av = pyav()
    with opened(path, **options) as (container, stream):
        check_pixels(path, stream.codec_context.width, stream.codec_context.height)
        # The fourth byte of raw video in an AVI is padding.
        opaque = container.format.name == "avi" and stream.codec_context.codec.name == "rawvideo"
        convert, times, first = av.video.reformatter.VideoReformatter(), Times(), None
        try:
            for frame in deinterlaced(decode(path, container, stream)):
                if first is None:
                    first = frame
                    aspect = stream.sample_aspect_ratio or 1
                    # Encoders write 1.004 for 1 where they have rounded a size.
                    width = frame.width if abs(aspect - 1) < 0.01 else round(frame.width * aspect)
                    check_pixels(path, width, frame.height)
                    how = {} if width == frame.width else {"width": width, "interpolation": "BICUBIC"}
                    transparent = not opaque and has_alpha(frame.format)
                elif (frame.width, frame.height) != (first.width, first.height):
                    sizes = f"{frame.width}x{frame.height} after {first.width}x{first.height}"
                    raise BadClip(f"{path}: its frames change their size, {sizes}")
                times.see(frame)
                if transparent:
                    image = over_black(convert.reformat(frame, format="rgba", **how).to_ndarray())
                else:
                    image = convert.reformat(frame, format="rgb24", **how).to_ndarray()
                yield upright(image, frame.side_data.get("DISPLAYMATRIX"))
        except av.FFmpegError as error:
            raise bad(path, error, "not a video that FFmpeg can convert") from None
        if times.vary():
            print(f"{path}: {times}; its frames are taken one after another, whatever their times", file=sys.stderr)


def has_alpha(pixels) -> bool:
    """Whether pixels of an av.VideoFormat can be transparent."""
    return any(component.is_alpha for component in pixels.components)


def over_black(image: np.ndarray) -> np.ndarray:
    """(H, W, 4) RGBA uint8 -> (H, W, 3): what is transparent becomes black."""
    return ((image[..., :3].astype(np.uint16) * image[..., 3:] + 127) // 255).astype(np.uint8)


def upright(image: np.ndarray, matrix) -> np.ndarray:
    """Turn and mirror an image as FFmpeg's display matrix says, 3x3 int32: x' = a x + c y, y' = b x + d y."""
    if matrix is None:
        return image
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32).tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):  # a quarter turn: the rows become columns
        image, a, d = image.swapaxes(0, 1), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


class Times:
    """The shortest and the longest time between the frames of a video, in seconds."""

    def __init__(self) -> None:
        self.last, self.shortest, self.longest = None, float("inf"), 0.0

    def see(self, frame) -> None:
        """Take in the next frame."""
        if frame.time is not None:
            if self.last is not None and frame.time > self.last:
                gap = frame.time - self.last
                self.shortest, self.longest = min(self.shortest, gap), max(self.longest, gap)
            self.last = frame.time

    def vary(self) -> bool:
        """Whether they differ by more than rounding to milliseconds."""
        return self.longest > 1.5 * self.shortest and self.longest - self.shortest > 0.0025

    def __str__(self) -> str:
        return f"its frame rate varies, frames last {1000 * self.shortest:.0f} to {1000 * self.longest:.0f} ms"


def frame_rate(path: Path) -> float:
    """Frames a second on average, as the container says."""
    with opened(path) as (_, stream):
        rate = float(stream.average_rate or stream.guessed_rate or 0)
    return rate if 0 < rate <= 1000 else DEFAULT_RATE
