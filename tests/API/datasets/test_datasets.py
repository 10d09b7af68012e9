"""What holds for every data set."""

import copy
import json
from pathlib import Path

import data_roots
import numpy as np
import pytest
import torch
from data_roots import ROOTS
from PIL import Image

import main
from API import UserError
from API.dataloader import SPLITS, how_to_fit, load_data
from API.datasets import digits, video
from API.datasets.report import overlaps, report
from API.presets import PRESETS


def loaders_of(name: str, root: Path, **options) -> dict:
    make, shapes = ROOTS[name]
    options = dict(batch_size=3, val_batch_size=2) | options
    return load_data(name, data_root=str(make(root)), **shapes, **options)


def flags_of(name: str, root: Path) -> list[str]:
    """The command line for a data set's small files."""
    make, shapes = ROOTS[name]
    flags = ["--dataname", name, "--data_root", str(make(root))]
    for flag, shape in shapes.items():
        flags += [f"--{flag}", *map(str, shape)]
    return flags + (["--segments", "4", "8"] if name == "mmnist" else [])


@pytest.fixture
def few(monkeypatch):
    """Generated data in small numbers."""
    monkeypatch.setattr(digits, "SEQUENCES", {"train": 6, "val": 4, "test": 5})
    monkeypatch.setattr("API.datasets.mmnist.EPOCH", 6)
    monkeypatch.setattr("API.datasets.mmnist.VAL_SEQUENCES", 4)


def test_there_are_files_to_test_each_with():
    assert set(ROOTS) == set(PRESETS)


# Batches -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROOTS)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_contiguous_float32_in_zero_to_one(name, num_workers, tmp_path, few):
    """A batch with gaps would be copied through pageable memory on its way to a GPU."""
    shapes = ROOTS[name][1]
    for loader in loaders_of(name, tmp_path, num_workers=num_workers).values():
        for batch in loader:
            for frames, shape in zip(batch, shapes.values()):
                assert frames.is_contiguous()
                assert frames.dtype == torch.float32
                assert frames.shape[1:] == shape
                assert frames.min() >= 0
                assert frames.max() <= 1


@pytest.mark.parametrize("name", ROOTS)
def test_items_are_the_rows_of_batches(name, tmp_path, few):
    for loader in loaders_of(name, tmp_path).values():
        indices = [0, len(loader.dataset) - 1]
        items = [loader.dataset[index] for index in indices]
        for batch, stacked in zip(loader.collate_fn(items), map(torch.stack, zip(*items))):
            assert torch.equal(batch, stacked)
        if hasattr(loader.dataset, "__getitems__"):
            for batch, stacked in zip(loader.dataset.__getitems__(indices), map(torch.stack, zip(*items))):
                assert torch.equal(batch, stacked)


@pytest.mark.parametrize("name", ["kth", "human", "sjtu4k", "video"])
@pytest.mark.parametrize("resize", [None, "crop", "stretch"])
def test_frames_fit_as_the_data_set_says(name, resize, tmp_path):
    cache = loaders_of(name, tmp_path, resize=resize)["test"].dataset.cache
    assert (cache.resize, cache.interpolation) == how_to_fit(name, resize)


def test_the_interpolation_is_the_fields():
    fits = {name: how_to_fit(name) for name in PRESETS}
    assert fits["kth"] == ("stretch", "bilinear")
    assert fits["human"] == ("stretch", "bicubic")
    assert fits["video"] == ("crop", None)
    assert {fits[name] for name in ("mmnist", "digits", "taxibj", "sjtu4k")} == {("stretch", None)}


# Flags ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("mmnist", "stride"),
        ("kth", "epoch_size"),
        ("digits", "val_digits"),
        ("video", "split_by"),
        ("human", "yuv_size"),
    ],
)
def test_a_flag_that_a_data_set_does_not_use_is_refused_by_name(name, option, tmp_path, few):
    with pytest.raises(UserError, match=f"--{option}: --dataname {name} does not use it"):
        loaders_of(name, tmp_path, **{option: 1})
    loaders_of(name, tmp_path / "again", **{option: None}, cache_dir=None, no_cache=True, skip_bad=True)


@pytest.mark.parametrize("name", ["digits", "mmnist"])
def test_epoch_size_is_how_many_sequences_an_epoch_generates(name, tmp_path):
    loaders = loaders_of(name, tmp_path, epoch_size=7)
    assert len(loaders["train"].dataset) == 7
    assert len(loaders["train"]) == 2  # whole batches of 3
    assert len(loaders["val"].dataset) > 7
    batches = loaders["train"].batch_sampler
    batches.epoch = 2
    assert [i for batch in batches for i in batch] == list(range(14, 20))  # no epoch repeats another


# Reports -------------------------------------------------------------------------------------------------------------


def test_overlap_by_frame_is_found_between_windows_that_share_only_some(tmp_path):
    shapes = dict(in_shape=(2, 3, 24, 32), out_shape=(2, 3, 24, 32), seed=1)
    one = video.dataset("train", data_root=data_roots.videos(tmp_path), **shapes)
    clips, two = len(one.clips), copy.copy(one)
    two.windows = one.windows[:1] + np.array([0, 1, 1, 1, 1])
    (line,) = overlaps({"a": one, "b": two})
    assert (
        f"1 of {clips} and 1 files, 0 of {2 * clips} and 1 windows, 4 of {8 * clips} and 4 frames" in line
    )  # nine frames a clip: two windows of four
    assert f"{clips} clips of" in report("video", {"a": one})


