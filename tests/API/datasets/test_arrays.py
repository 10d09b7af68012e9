"""The user's own arrays."""

import json
import resource
from pathlib import Path

import h5py
import numpy as np
import pytest
from torch.utils.data import DataLoader

import main
from API import UserError
from API.clips.clip import BadClip
from API.dataloader import SPLITS
from API.datasets import arrays
from API.datasets.report import overlaps, report
from API.datasets.splits import check_manifest, split_manifest
from core import load_predictor

SHAPES = dict(in_shape=(2, 1, 8, 8), out_shape=(2, 1, 8, 8), seed=1)
SERIES = np.random.default_rng(0).normal(280, 9, (60, 8, 8)).astype(np.float32)  # T H W


def datasets_of(root, **options) -> dict:
    return {split: arrays.dataset(split, data_root=root, **SHAPES | options) for split in SPLITS}


def frames_of(data) -> set:
    return {frame for i in range(len(data)) for frame in data.sources(i)[1]}


# Splits --------------------------------------------------------------------------------------------------------------


def test_one_series_is_split_by_time_and_the_test_comes_last(tmp_path):
    np.save(tmp_path / "a.npy", SERIES)
    datasets = datasets_of(tmp_path / "a.npy", stride=1)
    times = {split: sorted(t for _, _, t in frames_of(data)) for split, data in datasets.items()}
    assert times == {"train": [*range(48)], "val": [*range(48, 54)], "test": [*range(54, 60)]}
    assert [len(data) for data in datasets.values()] == [45, 3, 3]
    assert all("share nothing" in line for line in overlaps(datasets))
    assert [len(data) for data in datasets_of(tmp_path / "a.npy").values()] == [12, 1, 1]  # a window's length apart


def test_sequences_are_split_by_the_seed_and_later_ones_move_no_other(tmp_path):
    np.save(tmp_path / "a.npy", SERIES[:, None].repeat(6, 1))  # N T H W
    one = {split: {part.n for part in data.parts} for split, data in datasets_of(tmp_path, layout="NTHW").items()}
    assert set.union(*one.values()) == {*range(60)}
    assert sum(map(len, one.values())) == 60
    other = {part.n for part in datasets_of(tmp_path, layout="NTHW", seed=2)["test"].parts}
    assert other != one["test"]
    np.save(tmp_path / "a.npy", SERIES[:50, None].repeat(6, 1))
    fewer = {split: {part.n for part in data.parts} for split, data in datasets_of(tmp_path, layout="NTHW").items()}
    assert all(fewer[split] == {n for n in one[split] if n < 50} for split in SPLITS)


def test_a_sequence_that_was_trained_on_is_not_tested(tmp_path):
    np.save(tmp_path / "a.npy", SERIES[:, None].repeat(6, 1))
    before = split_manifest(datasets_of(tmp_path, layout="NTHW"))
    assert check_manifest(before, split_manifest(datasets_of(tmp_path, layout="NTHW"))) == []
    now = split_manifest(datasets_of(tmp_path, layout="NTHW", seed=2))
    with pytest.raises(UserError, match=r"a\.npy\[\d+\].* would be tested, but this run has trained on it"):
        check_manifest(before, now)


def test_three_files_are_split_by_file(tmp_path):
    for k in range(5):
        np.save(tmp_path / f"{k}.npy", SERIES + k)
    np.save(tmp_path / "copy.npy", SERIES)
    datasets = datasets_of(tmp_path)
    names = [clip.name for data in datasets.values() for clip in data.clips]
    assert sorted(names) == ["0.npy", "1.npy", "2.npy", "3.npy", "4.npy"]
    assert all("copy.npy: a copy of 0.npy" in data.skipped[0] for data in datasets.values())
    assert all("share nothing" in line for line in overlaps(datasets))
    assert "clips of" in report("arrays", datasets)


