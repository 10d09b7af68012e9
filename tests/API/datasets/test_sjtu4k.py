"""SJTU4K, on small files in the real formats."""

from pathlib import Path

import data_roots
import files
import pytest

from API import UserError
from API.dataloader import SPLITS
from API.datasets import sjtu4k

SHAPES = dict(in_shape=(2, 3, 24, 32), out_shape=(2, 3, 24, 32), seed=1)


@pytest.fixture
def sjtu_root(tmp_path) -> Path:
    return data_roots.sjtu4k(tmp_path)


def test_takes_every_kind_of_clip_and_splits_by_the_list(sjtu_root):
    names = {}
    for split in SPLITS:
        data = sjtu4k.dataset(split, data_root=sjtu_root, **SHAPES)
        names[split] = [clip.name for clip in data.clips]
        assert len(data) == 2 * len(data.clips)
        assert data[0][0].shape == (2, 3, 24, 32)
    assert names == {
        "train": ["Bund_Nightscape_64x48.yuv", "Marathon.mp4"],
        "val": ["Tall Buildings 64x48 10bit.yuv"],
        "test": ["rush hour"],
    }


def test_splits_all_fifteen_clips():
    split = sjtu4k.read_split()
    assert len(split) == 15
    assert set(split.values()) == set(SPLITS)


@pytest.mark.parametrize("twin", ["Rush_Hour_64x48.yuv", "Rush_Hour_64x48_8bit_YUV420p.yuv", "Rush Hour.mp4"])
def test_a_clip_that_is_there_twice_is_refused(tmp_path, twin):
    write = files.write_yuv if twin.endswith("yuv") else files.write_video
    write(tmp_path / "sjtu4k" / twin, files.pictures(9))
    for part in (1, 2):  # of one clip, cut in two
        files.write_video(tmp_path / f"sjtu4k/Marathon {part}.mp4", files.pictures(9, seed=part))
        files.write_yuv(tmp_path / f"sjtu4k/Marathon_64x48_part{part}.yuv", files.pictures(9, seed=part))
    assert len(sjtu4k.dataset("train", data_root=tmp_path, **SHAPES).clips) == 4
    files.write_images(tmp_path / "sjtu4k" / twin.partition("_64")[0].partition(".")[0], files.pictures(9))
    with pytest.raises(UserError, match=r"the same clip as .*; keep one of them$"):
        sjtu4k.dataset("train", data_root=tmp_path, **SHAPES)


def test_names_a_clip_that_is_not_listed(sjtu_root):
    files.write_images(sjtu_root / "sjtu4k/Somewhere Else", files.pictures(9))
    with pytest.raises(ValueError, match=r"Somewhere Else: not in the split; add a line .*split\.txt"):
        sjtu4k.dataset("train", data_root=sjtu_root, **SHAPES)
