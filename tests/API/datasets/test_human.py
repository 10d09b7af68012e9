"""Human3.6M, on small files in the real format."""

from pathlib import Path

import cv2
import data_roots
import files
import numpy as np
import pytest
from PIL import Image

from API.dataloader import SPLITS
from API.datasets import human
from API.datasets.report import overlaps

SHAPES = dict(in_shape=(2, 3, 24, 32), out_shape=(2, 3, 24, 32), seed=1)


@pytest.fixture
def human_root(tmp_path) -> Path:
    return data_roots.human(tmp_path)


def test_windows_are_every_fifth_frame_from_the_first_in_rgb(human_root):
    data = human.dataset("test", data_root=human_root, **SHAPES)
    assert len(data) == 14
    _, frames = data.sources(0)
    assert [Path(frame).name for frame in frames] == [f"S1_Walking.5413_{n:06d}.jpg" for n in (10, 15, 20, 25)]
    picture = cv2.resize(files.picture(10, seed=1), (32, 24), interpolation=cv2.INTER_CUBIC).transpose(2, 0, 1)
    assert np.abs(data[0][0][0].numpy() * 255 - picture).mean() < 6  # JPEG; red and blue swapped would be 60 off


def test_frames_are_resized_bicubically(human_root):
    data = human.dataset("test", data_root=human_root, **SHAPES)
    picture = np.asarray(Image.open(data.sources(3)[1][0]))
    resized = cv2.resize(picture, (32, 24), interpolation=cv2.INTER_CUBIC).transpose(2, 0, 1)
    assert np.array_equal((data[3][0][0] * 255).round().numpy(), resized)


def test_lists_leak_and_the_report_says_so(human_root):
    datasets = {split: human.dataset(split, data_root=human_root, **SHAPES) for split in SPLITS}
    lines = overlaps(datasets)
    assert "overlap: train and val share nothing" in lines[0]
    assert "LEAK: share 13 of 13 and 14 files" in lines[1]
    assert "26 of 104 and 56 frames" not in lines[0]
    shared = {"files": 13, "windows": 0, "frames": 13 * 4}  # test's 10, 15, 20, 25 are trained on as 10, 15 and 20, 25
    for kind, count in shared.items():
        assert f"{count} of " in lines[1], kind


def test_split_by_subject_does_not_leak(human_root):
    datasets = {split: human.dataset(split, data_root=human_root, **SHAPES, split_by="subject") for split in SPLITS}
    assert all("share nothing" in line for line in overlaps(datasets))
    subjects = {split: {human.subject_of(clip.name) for clip in data.clips} for split, data in datasets.items()}
    assert subjects["test"] == {9, 11}
    assert subjects["train"] | subjects["val"] == {1, 5, 6, 7, 8}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("images/S1_Walking.5413_ 0 15", r"train\.txt, line 29: expected"),
        ("images/S1_Walking.5413_,15,0", r"train\.txt, line 29: expected"),
        ("/etc/S1_,0,15", "leads out"),
        ("../S1_,0,15", "leads out"),
        ("images/S1_Walking.5413_,0,5", "has 2 frames"),
        ("images/S1_Walking.5413_,50,65", r"S1_Walking\.5413_000060\.jpg is missing"),
        ("images/S2_None_,0,15", "is missing"),
    ],
)
def test_list_entries_that_do_not_work_are_named(human_root, line, words):
    with (human_root / "human/train.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=words) as error:
        [human.dataset(split, data_root=human_root, **SHAPES) for split in ("train", "val")]
    assert "\n" not in str(error.value)
    if "skip_bad" in str(error.value):
        both = [human.dataset(split, data_root=human_root, **SHAPES, skip_bad=True) for split in ("train", "val")]
        assert len(both[0]) + len(both[1]) == 28
        assert len(both[0].skipped) + len(both[1].skipped) == 1
