"""SJTU4K: ultra-high-definition clips, each a video file, a folder of images, or raw planar YUV 4:2:0.

No split is published. Ours, by clip, is data/sjtu4k/split.txt.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from .. import UserError
from ..clips.clip import Clip
from ..clips.reading import find_clips
from ..clips.windows import ClipWindows, cache_of, sliding_windows

SPLIT = Path(__file__).parents[2] / "data/sjtu4k/split.txt"
RESIZE, INTERPOLATION = "stretch", None
RAW = re.compile(r"[_ -]*\d{2,5}x\d{2,5}([_ -]*(\d+ ?(bits?|fps)|yuv\w*))*$")  # at the end of the names of raw files
YUV = ("yuv_size", "yuv_depth", "yuv_format")
OPTIONS = ("cache_dir", "no_cache", "skip_bad", "resize", "stride", *YUV)


def plain(name: str) -> str:
    """A clip's name without case, spaces, size and file type: 'Bund_Nightscape_3840x2160.yuv' -> 'bundnightscape'."""
    stem = re.sub(r"\.\w{2,4}$", "", name.lower())
    return re.sub(r"\d{2,5}x\d{2,5}.*|[^a-z]", "", stem)


def read_split(path: Path = SPLIT) -> dict[str, str]:
    """{plain clip name: split} from lines `train Bund Nightscape`."""
    split = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        line = line.partition("#")[0].strip()
        if line:
            part, _, name = line.partition(" ")
            if part not in ("train", "val", "test") or not plain(name):
                raise UserError(f"{path}, line {number}: expected 'train|val|test CLIP NAME', found {line!r}")
            split[plain(name)] = part
    return split


def split_of(clip: Clip, split: dict[str, str]) -> str:
    """The split that a clip belongs to. Raises UserError for a clip that is not listed."""
    names = [plain(part) for part in reversed(clip.name.split("/"))]
    found = next((split[name] for name in names if name in split), None)
    if found is None:
        raise UserError(f"{clip.path}: not in the split; add a line 'train|val|test {clip.path.stem}' to {SPLIT}")
    return found


def without_twins(clips: Sequence[Clip]) -> Sequence[Clip]:
    """clips. Raises UserError where one is there twice, as a file and as a folder, or as two kinds of file."""
    seen: dict[str, Clip] = {}
    for clip in clips:
        stem = clip.name if clip.images else re.sub(r"\.\w{2,4}$", "", clip.name)
        key = RAW.sub("", stem.lower())
        if (other := seen.setdefault(key, clip)) is not clip:
            raise UserError(f"{clip.path}: the same clip as {other.path}; keep one of them")
    return clips


def dataset(split, *, data_root, in_shape, out_shape, seed, **options) -> ClipWindows:
    """Windows over the clips of a split, resized to --in_shape."""
    root, listed = Path(data_root) / "sjtu4k", read_split()
    clips = without_twins(find_clips(root, *map(options.get, YUV)))
    chosen = [clip for clip in clips if split_of(clip, listed) == split]
    if not chosen:
        raise UserError(f"{root}: none of its {len(clips)} clips is in the {split} split of {SPLIT}")
    T, T_out = in_shape[0], out_shape[0]
    stride = options.get("stride") or T + T_out
    cache = cache_of(data_root, options, in_shape, RESIZE, INTERPOLATION)
    return sliding_windows(cache, chosen, T, T_out, stride, options.get("skip_bad", False), f"{split} clips of {root}")
