"""What a clip is, and what is raised where it cannot be read."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from .. import UserError

MOST_PIXELS = 2**26  # of one frame, twice 8K: a header that claims more is damaged or hostile


class BadClip(UserError):
    """A clip that cannot be read; the message names the file."""


class Unreadable(BadClip):
    """A clip whose file cannot be opened or read now, whatever it holds: no permission, no file handles, no memory."""


@dataclass(frozen=True)
class Clip:
    """One source of frames. `name` is unique in its data set.

    images: the files of a folder of frames, in order; without them `path` itself is decoded. size and pixels are those
    of raw YUV: (height, width), and FFmpeg's name of the pixel format. problem: why it cannot be read, if known before.
    part: which part of its file it is, where it is not all.
    """

    path: Path
    name: str
    images: tuple[Path, ...] = ()
    size: tuple[int, int] | None = None
    pixels: str = "yuv420p"
    problem: str = ""
    part: str = ""

    def fingerprint(self) -> str:
        """Changes when the source does."""
        lines = [f"{self.size} {self.pixels} {self.problem}"]
        for path in self.files():
            status = path.stat()
            lines.append(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}")
        return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()

    def files(self) -> tuple[Path, ...]:
        """Where the frames come from."""
        return self.images or (self.path,)


def check_pixels(path: Path, width: float, height: float) -> None:
    """Raise BadClip where a header claims frames that would fill the memory."""
    if not 0 < width * height <= MOST_PIXELS:
        raise BadClip(f"{path}: its header claims frames of {width:.0f}x{height:.0f} pixels")
