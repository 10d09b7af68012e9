"""Which clip is in which split: a property of the clip, kept with a run, and checked when the run goes on or is tested.

A run's splits.json holds {split: [{"name", "content", "look"}, …]}, or null for a data set that is not made of clips.
"""

import base64
import filecmp
import hashlib
import json
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from torch.utils.data import Dataset

from .. import UserError
from ..clips.clip import Clip
from ..run.files import reason_of, write_json

FILE = "splits.json"
SHARE = 0.1  # of the clips, on average: to validate, and to test
SAMPLE = 2**16  # bytes that are read at a time to tell files apart
FRAMES, SIDE = 5, 8  # of a clip's look
Manifest = dict[str, list[dict] | None]


# What a clip is ------------------------------------------------------------------------------------------------------


def content_of(clip: Clip) -> str:
    """A name for the clip's bytes, whatever the file is called: from its size and samples of it, so that it takes no
    longer for large files; and which part of them it is. UserError where it cannot be read."""
    try:
        content = _content(clip.files(), clip.fingerprint())
    except OSError as error:
        raise UserError(f"{error.filename or clip.path}: {error.strerror or error}") from None
    return hashlib.sha256(f"{content} {clip.part}".encode()).hexdigest()[:32] if clip.part else content


@lru_cache(maxsize=2**16)
def _content(files: Sequence[Path], _: str) -> str:
    sizes = [path.stat().st_size for path in files]
    found = hashlib.sha256(repr(sizes).encode())
    for k in sorted({0, len(files) // 2, len(files) - 1}):
        with files[k].open("rb") as file:
            for start in sorted({0, sizes[k] // 2, max(0, sizes[k] - SAMPLE)}):
                file.seek(start)
                found.update(file.read(SAMPLE))
    return found.hexdigest()[:32]


def same_bytes(one: Clip, other: Clip) -> bool:
    """Whether all files of two clips are equal."""
    pairs = list(zip(one.files(), other.files()))
    return len(one.files()) == len(other.files()) and all(filecmp.cmp(a, b, shallow=False) for a, b in pairs)


def distinct(clips: Sequence[Clip]) -> tuple[list[Clip], list[str]]:
    """(clips without the copies among them, of which the first is kept; the copies, in words)."""
    kept, copies = defaultdict(list), []
    for clip in clips:
        try:
            alike = kept[content_of(clip)]
        except UserError:  # unreadable, which is said when it is decoded
            alike = kept[clip.name]
        original = next((other for other in alike if same_bytes(clip, other)), None)
        if original is None:
            alike.append(clip)
        else:
            copies.append(f"{clip.path}: a copy of {original.name}, counted once")
    first = {clip.name for alike in kept.values() for clip in alike}
    return [clip for clip in clips if clip.name in first], copies


def look_of(frames: np.ndarray) -> np.ndarray:
    """(N, C, H, W) uint8 -> (5, 8, 8) uint8: tiny grey pictures of frames from the first to the last, which survive
    another codec, another size and some damage."""
    some = np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)
    grey = [np.asarray(frames[i]).mean(0, dtype=np.float32) for i in some]
    return np.stack([cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for frame in grey]).astype(np.uint8)


def look_alike(looks: np.ndarray) -> Iterator[tuple[int, int]]:
    """(N, 5, 8, 8) -> pairs of clips that show the same, in the same order in time; so do re-encodings of one film.

    They differ by at most a quarter of their contrast, and once the mean over time is taken away, by at most half of
    what is left, their motion. Seen: 1 to 4 % and 1 to 13 % for x264 at crf 23 to 40 and half the size, 11 % and 30 %
    for a clip full of blocks; different seconds of a fixed camera differ by 19 % and 100 %, or more.
    """
    looks = looks.reshape(len(looks), FRAMES, -1).astype(np.float32)
    motion, flat = looks - looks.mean(1, keepdims=True), looks.reshape(len(looks), -1)
    contrast, power = flat.var(1), (flat**2).mean(1)
    for i in range(len(looks)):  # the mean of (a - b)^2 is that of a^2 + b^2 - 2 a b: a product, fast for many clips
        differ = np.sqrt((power[i] + power - 2 * (flat @ flat[i]) / flat.shape[1]).clip(0))
        close = differ <= 0.25 * (np.sqrt((contrast[i] + contrast) / 2) + 1)
        for j in np.flatnonzero(close):
            if j > i and rms(motion[i] - motion[j]) <= 0.5 * rms(motion[i]) + 0.5:
                yield i, int(j)


def rms(x: np.ndarray) -> float:
    """Root of the mean square."""
    return float(np.sqrt((x**2).mean()))


# Where it belongs ----------------------------------------------------------------------------------------------------


def split_clips(clips: Sequence[Clip], seed: int) -> dict[str, list[Clip]]:
    """Whole clips to train (8 of 10 on average), val and test: by a number in [0, 1) from the clip's content and seed.

    So another name moves no clip, nor does another clip beside it, unless a split would be left empty. Raises UserError
    for fewer than 3 clips.
    """
    if len(clips) < 3:
        names = ", ".join(clip.name for clip in clips)
        raise UserError(f"--data_root: {len(clips)} clips ({names}) cannot be split into train, val and test; cut them")
    return split_by({clip: f"{seed} {content_of(clip)}" for clip in clips})


def split_by(keys: Mapping[Hashable, str]) -> dict[str, list]:
    """{item: key} of at least 3 items -> the items of train (8 of 10 on average), val and test, by a number in [0, 1)
    from the key alone.

    Every split has at least one: where no number is low (or high) enough for test (or val), the lowest (or highest) is
    taken.
    """
    number = {item: int(hashlib.sha256(key.encode()).hexdigest()[:12], 16) for item, key in keys.items()}
    order = sorted(keys, key=number.get)
    test = max(1, sum(number[item] < SHARE * 16**12 for item in keys))
    val = max(1, sum(number[item] >= (1 - SHARE) * 16**12 for item in keys))
    while test + val >= len(keys):  # one is needed to train, too
        test, val = (test - 1, val) if test > val else (test, val - 1)
    train_end = len(keys) - val
    parts = {"train": set(order[test:train_end]), "val": set(order[train_end:]), "test": set(order[:test])}
    return {split: [item for item in keys if item in part] for split, part in parts.items()}


# What a run keeps of it ----------------------------------------------------------------------------------------------


def split_manifest(datasets: Mapping[str, Dataset]) -> Manifest:
    """The clips of every split: {split: [{"name", "content", "look"}, …]}, "look" where the data set has looks; null
    for a data set without clips."""
    manifest = {}
    for split, data in datasets.items():
        clips, looks = getattr(data, "clips", None), getattr(data, "looks", {})
        manifest[split] = None if clips is None else [
            {"name": clip.name, "content": content_of(clip)}
            | ({"look": base64.b64encode(looks[clip.name].tobytes()).decode()} if clip.name in looks else {})
            for clip in clips
        ]  # fmt: skip
    return manifest


def suspects(manifest: Manifest) -> list[str]:
    """A line for any two clips of different splits that look like one film encoded twice."""
    entries = [(split, e) for split, clips in manifest.items() for e in clips or () if "look" in e]
    looks = [np.frombuffer(base64.b64decode(entry["look"]), np.uint8) for _, entry in entries]
    lines = []
    for i, j in look_alike(np.stack(looks)) if looks else ():
        (one, a), (other, b) = entries[i], entries[j]
        if one != other and a["content"] != b["content"]:
            lines.append(f"warning: {a['name']} ({one}) and {b['name']} ({other}) look like one film; keep one of them")
    return lines


def check_manifest(before: Manifest, now: Manifest) -> list[str]:
    """What has changed since a run began, a line for each split that has.

    before: splits.json of the run; now: of the data that is to be trained or tested on. Raises UserError where a clip
    would be tested that the run has trained on, unless it was in the test set then, too (published splits may leak).
    """
    known = {split: {entry["content"]: entry for entry in clips or ()} for split, clips in before.items()}
    trained, tested, validated = (known.get(split, {}) for split in ("train", "test", "val"))
    names = {entry["name"]: entry for entry in trained.values()}

    def trained_as(entry: dict) -> bool:
        if entry["content"] in tested:
            return False
        old = names.get(entry["name"], {})  # of the same name: encoded again in place?
        return entry["content"] in trained or same_look(old.get("look"), entry.get("look"))

    if leaked := [entry["name"] for entry in now.get("test") or () if trained_as(entry)]:
        raise UserError(
            f"--data_root: {listed(leaked)} would be tested, but this run has trained on it: restore the clips of its "
            f"{FILE} and its --seed, or train under another --ex_name"
        )
    lines = []
    for split, clips in now.items():
        if clips is None or before.get(split) is None:
            continue
        contents = {entry["content"] for entry in clips}
        new = [entry["name"] for entry in clips if entry["content"] not in known[split]]
        gone = [entry["name"] for content, entry in known[split].items() if content not in contents]
        changes = [f"{listed(clips)} {word}" for clips, word in ((new, "new"), (gone, "gone")) if clips]
        if changes:
            lines.append(f"{split} is not what it was when this run began: {', '.join(changes)}")
        if split == "test" and (chose := [e["name"] for e in clips if e["content"] in validated.keys() - tested]):
            lines.append(f"test: {listed(chose)} validated this run, so chose its best checkpoint")
    return lines


def same_look(one: str | None, other: str | None) -> bool:
    """Whether two looks of a manifest are those of one film."""
    if not (one and other):
        return False
    return any(look_alike(np.stack([np.frombuffer(base64.b64decode(look), np.uint8) for look in (one, other)])))


def listed(names: Sequence[str], most: int = 5) -> str:
    """'a, b and 7 more'."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def read_manifest(folder: Path) -> Manifest | None:
    """splits.json of a run folder; None where there is none. Raises UserError for a damaged one."""
    path = folder / FILE
    try:
        manifest = json.loads(path.read_text("utf-8"))
        for entry in (entry for clips in manifest.values() for entry in clips or ()):
            entry["name"], entry["content"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({reason_of(error)}); remove it to go on unchecked") from None
    return manifest


def check_splits(run: Path | None, datasets: Mapping[str, Dataset]) -> list[str]:
    """Check a test set against the splits of the run that a checkpoint is of: what to say of it. UserError as
    check_manifest."""
    now, before = split_manifest(datasets), read_manifest(run) if run else None
    if before is None:
        unknown = f"no {FILE} beside the checkpoint: whether it was trained on what is tested is not checked"
        return [unknown] if any(now.values()) else []
    return check_manifest(before, now) + suspects({"train": before.get("train"), "test": now.get("test")})


def settle_splits(run: Path | None, datasets: Mapping[str, Dataset]) -> tuple[Manifest, list[str]]:
    """(what to write to the run's splits.json, what to say) of the data that a run is to train on.

    run: the folder of the run that goes on, or whose weights this one starts from. All that it was ever trained or
    validated on stays in splits.json. Raises UserError as check_manifest.
    """
    now, before = split_manifest(datasets), (read_manifest(run) if run else None) or {}
    lines = check_manifest(before, now) + suspects(now)
    for split in ("train", "val"):
        if now.get(split) is not None:
            contents = {entry["content"] for entry in now[split]}
            now[split] += [entry for entry in before.get(split) or () if entry["content"] not in contents]
        if note := getattr(datasets.get(split), "note", ""):
            lines.append(f"{split}: {note}")
    return now, lines


def write_manifest(run: Path, manifest: Manifest) -> None:
    """Write splits.json of a run folder."""
    write_json(run / FILE, manifest)
