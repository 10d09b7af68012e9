"""The user's own videos: any folder of video files, GIFs, frame folders, npy arrays or raw YUV, split by clip."""

from pathlib import Path

from ..clips.reading import find_clips
from ..clips.windows import ClipWindows, cache_of, sliding_windows
from .splits import distinct, look_of, split_clips

RESIZE, INTERPOLATION = "crop", None
YUV = ("yuv_size", "yuv_depth", "yuv_format")
OPTIONS = ("cache_dir", "no_cache", "skip_bad", "resize", "stride", *YUV)


def dataset(split, *, data_root, in_shape, out_shape, seed, **options) -> ClipWindows:
    """Windows of whole clips; --data_root is the folder of clips itself, --in_shape sets channels and size."""
    clips, copies = distinct(find_clips(Path(data_root), *map(options.get, YUV)))
    T, T_out = in_shape[0], out_shape[0]
    data = sliding_windows(
        cache_of(data_root, options, in_shape, RESIZE, INTERPOLATION),
        clips,
        T,
        T_out,
        options.get("stride") or T + T_out,
        options.get("skip_bad", False),
        f"clips of {data_root}",
        lambda usable: split_clips(usable, seed)[split],
    )
    data.skipped += copies
    data.looks = {clip.name: look_of(data.cache.open(clip)) for clip in data.clips}
    return data
