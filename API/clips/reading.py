"""Any folder -> its clips, and any clip -> its frames, decoded one at a time."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from .. import UserError
from . import images, video, yuv
from .clip import BadClip, Clip, Unreadable
from .images import read_film, read_images, sort_images
from .npy import read_npy
from .order import in_order, natural
from .video import read_video
from .yuv import read_yuv, yuv_clip

KINDS = (*video.ENDINGS, *images.FILMS, ".npy", yuv.ENDING)  # a file of such an ending is a clip
CACHE_TAG = "CACHEDIR.TAG"  # marks folders of cached files, see https://bford.info/cachedir/
CACHED = re.compile(r"[0-9a-f]{32}\.npy")


def find_clips(
    folder: Path,
    yuv_size: Sequence[int] | None = None,
    yuv_depth: int | None = None,
    yuv_format: str | None = None,
    flag: str = "--data_root",
) -> list[Clip]:
    """Every clip in a folder and the folders in it, in a fixed order, each once whatever links lead to it; a folder of
    images is one clip, and what this program has written there, runs and cached frames, is none.

    yuv_size, yuv_depth, yuv_format: of raw YUV, see yuv_clip. Raises UserError, naming flag and folder, where there is
    none. What is seen to be unreadable is in the list, so that whoever reads it finds out.
    """
    if not folder.is_dir():
        wrong = "is a file; give its folder" if folder.exists() else "is missing: the data set must lie there"
        raise UserError(f"{flag} {folder} {wrong}")
    raw, found = (yuv_size, yuv_depth, yuv_format), {}
    clips = [clip for place in places(folder) for clip in clips_in(place, folder, raw)]
    for clip in sorted(clips, key=lambda clip: clip.path.is_symlink()):  # links last: the file itself gives the name
        found.setdefault(tuple(map(identity, clip.files())), clip)
    if not found:
        raise UserError(f"{flag} {folder}: no clips in it; looked for {' '.join(KINDS)} and folders of images")

    def order(clip: Clip) -> tuple:
        place = clip.path if clip.path.is_dir() else clip.path.parent
        parts = [natural(part) for part in place.relative_to(folder).parts]
        return parts, place != clip.path, natural(clip.path.name)

    return sorted(found.values(), key=order)


def clips_at(
    path: Path,
    yuv_size: Sequence[int] | None = None,
    yuv_depth: int | None = None,
    yuv_format: str | None = None,
    flag: str = "--input",
) -> list[Clip]:
    """The clips in a folder, see find_clips, or the one of a file. Raises UserError, naming flag and path, for none."""
    if path.is_dir():
        return find_clips(path, yuv_size, yuv_depth, yuv_format, flag)
    if not path.exists():
        raise UserError(f"{flag} {path}: no such file or folder")
    kind = path.suffix.lower()
    if kind == yuv.ENDING:
        return [yuv_clip(path, path.name, yuv_size, yuv_depth, yuv_format)]
    if kind in KINDS or (kind in images.MAYBE_FILMS and images.is_film(path)):
        return [Clip(path, path.name)]
    what = "one image" if kind in images.ENDINGS else "unknown kind of file"
    raise UserError(f"{flag} {path}: {what}, expected {' '.join(KINDS)} or a folder of images or clips")


def images_in(folder: Path) -> tuple[Path, ...]:
    """The image files right in a folder that are the frames of one clip, in order. Raises BadClip, see in_order."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in images.ENDINGS and path.name[0] != "."]
    return in_order(sort_images(sorted(files))[0])


def identity(path: Path) -> tuple:
    """Equal for paths that lead to one file or folder."""
    try:
        status = path.stat()
    except OSError:
        return (path,)
    return (status.st_dev, status.st_ino, status.st_size) if status.st_ino else (path.resolve(),)


def places(folder: Path, closed: Sequence[str] = ()) -> Iterator[Path]:
    """The folder and the folders in it, each once: first what is really there, then what links lead to. Not those whose
    names have an ending of `closed`."""
    seen, folders, links = set(), [folder], []
    while folders or links:
        place = (folders or links).pop(0)
        if (there := identity(place)) in seen or (place != folder and is_result(place)):
            continue
        seen.add(there)
        yield place
        try:
            inside = [Path(entry.path) for entry in os.scandir(place) if entry.is_dir() and entry.name[0] != "."]
        except OSError:  # clips_in says so
            continue
        for path in sorted(inside):
            if path.suffix.lower() not in closed:
                (links if path.is_symlink() else folders).append(path)


def is_result(folder: Path) -> bool:
    """Whether a folder is that of a run of this program, or of a comparison of runs."""
    return (folder / "comparison.csv").is_file() or (
        (folder / "checkpoints").is_dir() and any((folder / name).is_file() for name in ("config.json", "log.txt"))
    )


def clips_in(place: Path, root: Path, raw: tuple) -> Iterator[Clip]:
    """The clips right in a folder, whose names begin at root. raw: what is known of raw YUV, see yuv_clip."""
    try:
        entries = sorted((Path(entry.path) for entry in os.scandir(place) if not entry.is_dir()), key=lambda p: p.name)
    except OSError as error:
        yield Clip(place, place.relative_to(root).as_posix(), problem=f"{place}: {error.strerror}")
        return
    files = [path for path in entries if not path.name.startswith(".")]
    stills, films = sort_images([path for path in files if path.suffix.lower() in (*images.ENDINGS, *images.FILMS)])
    name = root.resolve().name if place == root else place.relative_to(root).as_posix()
    if stills:
        try:
            yield Clip(place, name, in_order(stills))
        except BadClip as error:
            yield Clip(place, name, tuple(stills), problem=str(error))
    cached = any(path.name == CACHE_TAG for path in files)
    for path in files:
        kind, name = path.suffix.lower(), path.relative_to(root).as_posix()
        if kind == yuv.ENDING:
            yield yuv_clip(path, name, *raw)
        elif path in films or (kind in KINDS and not (cached and CACHED.fullmatch(path.name))):
            yield Clip(path, name)


def read_frames(clip: Clip) -> Iterator[np.ndarray]:
    """The frames of a clip, uint8 (H, W, C): C is 3 (RGB), but for npy arrays, which keep theirs.

    Raises BadClip, naming the file, where it cannot be read to its end.
    """
    if clip.problem:
        raise BadClip(clip.problem)
    kind = clip.path.suffix.lower()
    try:
        if clip.images:
            yield from read_images(clip.images)
        elif kind in video.ENDINGS:
            yield from read_video(clip.path)
        elif kind == ".npy":
            yield from read_npy(clip.path)
        elif kind == yuv.ENDING:
            yield from read_yuv(clip)
        else:
            yield from read_film(clip.path)
    except OSError as error:
        raise Unreadable(f"{error.filename or clip.path}: {error.strerror or error}") from None


def frame_rate(clip: Clip) -> float:
    """Frames a second: on average as a video's container says, of a film by its first frame, 25 where a clip does not
    say. Raises BadClip, naming the file, where it cannot be opened."""
    kind = clip.path.suffix.lower()
    try:
        if not clip.images and kind in video.ENDINGS:
            return video.frame_rate(clip.path)
        if not clip.images and kind in (*images.FILMS, *images.MAYBE_FILMS):
            return images.frame_rate(clip.path)
    except OSError as error:
        raise Unreadable(f"{error.filename or clip.path}: {error.strerror or error}") from None
    return video.DEFAULT_RATE
