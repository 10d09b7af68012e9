"""Clips decoded once: uint8 arrays (frames, C, H, W) on disk, memory-mapped, so that a window is one slice."""

import hashlib
import io
import os
from pathlib import Path

import numpy as np

from .fit import fit
from .reading import BadClip, Clip, read_frames

HEADER = 128  # bytes; numpy's own header for such arrays has this length


class ClipCache:
    """Opens clips as (frames, C, H, W) uint8 arrays of one size.

    folder: where decoded clips are kept, or None to decode anew each time and keep the newest few in memory. A cached
    clip is named after its source's paths, sizes and dates, so a changed source is decoded again; it is written under
    another name and renamed, so it is never seen half-written, also when two processes decode it at once.
    partial: of a damaged clip, keep the frames before the damage; BadClip is raised only where there are none.
    """

    MEMORY = 2**28  # bytes of decoded clips kept in memory without a folder

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
        self.kept: dict[str, np.ndarray] = {}

    def path(self, clip: Clip) -> Path:
        """Where the decoded clip is kept."""
        how = f"{clip.fingerprint()} {self.shape} {self.resize} {self.interpolation}{' partial' * self.partial}"
        return self.folder / f"{hashlib.sha256(how.encode()).hexdigest()[:32]}.npy"

    def open(self, clip: Clip) -> np.ndarray:
        """The clip's frames. Raises BadClip, naming the file, where it cannot be read."""
        if clip.name in self.kept:
            return self.kept[clip.name]
        try:
            if self.folder is None:
                frames = np.stack(list(self.decode(clip)))
                while self.kept and sum(a.nbytes for a in self.kept.values()) + frames.nbytes > self.MEMORY:
                    del self.kept[next(iter(self.kept))]
            else:
                path = self.path(clip)
                if not path.exists():
                    self.build(clip, path)
                frames = np.load(path, mmap_mode="r", allow_pickle=False)
        except OSError as error:
            raise BadClip(f"{error.filename or clip.path}: {error.strerror or error}") from None
        self.kept[clip.name] = frames
        return frames

    def decode(self, clip: Clip):
        """(C, H, W) uint8, frame by frame."""
        frames = 0
        try:
            for frame in read_frames(clip):
                yield fit(frame, self.shape, self.resize, clip.path, self.interpolation)
                frames += 1
        except BadClip:
            if not (self.partial and frames):
                raise

    def build(self, clip: Clip, path: Path) -> None:
        """Decode a clip to path, one frame in memory at a time."""
        partial = path.with_name(f"{path.stem}.{os.getpid()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(bytes(HEADER))
                count = 0
                for frame in self.decode(clip):
                    file.write(frame.data)
                    count += 1
                if count == 0:
                    raise BadClip(f"{clip.path}: holds no frames")
                file.seek(0)
                file.write(self.header(count))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            if error.filename is None or Path(error.filename) in (partial, path.parent):
                reason = error.strerror or error
                raise ValueError(
                    f"--cache_dir {self.folder}: cannot keep decoded frames there ({reason}); "
                    "give another folder, or --no_cache"
                ) from None
            raise
        finally:
            partial.unlink(missing_ok=True)

    def header(self, count: int) -> bytes:
        """The npy header of `count` frames."""
        data = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            data, {"descr": "|u1", "fortran_order": False, "shape": (count, *self.shape)}
        )
        assert len(data.getvalue()) == HEADER
        return data.getvalue()
