import numpy as np
import pytest
import torch
from PIL import Image

from API import UserError
from API.deploy.arrays import ArrayPredictor, predict_arrays
from API.deploy.predict import Request
from API.machine.device import Machine

FIELD = np.random.default_rng(0).uniform(200, 300, (9, 17, 26))  # T H W


def predictor(**options) -> ArrayPredictor:
    """A model that adds a tenth of the range to every frame, four at a time, of the middle 16x24."""
    machine = Machine("cpu", 0, "fp32", 0, False)
    options = dict(limits=[200, 300]) | options
    return ArrayPredictor(lambda past: past + 0.1, (4, 1, 16, 24), (4, 1, 16, 24), machine, **options)


def run(request: Request, **options) -> str:
    return "\n".join(predict_arrays(request, predictor(**options)))


@pytest.mark.parametrize("dtype", ["f2", ">f4", "f8", "i4"])
def test_predictions_are_in_the_units_axes_and_floats_of_the_array(dtype):
    field = FIELD.astype(dtype)
    future = predictor()(field, frames=6)
    assert future.dtype == (np.float32 if dtype == "i4" else np.dtype(dtype).newbyteorder("="))
    assert future.shape == (6, 17, 26)
    expected = np.concatenate([field[5:9].astype(float) + 10, field[5:7].astype(float) + 20])
    assert np.allclose(future[:, :16, 1:25], expected[:, :16, 1:25], atol=0.3 if dtype == "f2" else 1e-3)
    assert np.isnan(future).sum() == 6 * (17 * 26 - 16 * 24)  # beside what the model sees


def test_an_array_may_lack_the_axis_of_sequences():
    batch = np.stack([FIELD, FIELD + 1])  # N T H W
    ours = predictor(layout="NTHW")
    assert np.allclose(ours(batch)[0], ours(FIELD), equal_nan=True)
    assert ours(batch).shape == (2, 4, 17, 26)
    sequences = batch[:, :, None]  # N T C H W, which needs no layout
    assert np.allclose(predictor()(sequences)[0], predictor()(sequences[0]), equal_nan=True)


def test_a_file_gives_a_file_of_its_layout_with_every_sequence(tmp_path):
    np.save(tmp_path / "in.npy", np.stack([FIELD, FIELD - 5], -1))  # T H W N
    told = run(Request(tmp_path / "in.npy", tmp_path / "out.npy", 3, start=[1]), layout="THWN")
    future = np.load(tmp_path / "out.npy")
    assert future.shape == (3, 17, 26, 2)
    assert np.allclose(future[:, :16, 1:25, 1], FIELD[1:4, :16, 1:25] + 5, atol=1e-3)
    error = np.stack([FIELD[5:8] - FIELD[1:4] - 10] * 2)[..., :16, 1:25]
    assert f"rmse {np.sqrt((error**2).mean((2, 3))).mean():.4g}" in told
    assert f"mse {(error**2).sum((2, 3)).mean():.4g}" in told


def test_one_of_the_channels_that_are_seen_is_predicted_on_its_own_scale(tmp_path):
    machine = Machine("cpu", 0, "fp32", 0, False)
    ours = ArrayPredictor(
        lambda past: past[:, :, 1:], (4, 2, 16, 24), (4, 1, 16, 24), machine, "crop",
        limits=[0, 1, 200, 300], targets=[1], layout="TCHW",
    )  # fmt: skip
    field = np.stack([FIELD / 1000, FIELD], 1)
    future = ours(field)
    assert future.shape == (4, 1, 17, 26)
    assert np.allclose(future[:, 0, :16, 1:25], FIELD[5:9, :16, 1:25])
    with pytest.raises(UserError, match="--frames 5: a model from 2 to 1 channels cannot go on"):
        ours(field, frames=5)