def test_what_cannot_say_where_its_items_come_from_is_not_called_free_of_overlap(tmp_path, few):
    datasets = {split: loader.dataset for split, loader in loaders_of("mmnist", tmp_path).items()}
    assert overlaps(datasets) == [
        "  overlap: train and val share nothing",
        "  overlap: train and test not checked: test cannot say where its items come from",
        "  overlap: val and test not checked: test cannot say where its items come from",
    ]


def test_digits_that_are_trained_on_and_validate_are_found(tmp_path):
    one = digits.dataset("train", **ROOTS["digits"][1], seed=1)
    two = copy.copy(one)
    two.stream, two.length = 1, 50
    (line,) = overlaps({"train": one, "val": two})
    assert "LEAK" in line


def test_the_mean_is_of_all_frames_past_and_future_alike(tmp_path):
    levels = np.array([0] * 11 + [255], np.uint8)[:, None, None]
    for k in range(8):
        np.save(tmp_path / f"{k}.npy", levels + np.zeros((1, 16, k + 8), np.uint8))
    data = video.dataset("train", data_root=tmp_path, in_shape=(11, 1, 8, 8), out_shape=(1, 1, 8, 8), seed=1)
    assert "mean 0.083, range 0.000 to 1.000" in report("video", {"train": data})


def test_the_report_lists_the_clips_of_each_split_and_the_suspects(tmp_path):
    root = data_roots.videos(tmp_path)
    np.save(root / "array.npy", np.load(root / "array.npy").repeat(2, 0))
    for k in range(12):  # so many that one is in another split than its original
        np.save(root / f"almost {k}.npy", np.load(root / "array.npy") ^ (k == np.arange(18)[:, None, None, None]))
    datasets = {
        split: video.dataset(split, data_root=root, in_shape=(2, 3, 24, 32), out_shape=(2, 3, 24, 32), seed=1)
        for split in SPLITS
    }
    lines = report("video", datasets).splitlines()
    for split, data in datasets.items():
        at = next(k for k, line in enumerate(lines) if line.startswith(f"  {split}"))
        assert lines[at + 1].strip() == ", ".join(clip.name for clip in data.clips)
    assert any("warning: " in line and "look like one film" in line for line in lines)


# From the command line -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in ROOTS if name != "digits"])
def test_every_preset_trains_and_tests_on_files_in_the_real_format(name, tmp_path, monkeypatch, few):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("API.evaluation.figures.save_figure", lambda figure, path: path.touch())  # most of the time
    monkeypatch.setattr("API.datasets.kth.FAST_STRIDE", 50)  # one window a run
    flags = flags_of(name, tmp_path / "data")
    flags += ["--hid_S", "8", "--groups", "1", "--layer_config", "1", "1", "1", "1", "--num_workers", "0"]
    flags += ["--epochs", "1", "--batch_size", "3", "--device", "cpu", "--precision", "fp32"]
    main.run([*flags, "--save_predictions", "2"])
    saved = np.load(tmp_path / f"results/{name}/predictions.npz")
    assert saved["predicted"].shape == (2, *ROOTS[name][1]["out_shape"])
    assert np.isfinite(saved["predicted"]).all()
    record = json.loads((tmp_path / f"results/{name}/metrics.jsonl").read_text())
    assert np.isfinite(record["train_loss"])


@pytest.mark.parametrize("name", ["human", "video", "taxibj", "mmnist", "arrays"])
def test_data_mode_reports_files_windows_values_and_overlap_and_draws_samples(name, tmp_path, monkeypatch, capsys, few):
    monkeypatch.chdir(tmp_path)
    flags = flags_of(name, tmp_path / "data")
    main.run(["data", *flags])
    printed = capsys.readouterr().out
    for words in ("train", "val", "test", "mean 0.", "range", "overlap"):
        assert words in printed
    assert ("LEAK" in printed) == (name == "human")
    assert ("generated, not the published set" in printed) == (name == "mmnist")
    assert Image.open(tmp_path / f"results/{name}/figures/data.png").size[0] > 300


def test_what_skip_bad_leaves_out_is_said_when_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("API.evaluation.figures.save_figure", lambda figure, path: path.touch())
    flags = flags_of("video", tmp_path / "data")
    (tmp_path / "data/my videos/bad one.mp4").write_text("hello")
    flags += ["--hid_S", "8", "--groups", "1", "--layer_config", "1", "0", "0", "0", "--num_workers", "0"]
    flags += ["--epochs", "1", "--device", "cpu"]
    with pytest.raises(UserError, match=r"bad one\.mp4.*--skip_bad"):
        main.run(flags)
    main.run([*flags, "--skip_bad"])
    assert capsys.readouterr().out.count("bad one.mp4") == 1


def test_data_mode_names_every_unreadable_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = flags_of("video", tmp_path / "data")
    for name in ("bad one.mp4", "bad two.mkv"):
        (tmp_path / "data/my videos" / name).write_text("hello")
    main.run(["data", *flags])
    printed = capsys.readouterr().out
    assert "bad one.mp4" in printed
    assert "bad two.mkv" in printed
