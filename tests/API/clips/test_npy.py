"""Arrays of frames are read with their channels last or first."""

import numpy as np
import pytest

from API.clips.clip import BadClip, Clip
from API.clips.reading import read_frames


def read(path) -> np.ndarray:
    return np.stack(list(read_frames(Clip(path, path.name))))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_channels_first_or_last_are_the_same_frames(channels, kind, tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (5, 12, 16, channels), dtype=np.uint8)
    stored = frames if kind is np.uint8 else frames.astype(kind) / 255
    np.save(tmp_path / "last.npy", stored)
    np.save(tmp_path / "first.npy", stored.transpose(0, 3, 1, 2))
    assert np.array_equal(read(tmp_path / "last.npy"), frames)
    assert np.array_equal(read(tmp_path / "first.npy"), frames)


def test_an_array_that_can_be_either_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((5, 3, 16, 3), np.uint8))
    with pytest.raises(BadClip, match=r"a\.npy: \(5, 3, 16, 3\) can be \(T, H, W, C\) or \(T, C, H, W\)"):
        read(tmp_path / "a.npy")


def test_one_picture_is_not_taken_for_a_clip(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(BadClip, match=r"a\.npy: \(64, 64, 3\) looks like one picture.*stack"):
        read(tmp_path / "a.npy")