def test_windows_and_files_get_an_output_each_and_bad_files_are_named(tmp_path):
    (tmp_path / "in").mkdir()
    for name in "ab":
        np.save(tmp_path / f"in/{name}.npy", FIELD)
    np.save(tmp_path / "in/short.npy", FIELD[:3])
    told = run(Request(tmp_path / "in", tmp_path / "out.npy", every=4, skip_bad=True))
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a_00000.npy", "a_00004.npy", "b_00000.npy", "b_00004.npy"]
    assert "left out: " in told
    assert "short.npy: has 3 frames, a prediction takes 4" in told
    with pytest.raises(UserError, match="1 of 3 clips were left out, see above; with --skip_bad"):
        run(Request(tmp_path / "in", tmp_path / "again.npy"))


@pytest.mark.parametrize("side_by_side", [False, True])
@pytest.mark.parametrize("output", ["out.gif", "out.mp4", "out"])
def test_pictures_show_the_values_as_colours_over_a_bar(tmp_path, output, side_by_side):
    np.save(tmp_path / "in.npy", FIELD)
    run(Request(tmp_path / "in.npy", tmp_path / output, start=[0], side_by_side=side_by_side))
    assert (tmp_path / output).exists()
    if output == "out":
        pictures = sorted((tmp_path / "out").iterdir())
        assert len(pictures) == (8 if side_by_side else 4)
        picture = np.asarray(Image.open(pictures[0]))
        assert picture.shape == (160 + 34, 484 if side_by_side else 240, 3)
        bar = picture[-34:][4:14]
        assert picture[-34 + 8, 4].tolist() == [68, 1, 84]  # viridis begins with dark violet
        assert len(np.unique(bar.reshape(-1, 3), axis=0)) > 100


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (dict(output="out.npy", start=[6]), "in.npy: has 9 frames, a prediction from --start 6 takes 4"),
        (dict(output="out.npy", side_by_side=True), "--side_by_side: shows pictures"),
        (dict(output="in.npy"), "--output .*belongs to the input"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(tmp_path, request_, message):
    np.save(tmp_path / "in.npy", FIELD)
    request = Request(**{"input": tmp_path / "in.npy", **request_, "output": tmp_path / request_["output"]})
    with pytest.raises(UserError, match=message) as error:
        run(request)
    assert "\n" not in str(error.value)
    assert np.array_equal(np.load(tmp_path / "in.npy"), FIELD)


def test_missing_values_are_refused_or_filled_as_in_training():
    field = FIELD.copy()
    field[7, 3, 3] = np.nan
    with pytest.raises(UserError, match="1 missing values"):
        predictor()(field)
    assert predictor(fill="previous")(field)[2, 3, 3] == pytest.approx(field[6, 3, 3] + 10)


def test_missing_values_after_the_past_leave_the_prediction_without_a_score(tmp_path):
    field = FIELD.copy()
    field[7, 3, 3] = np.nan
    np.save(tmp_path / "in.npy", field)
    told = run(Request(tmp_path / "in.npy", tmp_path / "out.npy", start=[0, 3]))
    assert [line.rpartition("_")[2] for line in told.splitlines()] == ["00000.npy", "00003.npy"]
    assert "rmse" in run(Request(tmp_path / "in.npy", tmp_path / "two.npy", 2, start=[0]))
    assert np.allclose(np.load(tmp_path / "out/in_00003.npy")[:, :16, 1:25], FIELD[3:7, :16, 1:25] + 10, atol=1e-3)


def test_pictures_of_many_channels_show_the_first_that_is_predicted(tmp_path):
    machine = Machine("cpu", 0, "fp32", 0, False)
    ours = ArrayPredictor(lambda past: past, (4, 2, 16, 24), (4, 2, 16, 24), machine, limits=[200, 300], layout="TCHW")
    np.save(tmp_path / "in.npy", np.stack([FIELD, FIELD * 0 + 200], 1))
    list(predict_arrays(Request(tmp_path / "in.npy", tmp_path / "out", start=[0]), ours))
    picture = np.asarray(Image.open(tmp_path / "out/00000.png"))
    assert len(np.unique(picture[:160].reshape(-1, 3), axis=0)) > 50
    assert torch.equal(*[torch.tensor(picture[k, 5]) for k in (0, 9)])  # enlarged ten times
