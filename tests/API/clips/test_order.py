"""Frames come in the order of the numbers in their names."""

import random
from pathlib import Path

import pytest

from API.clips.clip import BadClip
from API.clips.order import in_order

ORDERS = {
    "counted": ["f1", "f2", "f10", "f11"],
    "padded and run over": ["099", "100", "1000"],
    "seconds": ["0.9", "0.95", "1.0", "1.05", "1.1", "1.15"],
    "seconds to the second digit": ["t0.05", "t0.10", "t0.90", "t1.00", "t10.00"],
    "milliseconds and whole seconds": ["0", "0.5", "1", "1.5", "10"],
    "quarters of a second": ["0.0", "0.25", "0.5", "0.75", "1.0", "1.25", "1.5"],
    "eighths": ["0.125", "0.25", "0.375", "0.5", "0.625"],
    "some of two counts": ["2.8", "2.9", "2.10", "3.1"],
    "two counts, no decimals": ["1.1", "1.2", "1.9", "1.10", "1.11", "2.1"],
    "two counts after letters": ["shot1.0001", "shot1.0002", "shot2.0001"],
    "dates": ["2023.12.31", "2024.1.2", "2024.1.10", "2024.02.01"],
    "days": ["2023-12-31", "2024-01-02", "2024-01-10"],
    "before and after": ["t-5", "t-4", "t-1", "t0", "t1", "t4"],
    "before and after in decimals": ["t-1.5", "t-0.75", "t-0.5", "t0.0", "t0.25", "t1.0"],
    "signed": ["x_-10", "x_-9", "x_+0", "x_+2"],
    "minus first": ["-2", "-1", "0", "1"],
    "minus alone": ["-10", "-9", "-2"],
    "hyphens": ["img-1", "img-2", "img-10"],
    "ranges": ["a1-5", "a1-6", "a1-10", "a2-1"],
    "letters": ["a", "b", "c"],
    "letters after a number": ["cam1_a", "cam1_b", "cam1_c"],
    "several numbers": ["v2_f1", "v2_f2", "v2_f10", "v10_f1"],
    "no number among numbers": ["cover", "cover1", "cover2"],
}


@pytest.mark.parametrize("names", ORDERS.values(), ids=ORDERS)
def test_names_come_in_the_order_that_they_mean(names):
    shuffled = random.Random(0).sample(names, len(names))
    assert [path.stem for path in in_order([Path(f"clip/{name}.png") for name in shuffled])] == names


def test_an_order_that_names_leave_open_is_refused_with_two_of_them():
    with pytest.raises(BadClip, match=r"clip/t1\.15\.png and t1\.5\.png: the order of 1\.15 and 1\.5 is not clear"):
        in_order([Path("clip/t1.5.png"), Path("clip/t1.15.png"), Path("clip/t2.25.png")])


@pytest.mark.parametrize(
    "names",
    [
        ("000.png", "001.png", "000.jpg", "001.jpg"),
        ("000_rgb.png", "000_depth.png", "001_rgb.png", "001_depth.png"),
        ("left1.png", "left2.png", "right1.png", "right2.png"),
        ("1.png", "01.png", "2.png"),
        ("a.png", "a.jpg"),
    ],
)
def test_two_images_of_one_frame_are_refused_with_their_names(names):
    with pytest.raises(BadClip, match="two images of one frame") as error:
        in_order([Path("clip") / name for name in names])
    assert sum(name in str(error.value) for name in names) >= 2