def test_more_files_than_a_process_may_open_are_read(tmp_path):
    for k in range(150):
        np.save(tmp_path / f"{k}.npy", SERIES[:4] + k)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, before[1]))
    try:
        datasets = datasets_of(tmp_path)
        assert sum(len(list(DataLoader(data, batch_size=None))) for data in datasets.values()) == 150
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_series_too_short_for_three_splits_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", SERIES[:30])
    with pytest.raises(UserError, match=r"a tenth of its 30 frames .* is shorter than a window of 4"):
        datasets_of(tmp_path)


# Values --------------------------------------------------------------------------------------------------------------


def test_values_are_scaled_by_what_is_trained_on_and_others_may_go_beyond_which_is_said(tmp_path):
    series = SERIES.copy()
    series[10, 3, 3], series[20, 4, 4], series[57, 5, 5] = 200, 400, 1000
    np.save(tmp_path / "a.npy", series)
    datasets = datasets_of(tmp_path)
    past, future = datasets["test"][0]
    assert np.allclose(np.concatenate([past, future])[:, 0], (series[54:58] - 200) / 200, atol=1e-6)
    assert future.max() == pytest.approx(4)
    assert datasets["train"].note == "0 to 1 is 200 to 400 of value"
    assert "channel 0 goes beyond" in datasets["test"].note
    assert "to 1000" in datasets["test"].note
    stated = datasets_of(tmp_path, value_range=[0, 1000])
    assert np.allclose(stated["test"][0][0][:, 0], series[54:56] / 1000)


def test_each_channel_has_its_own_range_and_some_are_predicted(tmp_path):
    fields = np.stack([SERIES, SERIES * 1000, SERIES / 1000], 1)  # T C H W
    np.save(tmp_path / "a.npy", fields)
    shapes = dict(in_shape=(2, 3, 8, 8), out_shape=(2, 1, 8, 8), layout="TCHW", target_channels=[2])
    data = datasets_of(tmp_path, **shapes)["train"]
    past, future = data[3]
    assert past.shape == (2, 3, 8, 8)
    assert future.shape == (2, 1, 8, 8)
    assert np.allclose(past[:, 0], past[:, 2], atol=1e-5)
    assert np.allclose(data.scale.to_values(future.numpy())[:, 0], fields[14:16, 2], rtol=1e-5)
    with pytest.raises(UserError, match=r"--target_channels 2: are 1 channels, --out_shape asks for 3"):
        datasets_of(tmp_path, **shapes | dict(out_shape=(2, 3, 8, 8)))
    with pytest.raises(UserError, match="has 3 channels, --in_shape asks for 1"):
        datasets_of(tmp_path, layout="TCHW")


def test_a_constant_channel_has_no_scale(tmp_path):
    np.save(tmp_path / "a.npy", np.full((60, 8, 8), 5))
    with pytest.raises(UserError, match="--value_range: channel 0 is 5 throughout the training side"):
        datasets_of(tmp_path)
    datasets_of(tmp_path, value_range=[0, 10])


def test_missing_values_are_refused_with_file_and_number_or_filled_and_said(tmp_path):
    series = SERIES.copy()
    series[30:33, 2, 2] = np.nan
    np.save(tmp_path / "a.npy", series)
    with pytest.raises(UserError, match=r"a\.npy: 3 of 3,840 values are missing .*--fill_missing") as error:
        datasets_of(tmp_path)
    assert "\n" not in str(error.value)
    datasets = datasets_of(tmp_path, fill_missing="previous")
    assert "3 missing values filled: previous" in datasets["train"].note
    assert "missing" not in datasets["test"].note
    window = datasets["train"].scale.to_values(datasets["train"][8][0].numpy())  # frames 32 and 33
    assert window[0, 0, 2, 2] == pytest.approx(series[29, 2, 2])


def test_bad_files_stop_or_are_left_out_and_named(tmp_path):
    for k in range(4):
        np.save(tmp_path / f"{k}.npy", SERIES + k)
    np.save(tmp_path / "short.npy", SERIES[:3])
    (tmp_path / "bad.npy").write_text("hello")
    (tmp_path / "cut.npz").write_text("hello")
    with pytest.raises(BadClip, match=r"bad\.npy.*--skip_bad goes on without it"):
        datasets_of(tmp_path)
    data = datasets_of(tmp_path, skip_bad=True)["train"]
    assert sorted(Path(reason.partition(":")[0]).name for reason in data.skipped) == ["bad.npy", "cut.npz", "short.npy"]


