"""KTH actions: grey videos of 25 people and six actions, from the official avi files or from PredRNN's frame folders.

    official   kth/<action>/person01_boxing_d1_uncomp.avi, and kth/00sequences.txt with the frame ranges of every video
    folders    kth/<action>/person01_boxing_d1_uncomp/image_0257*.jpg, only frames within those ranges

The field's window convention (PredRNN, OpenSTL): windows do not cross gaps in frame numbers; in each run of frames the
last window ends with the run, and the others are laid from there backwards. The stride is the window's length, but 3
for jogging and running, which are short. Frames are resized bilinearly. Persons 1-16 train, 17-25 test; validation
holds out persons of the training side.
"""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np

from .. import UserError
from ..clips.clip import BadClip, Clip
from ..clips.reading import images_in
from ..clips.windows import ClipWindows, cache_of, open_all

ACTIONS = ("boxing", "handclapping", "handwaving", "jogging", "running", "walking")
FAST, FAST_STRIDE = ("jogging", "running"), 3
TRAIN_PERSONS, TEST_PERSONS = range(1, 17), range(17, 26)
VAL_PERSONS = 2  # of the training side, chosen by the seed
RESIZE, INTERPOLATION = "stretch", "bilinear"
OPTIONS = ("cache_dir", "no_cache", "skip_bad", "resize", "stride")
HELP = "see data/kth/README.md, or run `bash data/kth/download_kth.sh`"


def read_ranges(path: Path) -> dict[str, list[tuple[int, int]]]:
    """{'person01_boxing_d1': [(1, 95), …]} from 00sequences.txt, frames counted from 1, both ends included."""
    if not path.is_file():
        raise UserError(f"{path} is missing, it tells the videos' frame ranges: {HELP}")
    ranges = {}
    for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1):
        if not (match := re.match(r"\s*(person\d\d_[a-z]+_d\d)\s+(.*)", line)):
            continue  # the file begins with an explanation
        if "frames" not in match[2]:
            continue  # "*missing*": the lost video
        pairs = [(int(a), int(b)) for a, b in re.findall(r"(\d+)\s*-\s*(\d+)", match[2])]
        if not pairs or any(a > b or a < 1 for a, b in pairs):
            raise UserError(f"{path}, line {number}: no frame ranges in {line.strip()!r}")
        ranges[match[1]] = pairs
    if not ranges:
        raise UserError(f"{path}: holds no lines such as 'person01_boxing_d1 frames 1-95, 96-185': {HELP}")
    return ranges


def frames_of(ranges: list[tuple[int, int]]) -> np.ndarray:
    """The numbers of the frames in some ranges, each once, ascending; official ranges overlap in places."""
    return np.unique(np.concatenate([np.arange(a, b + 1) for a, b in ranges]))


def find_videos(root: Path) -> list[tuple[Clip, np.ndarray]]:
    """[(clip, numbers of its frames that are used)], sorted, from either layout."""
    if not root.is_dir():
        raise UserError(f"{root} is missing: {HELP}")
    found, ranges = [], None
    for action in ACTIONS:
        folder = root / action
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if not (match := re.match(r"(person\d\d_[a-z]+_d\d)", path.name)):
                continue
            name = f"{action}/{match[1]}"
            if path.is_dir():
                images = images_in(path)
                numbers = [re.match(r"image_(\d+)", image.name) for image in images]
                if not images or None in numbers:
                    raise BadClip(f"{path}: expected files image_0001*.jpg in it")
                found.append((Clip(path, name, images), np.array([int(n[1]) for n in numbers])))
            elif path.suffix.lower() == ".avi":
                ranges = ranges or read_ranges(root / "00sequences.txt")
                if match[1] not in ranges:
                    raise UserError(f"{root / '00sequences.txt'}: has no line for {path.name}")
                found.append((Clip(path, name), frames_of(ranges[match[1]])))
    first = {}
    for clip, _ in found:
        if (other := first.setdefault(clip.name, clip)) is not clip:
            raise UserError(f"{clip.path}: the same video as {other.path}; keep one of them, file or folder")
    if not found:
        raise UserError(f"{root}: no videos in {'/, '.join(ACTIONS)}/: {HELP}")
    return found


def person_of(clip: Clip) -> int:
    """1 to 25."""
    return int(clip.path.name[6:8])


def persons(split: str, seed: int) -> set[int]:
    """Who is in a split."""
    held_out = set(np.random.default_rng(seed).permutation(list(TRAIN_PERSONS))[:VAL_PERSONS].tolist())
    return {"test": set(TEST_PERSONS), "val": held_out, "train": set(TRAIN_PERSONS) - held_out}[split]


def window_starts(numbers: np.ndarray, length: int, stride: int) -> np.ndarray:
    """Where windows of `length` frames begin, as positions in `numbers`, ascending frame numbers: in each run without a
    gap the last window ends with the run, and the others go backwards from there by `stride`."""
    breaks = [0, *(np.flatnonzero(np.diff(numbers) != 1) + 1), len(numbers)]
    runs = [np.arange(end - length, first - 1, -stride)[::-1] for first, end in pairwise(breaks)]
    return np.concatenate(runs)


def stride_of(action: str, length: int) -> int:
    """The field's stride of windows of `length` frames."""
    return FAST_STRIDE if action in FAST else length


def dataset(split, *, data_root, in_shape, out_shape, seed, **options) -> ClipWindows:
    """Windows of a split, by the field's convention unless --stride is given.

    Of a file that is damaged at its end, the windows before the damage are used, and the others are told in `skipped`.
    """
    root = Path(data_root) / "kth"
    who = persons(split, seed)
    videos = [(clip, numbers) for clip, numbers in find_videos(root) if person_of(clip) in who]
    if not videos:
        raise UserError(f"{root}: no videos of the {split} persons {sorted(who)}")
    T, length = in_shape[0], in_shape[0] + out_shape[0]
    cache = cache_of(data_root, options, in_shape, RESIZE, INTERPOLATION, partial=True)
    numbers_of = {clip.name: numbers for clip, numbers in videos}
    clips, lengths, skipped = open_all(
        cache, [clip for clip, _ in videos], options.get("skip_bad", False), f"{split} videos of {root}"
    )
    windows = []
    for k, (clip, frames) in enumerate(zip(clips, lengths)):
        numbers, action = numbers_of[clip.name], clip.name.partition("/")[0]
        starts = window_starts(numbers, length, options.get("stride") or stride_of(action, length))
        # Position in the decoded clip: frame folders hold the used frames only, a video all of them, from number 1.
        positions = np.arange(len(numbers)) if clip.images else numbers - 1
        rows = positions[starts[:, None] + np.arange(length)]
        readable = rows[rows[:, -1] < frames]
        if lost := len(rows) - len(readable):
            skipped.append(f"{lost} of {len(rows)} windows of {clip.path}, of which {frames} frames can be read")
        windows += [[k, *row] for row in readable]
    if not windows:
        raise UserError(f"{root}: no {split} video has {length} frames in a row (--in_shape, --out_shape)")
    return ClipWindows(cache, clips, np.array(windows, np.int32), T, skipped)
