"""The frames of a folder in the order of the numbers in their names."""

import re
from collections import defaultdict
from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

from .clip import BadClip

NUMBER = re.compile(r"\d+(?:\.\d+)*")
SIGNS = "+-\N{MINUS SIGN}"


def natural(name: str) -> list[tuple]:
    """A sorting key that puts clip 2 before clip 10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name)]


def in_order(images: Sequence[Path]) -> tuple[Path, ...]:
    """Image files in the order of their numbers: 2 before 10, t-5 before t4, 0.95 before 1.0.

    Raises BadClip, naming two files, where names leave the order open or hold two images of one frame.
    """
    names = {path: split_name(path.stem) for path in images}
    unsigned = {pattern(texts, k) for texts, numbers in names.values() for k in range(len(numbers))}
    written = defaultdict(dict)  # the place of a number in the names -> {the number as it is written: a file}
    signed = set()  # the places where numbers have signs
    for path, (texts, numbers) in names.items():
        for k, number in enumerate(numbers):
            written[k].setdefault(number, path)
            signed |= {k} if is_sign(texts, k, unsigned) else set()
    values = {k: values_of(numbers, k in signed) for k, numbers in written.items()}
    keys, frames = {}, defaultdict(list)
    for path, (texts, numbers) in names.items():
        key = [(1, (), texts[0])]
        for k, number in enumerate(numbers):
            value, text = values[k][number], key[-1][2]
            if is_sign(texts, k, unsigned):
                key[-1] = (1, (), text[:-1])
                value = value if text[-1] == "+" else tuple(-part for part in value)
            key += [(0, value, ""), (1, (), texts[k + 1])]
        keys[path] = (key, path.name)
        frames[tuple(value for kind, value, _ in key if kind == 0) or path.stem].append(path)
    check_one_a_frame(frames, images)
    return tuple(sorted(images, key=keys.get))


def split_name(stem: str) -> tuple[list[str], list[str]]:
    """(the n + 1 texts, the n numbers between them)."""
    return NUMBER.split(stem), NUMBER.findall(stem)


def pattern(texts: Sequence[str], k: int) -> str:
    """What stands before number k of a name, other numbers left out."""
    return "#".join(texts[: k + 1])


def is_sign(texts: Sequence[str], k: int, unsigned: set[str]) -> bool:
    """Whether the text before number k of a name ends in its sign, and not in a hyphen as in img-1: where it stands
    alone or after another separator, or where other names have a number without it in the same place."""
    before = texts[k]
    if not before or before[-1] not in SIGNS or (k > 0 and len(before) == 1):
        return False
    return len(before) == 1 or before[-2] in "_ =(,;" or pattern(texts, k)[:-1] in unsigned


def values_of(written: dict[str, Path], signed: bool) -> dict[str, tuple]:
    """The values of the numbers in one place of the names: 1.5 is a decimal, or 1 and then 5, whichever fits them all.

    Raises BadClip, naming two files, where both orders differ and neither is likelier.
    """
    counts = {number: tuple(Decimal(part) for part in number.split(".")) for number in written}
    if max(map(len, counts.values())) != 2:
        return counts
    decimals = {number: (Decimal(number),) for number in written}
    by_value, by_count = (sorted(written, key=values.get) for values in (decimals, counts))
    if signed or by_value == by_count:
        return decimals
    if len(set(decimals.values())) < len(written):  # 1.1 and 1.10 are two frames
        return counts
    steps = [decimals[b][0] - decimals[a][0] for a, b in pairwise(by_value)]
    even = len(steps) > 1 and max(steps) < 2 * min(steps)
    padded = any(re.fullmatch(r"\d+\.0\d+", number) for number in written)  # 1.05 before 1.1
    gapless = all(b[-1] - a[-1] == 1 for a, b in pairwise(map(counts.get, by_count)) if a[0] == b[0])
    if (even or padded) != gapless:
        return counts if gapless else decimals
    one, other = next(pair for pair in zip(by_value, by_count) if pair[0] != pair[1])
    raise BadClip(
        f"{written[one]} and {written[other].name}: the order of {one} and {other} is not clear; "
        "name the frames with the same number of decimals"
    )


def check_one_a_frame(frames: dict[tuple | str, list[Path]], images: Sequence[Path]) -> None:
    """Raise BadClip where a folder holds two kinds of images of one frame; frames: its files by their numbers."""
    stems = defaultdict(list)
    for path in images:
        stems[path.stem].append(path)
    twice = [paths for paths in stems.values() if len(paths) > 1]
    if not twice and len(frames) > 1:
        twice = [paths for paths in frames.values() if len(paths) > 1]
    if twice:
        one, other = twice[0][:2]
        raise BadClip(f"{one} and {other.name}: two images of one frame; put each kind in a folder of its own")