def test_a_block_that_cannot_be_read_and_missing_values_are_bad_clips_too(tmp_path):
    for k in range(4):
        np.save(tmp_path / f"{k}.npy", SERIES + k)
    np.save(tmp_path / "gaps.npy", np.where(SERIES.mean() < SERIES, np.nan, SERIES))
    with h5py.File(tmp_path / "cut.h5", "w") as file:
        values = file.create_dataset("x", data=SERIES, chunks=(10, 4, 4), compression="gzip")
        at = values.id.get_chunk_info(2).byte_offset
    with (tmp_path / "cut.h5").open("r+b") as file:
        file.seek(at)
        file.write(bytes(16))
    with pytest.raises(BadClip, match=r"^\S*cut\.h5: x: cannot be read \(.*filter.*\)$"):
        arrays.survey(tmp_path / "cut.h5", None, None, None, None, "crop")
    data = datasets_of(tmp_path, skip_bad=True)["train"]
    assert sorted(Path(reason.partition(":")[0]).name for reason in data.skipped) == ["cut.h5", "gaps.npy"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_h5_files_are_read_in_data_processes_too(tmp_path, num_workers):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=SERIES, chunks=(7, 4, 4))
    data = datasets_of(tmp_path)["train"]
    batches = list(DataLoader(data, batch_size=4, num_workers=num_workers))
    found = np.concatenate(
        [data.scale.to_values(frames.numpy()) for past, future in batches for frames in (past, future)]
    )
    assert sorted(found.ravel()) == pytest.approx(sorted(SERIES[:48].ravel()), abs=1e-4)


# From the command line -----------------------------------------------------------------------------------------------

FLAGS = "--hid_S 4 --groups 1 --layer_config 1 0 0 0 --segments 1 2 --epochs 1 --device cpu --num_workers 0"
TINY = FLAGS.split()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run main.py where two channels of 13x18 pixels over 60 frames lie in a.npy."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("API.evaluation.figures.save_figure", lambda figure, path: path.touch())
    field = np.random.default_rng(1).normal(280, 9, (60, 2, 13, 18))
    field[:, 1] = field[:, 0] * 100
    np.save("a.npy", field)
    return lambda text, *more: main.run([*text.split(), *more])


def test_shapes_and_range_are_found_once_and_known_wherever_the_run_goes_on(run, capsys):
    flags = "--dataname arrays --data_root a.npy --layout TCHW --target_channels 1 --in_shape 2 --out_shape 2"
    run(flags, *TINY)
    kept = json.loads(Path("results/arrays/config.json").read_text())["flags"]
    field = np.load("a.npy")[:48, :, :, 1:17]
    field = field[:, :, 0:12]
    assert kept["in_shape"] == [2, 2, 12, 16]
    assert kept["out_shape"] == [2, 1, 12, 16]
    limits = [f(field[:, c]) for c in (0, 1) for f in (np.min, np.max)]
    assert kept["value_range"] == pytest.approx(limits)
    assert json.loads(Path("results/arrays/splits.json").read_text())["test"][0]["name"] == "a.npy[54:60]"

    tested = json.loads(Path("results/arrays/test.json").read_text())
    assert tested["value_range"] == kept["value_range"]
    assert tested["target_channels"] == [1]
    span = limits[3] - limits[2]
    for name in ("model", "copy_last"):
        unit, physical = tested["strict"][name], tested["physical"][name]
        assert physical["mse"]["mean"] == pytest.approx(unit["mse"]["mean"] * span**2, rel=1e-5)
        assert physical["mae"]["mean"] == pytest.approx(unit["mae"]["mean"] * span, rel=1e-5)
        assert list(physical) == ["mse", "mae", "rmse"]
    truth = np.load("a.npy")[54:58, 1, 0:12, 1:17]
    expected = ((truth[2:] - truth[1]) ** 2).sum((1, 2)).mean()  # the last past frame of the predicted channel
    assert tested["physical"]["copy_last"]["mse"]["mean"] == pytest.approx(expected, rel=1e-4)

    np.save("a.npy", np.load("a.npy") * 2)  # another range, which a checkpoint does not take
    capsys.readouterr()
    run("test --ckpt results/arrays/checkpoints/best.pth --device cpu --ex_name other --save_predictions 1")
    assert "channel 0 goes beyond" in capsys.readouterr().out
    assert json.loads(Path("results/other/test.json").read_text())["value_range"] == kept["value_range"]
    with pytest.raises(UserError, match=r"--value_range \[0.0, 1.0, 0.0, 1.0\]: this run has"):
        run(flags + " --resume --value_range 0 1", *TINY)
    run("export --ckpt results/arrays/checkpoints/best.pth --output m.safetensors")
    run("test --ckpt m.safetensors --device cpu --ex_name again")
    assert json.loads(Path("results/again/test.json").read_text())["value_range"] == kept["value_range"]
    run("compare results/other results/again --protocol strict physical")
    assert "| physical | MSE | MAE | RMSE |" in Path("results/comparison/comparison.md").read_text()


