"""What is written is what was predicted, and players show it so."""

import os
from pathlib import Path

import av
import files
import numpy as np
import pytest
from PIL import Image

from API import UserError
from API.clips.reading import Clip, frame_rate, read_frames
from API.clips.writing import check_output, write_clip


def read(path: Path) -> np.ndarray:
    return np.stack(list(read_frames(Clip(path, path.name))))


def test_movies_say_the_colours_that_they_are_in(tmp_path):
    colours = np.full((4, 720, 1280, 3), (200, 40, 30), np.uint8)  # HD, where players guess BT.709
    for name in ("a.mp4", "a.mkv", "a.mov"):
        write_clip(tmp_path / name, colours, 25)
        with av.open(str(tmp_path / name)) as video:
            stream = video.streams.video[0]
            frame = next(video.decode(stream))
            assert stream.sample_aspect_ratio == 1
        assert (frame.colorspace, frame.color_range) == (1, 1)  # BT.709, limited
        codec = stream.codec_context
        assert (codec.color_primaries, codec.color_trc) == (1, 1)
        y, u, v = (np.frombuffer(plane, np.uint8)[0] for plane in frame.planes)
        r, g, b = (channel / 255 for channel in (200, 40, 30))
        luma = 0.2126 * r + 0.7152 * g + 0.0722 * b  # ITU-R BT.709
        expected = 16 + 219 * luma, 128 + 224 * (b - luma) / 1.8556, 128 + 224 * (r - luma) / 1.5748
        assert np.allclose((int(y), int(u), int(v)), expected, atol=2)
        assert np.abs(read(tmp_path / name).astype(int) - colours).mean() < 2


def test_movies_are_read_back_with_their_size_and_rate(tmp_path):
    frames = np.stack(files.pictures(6, height=48, width=64))
    for rate in (25, 30000 / 1001, 12.5):
        write_clip(tmp_path / "a.mp4", frames, rate)
        assert abs(frame_rate(Clip(tmp_path / "a.mp4", "a")) - rate) < 0.01
        assert read(tmp_path / "a.mp4").shape == frames.shape


def test_of_an_earlier_longer_clip_no_frames_stay(tmp_path):
    folder = tmp_path / "png"
    write_clip(folder, np.stack(files.pictures(30)), 25)
    write_clip(folder, np.stack(files.pictures(4, seed=2)), 25)
    assert sorted(path.name for path in folder.iterdir()) == ["00000.png", "00001.png", "00002.png", "00003.png"]
    assert np.array_equal(np.asarray(Image.open(folder / "00003.png")), files.picture(3, seed=2))


def test_a_folder_with_other_files_stays_as_it_is(tmp_path):
    folder = files.write_images(tmp_path / "mine", files.pictures(3), "{:05d}.png")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match="is a folder with other files"):
        write_clip(folder, np.stack(files.pictures(4, seed=2)), 25)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_names_that_are_not_utf8_or_look_like_addresses_are_written(tmp_path):
    frames = np.stack(files.pictures(3))
    for name in (os.fsdecode(b"caf\xe9.mp4"), "http:%d.mp4"):
        write_clip(tmp_path / name, frames, 25)
        assert read(tmp_path / name).shape == frames.shape


@pytest.mark.parametrize("name", ["a.npy", "a.gif", "a.mp4"])
def test_nothing_half_written_is_left(name, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("full")

    monkeypatch.setattr(Path, "replace", fail)  # the last step
    with pytest.raises(UserError, match=rf"--output .*{name}: cannot be written \(full\)"):
        write_clip(tmp_path / name, np.zeros((2, 16, 16, 3), np.uint8), 25)
    assert list(tmp_path.iterdir()) == []


def test_kinds_that_cannot_be_written_are_named(tmp_path):
    with pytest.raises(UserError, match=r"--output .*a\.xyz: unknown kind of file"):
        check_output(tmp_path / "a.xyz")
