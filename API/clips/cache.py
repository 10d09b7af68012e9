"""Clips decoded once: uint8 arrays (frames, C, H, W) on disk, memory-mapped, so that a window is one slice."""

import hashlib
import io
import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from .. import UserError
from .clip import BadClip, Clip, Unreadable
from .fit import fit
from .reading import CACHE_TAG, read_frames
from .video import pyav

HEADER = 128  # bytes; numpy's own header for such arrays has this length
READERS = 2  # counts up when a clip is read otherwise than before, so that what is cached is decoded again
TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n# Decoded videos. They are made again where they are missing.\n"


class ClipCache:
    """Opens clips as (frames, C, H, W) uint8 arrays of one size.

    folder: where decoded clips are kept, or None to decode anew each time and keep the newest few in memory. A cached
    clip is named after its source's paths, sizes and dates, so a changed source is decoded again; it is written under
    a name that no other process has, on this machine or another, and renamed, so it is never seen half-written, also
    when two of them decode it at once. Why a clip cannot be decoded is kept beside them: this, too, is found out once.
    partial: of a damaged clip, keep the frames before the damage; BadClip is raised only where there are none.
    """

    MEMORY = 2**28  # bytes of decoded clips kept in memory without a folder
    OPEN = 32  # memory maps held open; each takes a file handle, of which macOS gives a process 256

    def __init__(
        self,
        folder: Path | None,
        shape: tuple[int, int, int],
        resize: str = "stretch",
        interpolation: str | None = None,
        partial: bool = False,
    ) -> None:
        self.folder, self.shape, self.resize, self.interpolation = folder, shape, resize, interpolation
        self.partial = partial
        self.kept: dict[str, np.ndarray] = {}  # by the clip's name, the one opened last at the end
        self.paths: dict[str, Path] = {}
        self.bad: dict[str, str] = {}

    def path(self, clip: Clip) -> Path:
        """Where the decoded clip is kept."""
        how = (
            f"{READERS} {clip.fingerprint()} {self.shape} {self.resize} {self.interpolation}{' partial' * self.partial}"
        )
        return self.folder / f"{hashlib.sha256(how.encode()).hexdigest()[:32]}.npy"

    def open(self, clip: Clip) -> np.ndarray:
        """The clip's frames. Raises BadClip, naming the file, where it cannot be read."""
        if clip.name in self.bad:
            raise BadClip(self.bad[clip.name])
        frames = self.kept.pop(clip.name, None)
        try:
            if frames is None:
                frames = np.stack(list(self.decode(clip))) if self.folder is None else self.from_disk(clip)
        except Unreadable:
            raise
        except BadClip as error:
            self.bad[clip.name] = str(error)
            raise
        except OSError as error:
            raise Unreadable(f"{error.filename or clip.path}: {error.strerror or error}") from None
        self.kept[clip.name] = frames
        while len(self.kept) > 1 and self.full():
            del self.kept[next(iter(self.kept))]
        return frames

    def full(self) -> bool:
        """Whether more is kept open than there is room for."""
        if self.folder is not None:
            return len(self.kept) > self.OPEN
        return sum(frames.nbytes for frames in self.kept.values()) > self.MEMORY

    def from_disk(self, clip: Clip) -> np.memmap:
        """The clip's frames out of the folder; decoded before if they are not there or not whole."""
        if clip.name not in self.paths:  # once: to look for changes of the source each time would take long
            self.paths[clip.name] = self.path(clip)
        path = self.paths[clip.name]
        if (frames := self.map(path)) is None:
            note = path.with_suffix(f".{pyav().__version__}.bad")  # another version may be able to read it
            if note.is_file():
                raise BadClip(note.read_text("utf-8", errors="surrogateescape"))
            try:
                self.build(clip, path)
            except Unreadable:
                raise
            except BadClip as error:
                with suppress(OSError):  # then it is found out again next time
                    own = partial_of(note)
                    own.write_text(str(error), "utf-8", errors="surrogateescape")
                    own.replace(note)
                raise
            frames = self.map(path)
        return frames

    def map(self, path: Path) -> np.memmap | None:
        """A cached clip, or None where it is not there or damaged."""
        frame = int(np.prod(self.shape))
        try:
            with path.open("rb") as file:
                header, size = file.read(HEADER), os.fstat(file.fileno()).st_size - HEADER
            if size <= 0 or size % frame or header != self.header(size // frame):
                return None
            return np.memmap(path, np.uint8, "r", HEADER, (size // frame, *self.shape))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self.unusable(error) from None

    def decode(self, clip: Clip) -> Iterator[np.ndarray]:
        """(C, H, W) uint8, frame by frame; at least one."""
        frames = 0
        try:
            for frame in read_frames(clip):
                yield fit(frame, self.shape, self.resize, clip.path, self.interpolation)
                frames += 1
        except BadClip as error:
            if isinstance(error, Unreadable) or not (self.partial and frames):
                raise
        if frames == 0:
            raise BadClip(f"{clip.path}: holds no frames")

    def build(self, clip: Clip, path: Path) -> None:
        """Decode a clip to path, one frame in memory at a time."""
        partial = partial_of(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with partial.open("wb") as file:
                    file.write(bytes(HEADER))
                    count = 0
                    for frame in self.decode(clip):
                        file.write(frame.data)
                        count += 1
                    file.seek(0)
                    file.write(self.header(count))
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:  # of the folder: those of the clip are BadClip by now
            raise self.unusable(error) from None

    def prepare(self) -> None:
        """Make the folder and mark it as one of cached files, which are no clips where it lies among some.

        Raises UserError, naming --cache_dir, where that cannot be done.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (tag := self.folder / CACHE_TAG).exists():
                tag.write_bytes(TAG)
        except OSError as error:
            raise self.unusable(error) from None

    def unusable(self, error: OSError) -> UserError:
        """The exception to raise where the folder cannot be used."""
        blocked = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "a file is in its place" if blocked else error.strerror or error
        return UserError(
            f"--cache_dir {self.folder}: cannot keep decoded frames there ({reason}); "
            "give another folder, or --no_cache"
        )

    def header(self, count: int) -> bytes:
        """The npy header of `count` frames."""
        data = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            data, {"descr": "|u1", "fortran_order": False, "shape": (count, *self.shape)}
        )
        assert len(data.getvalue()) == HEADER
        return data.getvalue()


def partial_of(path: Path) -> Path:
    """Where path is written before it is whole. Process numbers would not do: every container has a process 1."""
    return path.with_name(f"{path.stem}.{uuid.uuid4().hex}.partial")
