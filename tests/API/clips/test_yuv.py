"""Raw YUV is read in the layout that flags or the file's name say; what is not known is asked for."""

import re
from pathlib import Path

import files
import numpy as np
import pytest

from API.clips.clip import BadClip
from API.clips.reading import clips_at, find_clips, read_frames
from API.clips.yuv import pixels_of

FRAMES = files.pictures(12)  # as many bytes in 4:2:0 are 6 frames in 4:4:4

NAMES = {
    "clip9_64x48": "yuv420p",
    "clip10_64x48": "yuv420p",
    "person10_p10_64x48": "yuv420p",
    "Beauty_3840x2160_120fps_420_10bit_YUV": "yuv420p10le",
    "Beauty_1920x1080_120fps_420_8bit_YUV": "yuv420p",
    "Tall Buildings 64x48 10bit": "yuv420p10le",
    "a_64x48_10-bit": "yuv420p10le",
    "cam_64x48_nv12": "nv12",
    "cam_64x48_yuv422p": "yuv422p",
    "cam_64x48_422_10bit": "yuv422p10le",
    "cam_64x48_yuv444p": "yuv444p",
    "cam_64x48_yuv444p12le": "yuv444p12le",
    "cam_64x48_i420": "yuv420p",
    "cam_64x48_nv12_10bit": "p010le",
    "cam_64x48_p010": "p010le",
    "cam_64x48_YUY2": "yuyv422",
    "cam_64x48_y800": "gray",
    "cam_64x48_gray": "gray",
    "cam_64x48_gray10le": "gray10le",
    "cam_64x48_yuvj420p": "yuvj420p",
    "cam_64x48_yuv420p10be": "yuv420p10be",
    "cam_64x48_rgb24": "rgb24",
    "cam64x48nv21": "nv21",
    "cam_64x48_422_10le": "yuv422p10le",
}


@pytest.mark.parametrize("name", NAMES)
def test_what_a_name_says_is_its_layout(name):
    assert pixels_of(Path(f"{name}.yuv"), None) == NAMES[name]


@pytest.mark.parametrize(
    "pixels", ["yuv420p", "nv12", "nv21", "yuv422p", "yuv444p", "yuyv422", "uyvy422", "yuvj420p", "rgb24", "p010le"]
)
def test_a_layout_in_the_name_gives_the_true_frames(pixels, tmp_path):
    files.write_yuv(tmp_path / f"cam_64x48_{pixels}.yuv", FRAMES, pixels=pixels)
    (clip,) = find_clips(tmp_path)
    frames = np.stack(list(read_frames(clip)))
    assert frames.shape == (12, 48, 64, 3)
    assert np.abs(frames.astype(int) - np.stack(FRAMES)).mean() < 4


@pytest.mark.parametrize("depth", [10, 12])
def test_deep_frames_are_read_at_full_scale(depth, tmp_path):
    files.write_yuv(tmp_path / f"cam_64x48_{depth}bit.yuv", FRAMES, depth)
    (clip,) = find_clips(tmp_path)
    assert np.abs(np.stack(list(read_frames(clip))).astype(int) - np.stack(FRAMES)).mean() < 4


def test_flags_win_over_the_name_and_serve_a_single_file_too(tmp_path):
    path = files.write_yuv(tmp_path / "clip_99x99_10bit_yuv444p.yuv", FRAMES, pixels="nv12")
    given = dict(yuv_size=(64, 48), yuv_format="nv12")
    for (clip,) in (find_clips(tmp_path, **given), clips_at(path, **given)):
        assert np.abs(np.stack(list(read_frames(clip))).astype(int) - np.stack(FRAMES)).mean() < 4


def test_a_format_and_another_depth_are_a_line_and_the_same_depth_is_not(tmp_path):
    files.write_yuv(tmp_path / "cam_64x48.yuv", FRAMES, 10)
    (clip,) = find_clips(tmp_path, yuv_format="yuv420p", yuv_depth=10)
    with pytest.raises(BadClip, match=r"--yuv_format yuv420p has 8 bits, --yuv_depth asks for 10; leave one out"):
        list(read_frames(clip))
    (clip,) = find_clips(tmp_path, yuv_format="yuv420p10le", yuv_depth=10)
    assert len(list(read_frames(clip))) == len(FRAMES)
    for depth in (None, 8):
        (clip,) = find_clips(tmp_path, yuv_format="vaapi", yuv_depth=depth)
        with pytest.raises(BadClip, match=r"vaapi is not a layout of files that FFmpeg knows; give --yuv_format"):
            list(read_frames(clip))


ASKED_FOR = {
    "a": "does not say its size; give --yuv_size",
    "a_60x48": "no whole number of frames",
    "a_64x48_v210": "v210 is not a layout of files that FFmpeg knows; give --yuv_format",
    "a_64x48_yuv422p_nv12": "its name says nv12 and yuv422p; give --yuv_format",
    "a_64x48_yuv420p10_8bit": "its name says 10 and 8 and yuv420p; give --yuv_format",
    "a_64x48_yuv420p11": "yuv420p11le is not a layout of files that FFmpeg knows; give --yuv_format",
    "a_64x48_uyvy422_10bit": "is not a layout of files that FFmpeg knows; give --yuv_format",
    "clip_422_64x48": "does its name say a layout, or is it a number? give --yuv_format",
    "a_63x48": "frames have sizes that are multiples of 2 and 2, not 63x48",
}


@pytest.mark.parametrize("name", ASKED_FOR)
def test_what_is_not_known_is_asked_for(name, tmp_path):
    files.write_yuv(tmp_path / f"{name}.yuv", FRAMES[:2])
    (clip,) = find_clips(tmp_path)
    with pytest.raises(BadClip, match=re.escape(ASKED_FOR[name])) as error:
        list(read_frames(clip))
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)
