import multiprocessing
import resource
import time
from pathlib import Path

import files
import numpy as np
import pytest
import torch

from API import UserError
from API.clips.cache import ClipCache
from API.clips.fit import fit
from API.clips.reading import BadClip, Clip, find_clips, read_frames
from API.clips.windows import ClipWindows, cache_of, open_all, slide, sliding_windows

SHAPE = (3, 24, 32)


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("a", "b"):
        files.write_images(tmp_path / "videos" / name, files.pictures(10, seed=ord(name)))
    return tmp_path / "videos"


def test_the_cache_gives_what_decoding_gives(folder, tmp_path):
    for clip in find_clips(folder):
        kept = ClipCache(tmp_path / "cache", SHAPE).open(clip)
        assert isinstance(kept, np.memmap)
        assert kept.shape == (10, *SHAPE)
        expected = np.stack([fit(f, SHAPE, "stretch", clip.path) for f in read_frames(clip)])
        assert np.array_equal(kept, expected)
        assert np.array_equal(ClipCache(None, SHAPE).open(clip), expected)


def test_a_clip_is_decoded_once_and_again_after_a_change(folder, tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr("API.clips.cache.read_frames", lambda clip: decoded.append(clip.name) or read_frames(clip))
    for _ in range(2):
        open_all(ClipCache(tmp_path / "cache", SHAPE), find_clips(folder), False, "test")
    assert decoded == ["a", "b"]
    time.sleep(0.01)
    files.write_images(folder / "b", files.pictures(3, seed=5))
    cache = ClipCache(tmp_path / "cache", SHAPE)
    open_all(cache, find_clips(folder), False, "test")
    assert decoded == ["a", "b", "b"]
    expected = fit(files.picture(0, seed=5), SHAPE, "stretch", folder)
    assert np.array_equal(cache.open(find_clips(folder)[1])[0], expected)


def test_other_sizes_do_not_share_a_cached_clip(folder, tmp_path):
    (clip, _) = find_clips(folder)
    for shape, *how in (
        (SHAPE, "stretch"),
        ((1, 24, 32), "stretch"),
        ((3, 24, 24), "crop"),
        ((3, 24, 24), "stretch"),
        ((3, 24, 24), "stretch", "bicubic"),
    ):
        assert ClipCache(tmp_path / "cache", shape, *how).open(clip).shape == (10, *shape)
    assert len(list((tmp_path / "cache").iterdir())) == 5


def build(folder, cache) -> None:
    open_all(ClipCache(cache, SHAPE), find_clips(folder), False, "test")


def test_two_processes_at_once_leave_one_sound_cache(folder, tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=build, args=(folder, tmp_path / "cache")) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    kept = list((tmp_path / "cache").iterdir())
    assert len(kept) == 2
    assert all(np.load(path).shape == (10, *SHAPE) for path in kept)


def test_a_process_of_the_same_number_in_another_container_decodes_at_the_same_time(folder, tmp_path, monkeypatch):
    (clip, _) = find_clips(folder)
    other, started = ClipCache(tmp_path / "cache", SHAPE), []

    def frames(clip):
        for k, frame in enumerate(read_frames(clip)):
            if k == 5 and not started:
                started.append(clip.name)
                other.open(clip)  # from its beginning to its end, while this one is half-way
            yield frame

    monkeypatch.setattr("API.clips.cache.read_frames", frames)
    ours = ClipCache(tmp_path / "cache", SHAPE).open(clip)
    assert started
    assert np.array_equal(ours, np.stack([fit(f, SHAPE, "stretch", clip.path) for f in read_frames(clip)]))
    assert len(list((tmp_path / "cache").iterdir())) == 1


def limited(folder, cache, say) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))  # bytes a file: a disk that fills up
    try:
        open_all(ClipCache(cache, SHAPE), find_clips(folder), False, "test")
    except ValueError as error:
        say.put(str(error))


def test_a_full_disk_is_named_and_leaves_no_half_clip(folder, tmp_path):
    context = multiprocessing.get_context("fork")
    say = context.Queue()
    worker = context.Process(target=limited, args=(folder, tmp_path / "cache", say))
    worker.start()
    message = say.get(timeout=60)
    worker.join(60)
    assert "--cache_dir" in message
    assert "File too large" in message
    assert "\n" not in message
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_bad_clip_is_found_once_for_all_splits_and_starts(folder, tmp_path, monkeypatch):
    (folder / "broken.mp4").write_text("hello")
    read = []
    monkeypatch.setattr("API.clips.cache.read_frames", lambda clip: read.append(clip.name) or read_frames(clip))
    for _ in range(3):
        _, _, skipped = open_all(ClipCache(tmp_path / "cache", SHAPE), find_clips(folder), True, "test")
        assert len(skipped) == 1
        assert str(folder / "broken.mp4") in skipped[0]
    assert read.count("broken.mp4") == 1
    time.sleep(0.01)
    files.write_video(folder / "broken.mp4", files.pictures(5))  # mended
    assert len(open_all(ClipCache(tmp_path / "cache", SHAPE), find_clips(folder), True, "test")[0]) == 3


