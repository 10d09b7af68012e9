"""An array whose axes are named by letters -> frames (T, C, H, W), a few at a time, with nothing missing."""

import zlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from .. import UserError
from ..run.files import reason_of
from .clip import BadClip

GUESSES = {3: "THW", 5: "NTCHW"}  # what the axes are where no --layout says so
PREVIOUS = "previous"
# What h5py and the codecs of zarr raise where a block of a file that could be opened turns out to be damaged.
READING = (OSError, RuntimeError, ValueError, EOFError, zlib.error)


def check_layout(layout: str) -> str:
    """The letters in upper case. Raises UserError where they are not N, T, C, H, W, each at most once, with T, H, W."""
    letters = layout.upper()
    if set(letters) - set("NTCHW") or len(set(letters)) < len(letters) or not set("THW") <= set(letters):
        raise UserError(f"--layout {layout}: letters of N T C H W, each at most once, with T H W, such as NTCHW or THW")
    return letters


def check_fill(rule: str | None) -> float | str | None:
    """--fill_missing as a number or a word. Raises UserError for another."""
    if rule in (None, PREVIOUS):
        return rule
    try:
        number = float(rule)
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        raise UserError(f"--fill_missing {rule}: a number, or {PREVIOUS}")
    return number


class Sequences:
    """N sequences of F frames, (C, H, W) each, out of an array.

    source: has a shape, a dtype, and numpy's indexing with integers and slices; it is read only where it is asked for.
    where: for messages. name: what the values are called. layout: see check_layout; an axis of N or C may be missing,
    and is then 1 long. fill: see check_fill. missing: values that stand for missing ones, beside NaN and infinity.
    size: (H, W), made from frames of other sizes by resize: "crop" cuts the middle out and changes no value, "stretch"
    interpolates. None: as they are.

    Raises BadClip, naming where, for an array that is none of that.
    """

    def __init__(
        self,
        source: Any,
        where: str,
        name: str = "",
        layout: str | None = None,
        fill: str | None = None,
        missing: Sequence[float] = (),
        size: tuple[int, int] | None = None,
        resize: str = "crop",
    ) -> None:
        shape = tuple(source.shape)
        letters = check_layout(layout) if layout else GUESSES.get(len(shape))
        if letters is None:
            raise BadClip(f"{where}: {shape}, say what these axes are: --layout NTHW, for instance, or TCHW")
        if len(letters) != len(shape) or 0 in shape:
            raise BadClip(f"{where}: {shape} does not fit --layout {letters}")
        if np.dtype(source.dtype).kind not in "fiub":
            raise BadClip(f"{where}: its values are {source.dtype}, not numbers")
        self.source, self.where, self.name, self.letters, self.missing = source, where, name, letters, missing
        self.fill, self.size, self.resize = check_fill(fill), size, resize
        sizes = dict(zip(letters, shape))
        self.N, self.F, self.C, self.h, self.w = (sizes.get(letter, 1) for letter in "NTCHW")
        self.rows, self.columns = slice(None), slice(None)
        if size and resize == "crop":
            self.rows, self.columns = self.middle(self.h, self.w)

    def middle(self, h: int, w: int) -> tuple[slice, slice]:
        """Where `crop` takes its frames from."""
        H, W = self.size
        if h < H or w < W:
            shapes = f"its frames are {h}x{w}, --in_shape asks for {H}x{W}"
            raise BadClip(f"{self.where}: {shapes}; --resize stretch enlarges them")
        top, left = (h - H) // 2, (w - W) // 2
        return slice(top, top + H), slice(left, left + W)

    def read(self, n: int, first: int, last: int) -> np.ndarray:
        """Frames first to last (exclusive) of sequence n: (T, C, H, W) float32, float64 where that holds more. Raises
        BadClip where values are missing and not to be filled."""
        values = self.raw(n, first, last)
        if gaps := self.fill_gaps(values, n, first):
            raise BadClip(f"{self.where}: {gaps:,} missing values in frames {first} to {last - 1}; {self.help()}")
        return self.resized(values)

    def raw(self, n: int, first: int, last: int) -> np.ndarray:
        """As read, but NaN where values are missing, and of the array's own size unless that is cropped. Raises
        BadClip where they cannot be read."""
        places = dict(N=n, T=slice(first, last), H=self.rows, W=self.columns)
        try:
            part = np.asarray(self.source[tuple(places.get(letter, slice(None)) for letter in self.letters)])
        except READING as error:
            raise BadClip(f"{self.where}: cannot be read ({reason_of(error)})") from None
        axes = [letter for letter in self.letters if letter != "N"]
        part = part.transpose([axes.index(letter) for letter in "TCHW" if letter in axes])
        part = part if "C" in axes else part[:, None]
        values = part.astype(np.float32 if np.can_cast(part.dtype, np.float32) else np.float64)
        for mark in self.missing:
            values[part == mark] = np.nan
        values[~np.isfinite(values)] = np.nan
        return values

    def fill_gaps(self, values: np.ndarray, n: int, first: int) -> int:
        """Fill the missing ones of raw(n, first, …) in place, as `fill` says; returns how many are left."""
        gaps = np.isnan(values)
        if self.fill is None or not gaps.any():
            return int(gaps.sum())
        if self.fill != PREVIOUS:
            values[gaps] = self.fill
            return 0
        for t in np.flatnonzero(gaps.any((1, 2, 3))):
            before = values[t - 1] if t else self.before(n, first, gaps[t])
            values[t][gaps[t]] = before[gaps[t]]
        return 0

    def before(self, n: int, first: int, gaps: np.ndarray) -> np.ndarray:
        """(C, H, W): the newest value before frame `first`, where there are gaps."""
        found = np.full(gaps.shape, np.nan)
        while first and np.isnan(found[gaps]).any():
            first -= 1
            older = self.raw(n, first, first + 1)[0]
            found = np.where(np.isnan(found), older, found)
        if np.isnan(found[gaps]).any():
            raise BadClip(f"{self.where}: a sequence begins with missing values; --fill_missing NUMBER fills these")
        return found

    def help(self) -> str:
        """What to do about missing values."""
        return f"--fill_missing NUMBER, or {PREVIOUS}, fills them"

    def resized(self, values: np.ndarray) -> np.ndarray:
        """(T, C, h, w) -> (T, C, H, W): areas averaged to shrink, bilinear to enlarge."""
        if self.size is None or values.shape[2:] == tuple(self.size):
            return values
        H, W = self.size
        how = cv2.INTER_AREA if values.shape[2] * values.shape[3] > H * W else cv2.INTER_LINEAR
        planes = values.reshape(-1, *values.shape[2:])
        return np.stack([cv2.resize(plane, (W, H), interpolation=how) for plane in planes]).reshape(
            *values.shape[:2], H, W
        )

    def back(self, frames: np.ndarray) -> np.ndarray:
        """(T, C, H, W) -> (T, C, h, w): the array's own size again, NaN beside what `crop` cuts out."""
        if frames.shape[2:] == (self.h, self.w):
            return frames
        if self.resize == "crop":
            whole = np.full((*frames.shape[:2], self.h, self.w), np.nan, frames.dtype)
            whole[:, :, self.rows, self.columns] = frames
            return whole
        planes = frames.reshape(-1, *frames.shape[2:])
        return np.stack([cv2.resize(plane, (self.w, self.h)) for plane in planes]).reshape(
            *frames.shape[:2], self.h, self.w
        )

    def laid_out(self, frames: np.ndarray) -> np.ndarray:
        """(N, T, C, h, w) -> the array's own axes and floating dtype, float32 for other kinds. An axis that it does not
        have is left out; one of several channels comes after T."""
        dtype = np.dtype(self.source.dtype)
        frames = frames.astype(dtype.newbyteorder("=") if dtype.kind == "f" else np.float32)
        letters = self.letters
        if "C" not in letters and frames.shape[2] > 1:
            letters = letters.replace("T", "TC")
        frames = frames[tuple(slice(None) if letter in letters else 0 for letter in "NTCHW")]
        here = [letter for letter in "NTCHW" if letter in letters]
        return np.ascontiguousarray(frames.transpose([here.index(letter) for letter in letters]))