def test_a_checkpoint_predicts_in_the_units_and_axes_of_the_data(run, capsys):
    flags = "--dataname arrays --data_root a.npy --layout TCHW --in_shape 2 --out_shape 2 --value_range 200 400 0 50000"
    run(flags, *TINY)
    run("predict --ckpt results/arrays/checkpoints/best.pth --input a.npy --output next.npy --frames 5 --start 50 "
        "--device cpu --precision fp32")  # fmt: skip
    assert "rmse of channel 1" in capsys.readouterr().out
    written = np.load("next.npy")
    assert written.shape == (5, 2, 13, 18)
    assert written.dtype == np.float64
    future = load_predictor("results/arrays/checkpoints/best.pth", device="cpu", precision="fp32")(
        np.load("a.npy")[50:52], frames=5
    )
    assert np.allclose(written, future, equal_nan=True)
    middle = future[:, :, 0:12, 1:17]
    assert np.isfinite(middle).all()
    assert np.isnan(future).sum() == 5 * 2 * (13 * 18 - 12 * 16)


def test_fewer_channels_out_than_in_take_one_pass(run):
    with pytest.raises(UserError, match=r"take a second pass, so the channels must be --in_shape's 2"):
        run("--dataname arrays --data_root a.npy --layout TCHW --target_channels 0 --in_shape 1 --out_shape 2", *TINY)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--dataname arrays --data_root a.npy", r"a\.npy: \(60, 2, 13, 18\), say what these axes are"),
        ("--dataname digits --in_shape 4", "--in_shape 4: give four numbers, T C H W"),
        ("--dataname digits --layout THW", "--layout: --dataname digits does not use it"),
        ("--dataname arrays --data_root none", "--data_root none: no such file or folder"),
    ],
)
def test_mistakes_are_a_line(run, flags, message):
    with pytest.raises(UserError, match=message) as error:
        run(flags, *TINY)
    assert "\n" not in str(error.value)


def test_shapes_are_those_of_the_first_file_that_can_be_read(tmp_path):
    (tmp_path / "0.npy").write_text("hello")
    for k in (1, 2, 3):
        np.save(tmp_path / f"{k}.npy", SERIES + k)
    flags = dict(data_root=tmp_path, in_shape=[2], out_shape=[3], seed=1, multiple=3)
    with pytest.raises(BadClip, match=r"0\.npy"):
        arrays.settle(**flags)
    settled = arrays.settle(**flags, skip_bad=True)
    assert (settled["in_shape"], settled["out_shape"]) == ([2, 1, 6, 6], [3, 1, 6, 6])


def test_frames_smaller_than_the_model_halves_are_asked_about(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((40, 16, 16, 3), np.float32))
    with pytest.raises(UserError, match=r"a\.npy: its frames are 16x3, less than 4; is it TCHW \(--layout\)\?"):
        arrays.settle(data_root=tmp_path, in_shape=[2], out_shape=[3], seed=1, multiple=4, layout="TCHW")