def test_where_the_reason_cannot_be_kept_the_clip_is_still_left_out(folder, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    (folder / "broken.mp4").write_text("hello")
    monkeypatch.setattr(Path, "write_text", full)
    _, _, skipped = open_all(ClipCache(tmp_path / "cache", SHAPE), find_clips(folder), True, "test")
    assert len(skipped) == 1
    assert str(folder / "broken.mp4") in skipped[0]


def test_a_clip_that_cannot_be_opened_now_is_tried_again(folder, tmp_path):
    clip = Clip(folder / "later.npy", "later.npy")
    cache = ClipCache(tmp_path / "cache", SHAPE)
    with pytest.raises(BadClip, match=r"later\.npy: No such file"):
        cache.open(clip)
    np.save(clip.path, np.zeros((4, 24, 32, 3), np.uint8))
    assert len(cache.open(clip)) == 4


def test_what_a_flag_answers_is_no_longer_bad(tmp_path):
    files.write_yuv(tmp_path / "data/a_64x48_yuv420p_nv12.yuv", files.pictures(4))
    for _ in range(2):
        with pytest.raises(BadClip, match="give --yuv_format"):
            ClipCache(tmp_path / "cache", SHAPE).open(find_clips(tmp_path / "data")[0])
    (clip,) = find_clips(tmp_path / "data", yuv_format="yuv420p")
    assert len(ClipCache(tmp_path / "cache", SHAPE).open(clip)) == 4


@pytest.mark.parametrize("damage", ["emptied", "cut", "zeros", "longer", "another size"])
def test_a_damaged_cache_file_is_made_again(folder, tmp_path, damage):
    clip = find_clips(folder)[0]
    expected = np.array(ClipCache(tmp_path / "cache", SHAPE).open(clip))
    (path,) = (tmp_path / "cache").glob("*.npy")
    data = path.read_bytes()
    wrong = {"emptied": b"", "cut": data[: len(data) // 2], "zeros": bytes(len(data)), "longer": data + b"0"}
    path.write_bytes(wrong.get(damage, data[: 128 + 3 * 24 * 32]))
    assert np.array_equal(ClipCache(tmp_path / "cache", SHAPE).open(clip), expected)
    assert path.read_bytes() == data


def test_a_cache_folder_that_is_a_file_is_named_before_anything_is_decoded(folder, tmp_path):
    (folder / ".cache").write_text("")
    with pytest.raises(UserError, match=r"--cache_dir .*\.cache: cannot keep decoded frames there") as error:
        cache_of(folder, {}, (2, *SHAPE), "crop")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"--cache_dir .*\.cache: cannot keep decoded frames there"):
        ClipCache(folder / ".cache", SHAPE).open(find_clips(folder)[0])  # also where it is blocked later


def open_many(folder, cache, say) -> None:
    """More clips than file handles, in two rounds."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
    kept = ClipCache(cache, (3, 8, 8))
    found, lengths, skipped = open_all(kept, find_clips(folder), True, "test")
    say.put((len(found), set(lengths), skipped, [int(kept.open(clip)[3].mean()) for clip in found]))


def test_more_clips_than_file_handles_stay_open(tmp_path):
    (tmp_path / "many").mkdir()
    for k in range(240):
        np.save(tmp_path / f"many/{k}.npy", np.full((4, 8, 8, 3), k, np.uint8))
    context = multiprocessing.get_context("fork")
    say = context.Queue()
    worker = context.Process(target=open_many, args=(tmp_path / "many", tmp_path / "cache", say))
    worker.start()
    assert say.get(timeout=60) == (240, {4}, [], list(range(240)))
    worker.join(60)


def test_windows_hold_the_frames_they_name_past_before_future(folder, tmp_path):
    cache, found = ClipCache(tmp_path / "cache", SHAPE), find_clips(folder)
    windows = np.array([[0, 2, 3, 4, 5, 6], [1, 0, 2, 4, 6, 9]])  # in a row, and not
    data = ClipWindows(cache, found, windows, T=2)
    for index, (clip, *positions) in enumerate(windows):
        past, future = data[index]
        assert past.shape == (2, *SHAPE)
        assert past.dtype == torch.float32
        expected = cache.open(found[clip])[positions].astype(np.float32) / 255
        assert np.array_equal(torch.cat([past, future]).numpy(), expected)
        name, frames = data.sources(index)
        assert name == found[clip].name
        assert [Path(frame).name for frame in frames] == [f"{p:04d}.png" for p in positions]
    batch = data.__getitems__([1, 0])
    assert torch.equal(batch[0][1], data[0][0])


def test_windows_slide_without_overlap_and_without_what_is_left_over():
    assert slide(3, 10, 4, 4) == [[3, 0, 1, 2, 3], [3, 4, 5, 6, 7]]
    assert slide(0, 5, 4, 1, first=10) == [[0, 10, 11, 12, 13], [0, 11, 12, 13, 14]]
    assert slide(0, 3, 4, 1) == []


def test_bad_clips_stop_everything_or_are_skipped_with_a_word(folder, tmp_path):
    (folder / "broken.mp4").write_text("hello")
    files.write_images(folder / "short", files.pictures(3))
    cache, found = ClipCache(tmp_path / "cache", SHAPE), find_clips(folder)
    with pytest.raises(BadClip, match=r"broken\.mp4.*--skip_bad"):
        sliding_windows(cache, found, 2, 2, 4, False, "test")
    data = sliding_windows(cache, found, 2, 2, 4, True, "test")
    assert [clip.name for clip in data.clips] == ["a", "b"]
    assert len(data) == 4
    assert len(data.skipped) == 2
    assert "broken.mp4" in data.skipped[0]
    assert "short: has 3 frames" in data.skipped[1]
    with pytest.raises(ValueError, match="none of its 1 clips can be read"):
        open_all(cache, [clip for clip in found if clip.name == "broken.mp4"], True, "test")


def test_memory_without_a_cache_folder_stays_bounded(folder, monkeypatch):
    monkeypatch.setattr(ClipCache, "MEMORY", 10 * 3 * 24 * 32)
    cache = ClipCache(None, SHAPE)
    for clip in find_clips(folder):
        cache.open(clip)
    assert list(cache.kept) == ["b"]
