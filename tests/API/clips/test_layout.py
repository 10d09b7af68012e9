from itertools import permutations

import numpy as np
import pytest

from API import UserError
from API.clips.clip import BadClip
from API.clips.layout import Sequences

RNG = np.random.default_rng(0)
FRAMES = RNG.uniform(0, 100, (2, 6, 3, 8, 10))  # N T C H W


@pytest.mark.parametrize(
    "letters", ["".join(p) for n in (3, 4, 5) for p in permutations("THWNC", n) if {*"THW"} <= {*p}]
)
def test_any_layout_is_read_as_frames_and_written_back(letters):
    frames = FRAMES[: 2 if "N" in letters else 1, :, : 3 if "C" in letters else 1]
    array = np.einsum(f"NTCHW->{letters}", frames)
    sequences = Sequences(array, "array", layout=letters.lower())
    assert (sequences.N, sequences.F, sequences.C, sequences.h, sequences.w) == frames.shape
    parts = np.stack([sequences.read(n, 1, 5) for n in range(len(frames))])
    assert np.array_equal(parts, frames[:, 1:5])
    assert np.array_equal(sequences.laid_out(frames), array)


@pytest.mark.parametrize("dtype", ["f2", ">f4", "f8", ">i2", "u1", "i8", "bool"])
def test_any_kind_of_number_is_read_and_predictions_are_floats(dtype):
    array = FRAMES[0, :, 0].astype(dtype)
    values = Sequences(array[::2, ::-1], "array").read(0, 0, 3)
    assert values.dtype == (np.float64 if dtype in ("f8", "i8") else np.float32)
    assert values.dtype.isnative
    assert np.array_equal(values[:, 0], array[::2, ::-1].astype(float))
    written = Sequences(array, "array").laid_out(FRAMES[:1, :, :1])
    assert written.dtype == (np.dtype(dtype).newbyteorder("=") if "f" in dtype else np.float32)


def test_one_of_several_channels_that_are_predicted_keeps_its_axis_and_new_ones_get_one():
    assert Sequences(FRAMES, "array").laid_out(FRAMES[:, :4, :1]).shape == (2, 4, 1, 8, 10)
    assert Sequences(FRAMES[0, :, 0], "array").laid_out(FRAMES[:1, :4]).shape == (4, 3, 8, 10)


def test_crop_changes_no_value_and_what_is_beside_it_is_missing_in_what_goes_back():
    sequences = Sequences(FRAMES, "array", size=(4, 8))
    values = sequences.read(1, 0, 6)
    assert np.array_equal(values, FRAMES[1, :, :, 2:6, 1:9])
    back = sequences.back(values)
    assert np.array_equal(back[:, :, 2:6, 1:9], values)
    assert np.isnan(back).sum() == 6 * 3 * (8 * 10 - 4 * 8)
    with pytest.raises(BadClip, match=r"frames are 8x10, --in_shape asks for 12x8; --resize stretch"):
        Sequences(FRAMES, "array", size=(12, 8))


def test_stretch_averages_areas():
    values = Sequences(FRAMES, "array", size=(4, 5), resize="stretch").read(0, 0, 6)
    assert np.allclose(values, FRAMES[0].reshape(6, 3, 4, 2, 5, 2).mean((3, 5)))
    back = Sequences(FRAMES, "array", size=(4, 5), resize="stretch").back(values)
    assert back.shape == FRAMES[0].shape


# Missing values ------------------------------------------------------------------------------------------------------


@pytest.fixture
def gappy() -> np.ndarray:
    """(T, H, W): pixel (0, 0) is missing in frames 2, 3 and 5, (1, 1) in frame 4, in three ways."""
    array = FRAMES[0, :, 0].copy()
    array[2, 0, 0], array[3, 0, 0], array[5, 0, 0], array[4, 1, 1] = np.nan, np.inf, -np.inf, -999
    return array


def test_missing_values_are_refused_with_their_number(gappy):
    with pytest.raises(BadClip, match=r"^here: 3 missing values in frames 2 to 4; --fill_missing NUMBER, or previous"):
        Sequences(gappy, "here", missing=[-999]).read(0, 2, 5)
    assert np.array_equal(Sequences(gappy, "here", missing=[-999]).read(0, 0, 2)[:, 0], gappy[:2])


def test_missing_values_become_a_number(gappy):
    values = Sequences(gappy, "here", fill="7", missing=[-999]).read(0, 0, 6)[:, 0]
    assert values[[2, 3, 5], 0, 0].tolist() == [7, 7, 7]
    assert values[4, 1, 1] == 7
    known = np.isfinite(gappy) & (gappy != -999)
    assert np.array_equal(values[known], gappy[known])


@pytest.mark.parametrize("first", range(6))
def test_missing_values_become_those_before_wherever_a_window_begins(gappy, first):
    expected = gappy.copy()
    expected[2:4, 0, 0], expected[5, 0, 0], expected[4, 1, 1] = gappy[1, 0, 0], gappy[4, 0, 0], gappy[3, 1, 1]
    sequences = Sequences(gappy, "here", fill="previous", missing=[-999])
    assert np.array_equal(sequences.read(0, first, 6)[:, 0], expected[first:])


def test_nothing_is_before_the_first_frame(gappy):
    gappy[0, 3, 3] = np.nan
    with pytest.raises(BadClip, match="begins with missing values; --fill_missing NUMBER"):
        Sequences(gappy, "here", fill="previous").read(0, 0, 2)


# Mistakes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((2, 3, 4, 5), {}, r"here: \(2, 3, 4, 5\), say what these axes are: --layout"),
        ((2, 3, 4), dict(layout="TCHW"), r"here: \(2, 3, 4\) does not fit --layout TCHW"),
        ((2, 3, 4), dict(layout="TXY"), "--layout TXY: letters of N T C H W"),
        ((2, 3, 4), dict(layout="HWH"), "--layout HWH"),
        ((0, 3, 4), {}, "does not fit"),
        ((2, 3, 4), dict(fill="mean"), "--fill_missing mean: a number, or previous"),
        ((2, 3, 4), dict(fill="nan"), "--fill_missing nan: a number"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(shape, options, message):
    with pytest.raises(UserError, match=message) as error:
        Sequences(np.zeros(shape), "here", **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", ["datetime64[s]", "U3", "complex64"])
def test_what_is_no_number_is_refused(dtype):
    with pytest.raises(BadClip, match="not numbers"):
        Sequences(np.zeros((2, 3, 4), dtype), "here")
