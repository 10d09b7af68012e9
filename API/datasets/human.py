"""Human3.6M in the layout of OpenSTL: human/images/S1_Directions.54138969_000226.jpg …, and lists of sequences.

A line of train.txt or test.txt, `images/S1_Directions.54138969_,226,296`, is a sequence: every fifth frame from the
first number to the last. --split list takes the published lists, which leak: all 838 videos are in both. --split
subject does not leak: subjects 1, 5, 6, 7, 8 train and 9, 11 test. Frames are resized
bicubically, as OpenSTL does.
"""

import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from .. import UserError
from ..clips.clip import BadClip, Clip
from ..clips.windows import ClipWindows, cache_of, open_all

STEP = 5
TRAIN_SUBJECTS, TEST_SUBJECTS = (1, 5, 6, 7, 8), (9, 11)
VAL_SHARE = 0.05  # of the training videos, chosen by the seed
RESIZE, INTERPOLATION = "stretch", "bicubic"
OPTIONS = ("cache_dir", "no_cache", "skip_bad", "resize", "split_by")
HELP = "see data/human/README.md"


def read_list(path: Path) -> list[tuple[str, int, int]]:
    """[(prefix, first frame, last frame)]. Raises UserError, with path and line, for a line that does not parse."""
    if not path.is_file():
        raise UserError(f"{path} is missing: {HELP}")
    entries = []
    for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        match = re.fullmatch(r"\s*(\S.*?)\s*,\s*(\d{1,9})\s*,\s*(\d{1,9})\s*", line)
        if not match or int(match[2]) > int(match[3]):
            raise UserError(f"{path}, line {number}: expected 'PREFIX,FIRST,LAST', found {line.strip()[:80]!r}")
        if Path(match[1]).is_absolute() or ".." in Path(match[1]).parts:
            raise UserError(f"{path}, line {number}: {match[1]!r} leads out of the data set's folder")
        entries.append((match[1], int(match[2]), int(match[3])))
    if not entries:
        raise UserError(f"{path}: empty: {HELP}")
    return entries


def subject_of(prefix: str) -> int:
    """1 for 'images/S1_Directions.54138969_'."""
    match = re.match(r"S(\d+)_", Path(prefix).name)
    if not match:
        raise UserError(f"--split subject: {prefix!r} does not begin with a subject such as S1_")
    return int(match[1])


def entries_of(split: str, root: Path, by: str, seed: int) -> list[tuple[str, int, int]]:
    """The sequences of a split. Validation takes whole videos of the training side, which then are not trained on."""
    if by == "subject":
        lists = [read_list(root / name) for name in ("train.txt", "test.txt") if (root / name).is_file()]
        pooled = sorted({entry for entries in lists for entry in entries}) or read_list(root / "train.txt")
        subjects = TEST_SUBJECTS if split == "test" else TRAIN_SUBJECTS
        entries = [entry for entry in pooled if subject_of(entry[0]) in subjects]
    else:
        entries = read_list(root / ("test.txt" if split == "test" else "train.txt"))
    if split == "test":
        return entries
    videos = sorted({prefix for prefix, _, _ in entries})
    chosen = np.random.default_rng(seed).permutation(len(videos))[: max(1, round(VAL_SHARE * len(videos)))]
    val = {videos[i] for i in chosen}
    return [entry for entry in entries if (entry[0] in val) == (split == "val")]


def dataset(split, *, data_root, in_shape, out_shape, seed, **options) -> ClipWindows:
    """One window a list entry: its first T + T_out frames."""
    root, by = Path(data_root) / "human", options.get("split_by") or "list"
    T, length = in_shape[0], in_shape[0] + out_shape[0]
    skip_bad, skipped = options.get("skip_bad", False), []
    wanted = defaultdict(list)  # prefix -> the windows' frame numbers
    there = {}  # folder -> the files in it: one look instead of one a frame
    for prefix, first, last in entries_of(split, root, by, seed):
        numbers = range(first, last + 1, STEP)[:length]
        problem = None
        if len(numbers) < length:
            found = f"{root}: {prefix},{first},{last} has {len(numbers)} frames"
            problem = f"{found}, a window takes {length} (--in_shape, --out_shape)"
        else:
            folder = (root / prefix).parent
            if folder not in there:
                there[folder] = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
            files = [root / f"{prefix}{n:06d}.jpg" for n in numbers]
            if missing := [file for file in files if file.name not in there[folder]]:
                problem = f"{missing[0]} is missing, the {split} list names it: {HELP}"
        if problem is None:
            wanted[prefix].append(numbers)
        elif skip_bad:
            skipped.append(problem)
        else:
            raise BadClip(f"{problem}; --skip_bad goes on without it")
    if not wanted:
        reason = f", the first because {skipped[0]}" if skipped else ""
        raise UserError(f"{root}: no usable {split} sequence (--split {by}){reason}")
    frames_of = {prefix: sorted({n for numbers in windows for n in numbers}) for prefix, windows in wanted.items()}
    clips = [
        Clip(root / prefix, prefix, tuple(root / f"{prefix}{n:06d}.jpg" for n in frames))
        for prefix, frames in frames_of.items()
    ]
    cache = cache_of(data_root, options, in_shape, RESIZE, INTERPOLATION)
    good, _, bad = open_all(cache, clips, skip_bad, f"{split} videos of {root}")
    windows = []
    for k, clip in enumerate(good):
        position = {number: i for i, number in enumerate(frames_of[clip.name])}
        windows += [[k, *(position[n] for n in numbers)] for numbers in wanted[clip.name]]
    return ClipWindows(cache, good, np.array(windows, np.int32), T, [*skipped, *bad])
