import os
from pathlib import Path

import cv2
import files
import numpy as np
import pytest
from PIL import Image

from API import UserError
from API.clips.fit import fit
from API.clips.reading import BadClip, Clip, clips_at, find_clips, read_frames
from API.clips.windows import cache_of
from API.run.recorder import Recorder

FRAMES = files.pictures(12)


def clip_of(kind: str, folder: Path) -> Clip:
    """FRAMES in one of the formats."""
    if kind == "images":
        files.write_images(folder / "clip", FRAMES)
    elif kind == "jpg":
        files.write_images(folder / "clip", FRAMES, "frame {}.jpg")
    elif kind == "gif":
        files.write_gif(folder / "clip.gif", FRAMES)
    elif kind == "npy":
        np.save(folder / "clip.npy", np.stack(FRAMES))
    elif kind == "float npy":
        np.save(folder / "clip.npy", np.stack(FRAMES).astype(np.float32) / 255)
    elif kind == "yuv":
        files.write_yuv(folder / "clip_64x48.yuv", FRAMES)
    elif kind == "10 bit yuv":
        files.write_yuv(folder / "clip_64x48_10bit.yuv", FRAMES, 10)
    else:
        files.write_video(folder / f"clip.{kind}", FRAMES)
    (clip,) = find_clips(folder)
    return clip


KINDS = ["images", "jpg", "gif", "npy", "float npy", "yuv", "10 bit yuv", "avi", "mp4", "mov", "mkv"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_its_frames_in_order_in_rgb(kind, tmp_path):
    folder = tmp_path / "Vidéos — été 2"  # spaces and letters beyond ASCII
    folder.mkdir()
    frames = list(read_frames(clip_of(kind, folder)))
    assert len(frames) == len(FRAMES)
    tolerance = 0 if kind in ("images", "npy", "float npy") else 12
    for ours, written in zip(frames, FRAMES):
        assert ours.dtype == np.uint8
        assert ours.shape == written.shape
        assert np.abs(ours.astype(int) - written).mean() <= tolerance


def test_clips_are_found_everywhere_in_a_fixed_natural_order(tmp_path):
    files.write_video(tmp_path / "b/clip10.avi", FRAMES[:2])
    files.write_video(tmp_path / "b/clip9.avi", FRAMES[:2])
    files.write_images(tmp_path / "a", FRAMES[:2])
    (tmp_path / "notes.txt").write_text("not a clip")
    assert [clip.name for clip in find_clips(tmp_path)] == ["a", "b/clip9.avi", "b/clip10.avi"]


def test_frames_of_a_folder_come_in_natural_order(tmp_path):
    files.write_images(tmp_path, FRAMES, "f{}.png")
    (clip,) = find_clips(tmp_path)
    assert [p.name for p in clip.images] == [f"f{k}.png" for k in range(12)]


def test_npy_keeps_its_channels(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 8, 8, 2), np.uint8))
    np.save(tmp_path / "b.npy", np.zeros((3, 8, 8), np.uint8))
    shapes = [next(read_frames(clip)).shape for clip in find_clips(tmp_path)]
    assert shapes == [(8, 8, 2), (8, 8, 1)]


def test_crop_keeps_the_aspect_ratio_and_the_centre_and_stretch_keeps_all():
    frame = np.zeros((40, 100, 3), np.uint8)
    frame[:, :30] = 255  # left of the central square
    assert fit(frame, (3, 20, 20), "crop", Path()).max() == 0
    stretched = fit(frame, (3, 20, 20), "stretch", Path())
    assert stretched.shape == (3, 20, 20)
    assert (stretched[:, :, :6] > 250).all()
    assert (stretched[:, :, 7:] < 5).all()


@pytest.mark.parametrize("way", ["area", "bilinear", "bicubic"])
def test_the_interpolation_asked_for_is_used(way):
    frame = files.picture(2)
    flags = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
    expected = cv2.resize(frame, (20, 16), interpolation=flags[way]).transpose(2, 0, 1)
    assert np.array_equal(fit(frame, (3, 16, 20), "stretch", Path(), way), expected)


def test_channels_are_converted_like_opencv_does_or_refused():
    colour = files.picture(3)
    grey = cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY)
    assert np.array_equal(fit(colour, (1, 48, 64), "crop", Path())[0], grey)
    assert np.array_equal(fit(grey[..., None], (3, 48, 64), "crop", Path()), np.stack([grey] * 3))
    with pytest.raises(BadClip, match=r"a\.npy: has 2 channels, --in_shape asks for 3"):
        fit(np.zeros((8, 8, 2), np.uint8), (3, 8, 8), "crop", Path("a.npy"))


def broken(how: str, folder: Path) -> None:
    """One damaged clip in folder."""
    if how == "text for a video":
        (folder / "a.mp4").write_text("hello")
    elif how == "empty video":
        (folder / "a.avi").write_bytes(b"")
    elif how == "cut video":
        path = files.write_video(folder / "a.avi", files.pictures(60))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "text for a gif":
        (folder / "a.gif").write_text("hello")
    elif how == "text for an image":
        files.write_images(folder / "a", FRAMES[:2])
        (folder / "a/0001.png").write_text("hello")
    elif how == "cut image":
        files.write_images(folder / "a", FRAMES[:2])
        data = (folder / "a/0001.png").read_bytes()
        (folder / "a/0001.png").write_bytes(data[: len(data) // 2])
    elif how == "huge image":
        Image.new("1", (20000, 20000)).save(folder / "a.png")
    elif how == "mixed sizes":
        files.write_images(folder / "a", FRAMES[:2])
        Image.new("RGB", (10, 10)).save(folder / "a/0001.png")
    elif how == "pickled npy":
        np.save(folder / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    elif how == "cut npy":
        np.save(folder / "a.npy", np.zeros((4, 8, 8), np.uint8))
        (folder / "a.npy").write_bytes((folder / "a.npy").read_bytes()[:-9])
    elif how == "npy of a wrong shape":
        np.save(folder / "a.npy", np.zeros((8, 8), np.uint8))
    elif how == "npy out of range":
        np.save(folder / "a.npy", np.full((2, 8, 8), 7.0))
    elif how == "npy of integers":
        np.save(folder / "a.npy", np.zeros((2, 8, 8), np.int64))
    elif how == "yuv of no size":
        files.write_yuv(folder / "a.yuv", FRAMES[:2])
    elif how == "yuv of a wrong size":
        files.write_yuv(folder / "a_60x48.yuv", FRAMES[:2])
    elif how == "unreadable":
        files.write_video(folder / "a.avi", FRAMES[:2]).chmod(0)


BROKEN = [
    "text for a video", "empty video", "cut video", "text for a gif", "text for an image", "cut image", "huge image",
    "mixed sizes", "pickled npy", "cut npy", "npy of a wrong shape", "npy out of range", "npy of integers",
    "yuv of no size", "yuv of a wrong size", "unreadable",
]  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
def test_a_damaged_clip_is_named_in_one_line(how, tmp_path):
    if how == "unreadable" and os.geteuid() == 0:
        pytest.skip("root may read everything")
    broken(how, tmp_path)
    (clip,) = find_clips(tmp_path)
    with pytest.raises(BadClip, match=str(tmp_path / "a")) as error:
        list(read_frames(clip))
    assert "\n" not in str(error.value)


def clips_in(folder: Path, count: int = 3) -> Path:
    """A folder of so many small clips."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        np.save(folder / f"c{k}.npy", np.full((4, 8, 8, 3), k, np.uint8))
    return folder


def test_a_linked_folder_is_entered_and_nothing_counts_twice(tmp_path):
    data = tmp_path / "data"
    clips_in(data / "2026")
    files.write_images(data / "frames", FRAMES[:2])
    store = clips_in(tmp_path / "store" / "more", 2)
    (data / "latest").symlink_to("2026")
    (data / "aaa").symlink_to(data / "2026")
    (data / "again.npy").symlink_to(data / "2026/c0.npy")
    (data / "hard.npy").hardlink_to(data / "2026/c1.npy")
    (data / "frames again").symlink_to("frames")
    (data / "elsewhere").symlink_to(tmp_path / "store")
    (data / "round").symlink_to(data)
    (store / "back").symlink_to(data)
    assert [clip.name for clip in find_clips(data)] == [
        "hard.npy", "2026/c0.npy", "2026/c2.npy", "elsewhere/more/c0.npy", "elsewhere/more/c1.npy", "frames",
    ]  # fmt: skip


def test_a_link_to_nowhere_is_a_clip_that_cannot_be_read(tmp_path):
    clips_in(tmp_path, 1)
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "unmounted.mp4")
    found = {clip.name: clip for clip in find_clips(tmp_path)}
    assert list(found) == ["c0.npy", "gone.mp4"]
    with pytest.raises(BadClip, match=r"gone\.mp4: No such file"):
        list(read_frames(found["gone.mp4"]))


def test_runs_and_caches_among_clips_are_none(tmp_path):
    clips_in(tmp_path)
    Recorder(tmp_path / "results" / "mine").log("a line")
    Image.fromarray(FRAMES[0]).save(tmp_path / "results/mine/figures/loss.png")
    np.save(tmp_path / "results/mine/predicted.npy", np.zeros((4, 8, 8, 3), np.uint8))
    files.write_images(tmp_path / "results" / "comparison", FRAMES[:2])
    (tmp_path / "results/comparison/comparison.csv").write_text("run,mse")
    found = find_clips(tmp_path)
    cache = cache_of(tmp_path, {"cache_dir": tmp_path / "cache"}, (2, 3, 8, 8), "crop")
    for clip in found:
        cache.open(clip)
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 3
    assert find_clips(tmp_path) == found
    assert [clip.name for clip in found] == ["c0.npy", "c1.npy", "c2.npy"]
    assert [clip.name for clip in find_clips(tmp_path / "results/mine")] == ["predicted.npy", "figures"]  # asked for


def test_a_folder_whose_frames_have_no_clear_order_is_a_clip_that_cannot_be_read(tmp_path):
    clips_in(tmp_path, 1)
    files.write_images(tmp_path / "both", FRAMES[:3])
    files.write_images(tmp_path / "both", FRAMES[:3], "{:04d}.jpg")
    npy, both = find_clips(tmp_path)
    assert (npy.name, both.name) == ("c0.npy", "both")
    with pytest.raises(BadClip, match=r"0000\.jpg and 0000\.png: two images of one frame"):
        list(read_frames(both))


def test_a_path_is_a_folder_of_clips_a_clip_or_a_clear_refusal(tmp_path):
    clips_in(tmp_path / "two", 2)
    files.write_images(tmp_path / "one", FRAMES[:2])
    Image.fromarray(FRAMES[0]).save(tmp_path / "still.png")
    (tmp_path / "notes.txt").write_text("not a clip")
    assert [clip.name for clip in clips_at(tmp_path / "two")] == ["c0.npy", "c1.npy"]
    assert [(clip.name, len(clip.images)) for clip in clips_at(tmp_path / "one")] == [("one", 2)]
    assert [clip.name for clip in clips_at(tmp_path / "two/c1.npy")] == ["c1.npy"]
    refusals = {"still.png": "one image", "notes.txt": "unknown kind of file", "none": "no such file or folder"}
    for name, words in refusals.items():
        with pytest.raises(UserError, match=f"--input .*{name}: {words}"):
            clips_at(tmp_path / name)
    with pytest.raises(UserError, match=r"--data_root .*c0\.npy is a file"):
        find_clips(tmp_path / "two/c0.npy")


def test_an_empty_or_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="no clips in it"):
        find_clips(tmp_path)
    with pytest.raises(UserError, match="--data_root"):
        find_clips(tmp_path / "none")


def test_sizes_and_bits_given_win_over_the_name_of_raw_yuv(tmp_path):
    files.write_yuv(tmp_path / "clip_99x99_10bit.yuv", FRAMES[:3])
    (clip,) = find_clips(tmp_path, yuv_size=(64, 48), yuv_depth=8)
    assert len(list(read_frames(clip))) == 3
