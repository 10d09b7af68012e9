"""The user's own videos."""

import json
import shutil
from pathlib import Path

import data_roots
import files
import numpy as np
import pytest

import main
from API import UserError
from API.dataloader import SPLITS
from API.datasets import video
from API.datasets.report import overlaps

CLIPS = {"clip 0.avi", "clip 1.mp4", "clip 2.mov", "clip 3.mkv", "été.gif", "folder/frames", "array.npy"}
SHAPES = dict(in_shape=(2, 3, 24, 32), out_shape=(2, 3, 24, 32), seed=1)


@pytest.fixture
def video_root(tmp_path) -> Path:
    return data_roots.videos(tmp_path)


def test_videos_are_split_by_file_and_the_seed_decides(video_root):
    datasets = {split: video.dataset(split, data_root=video_root, **SHAPES) for split in SPLITS}
    assert {clip.name for data in datasets.values() for clip in data.clips} == CLIPS
    assert min(len(data.clips) for data in datasets.values()) >= 1
    assert all("share nothing" in line for line in overlaps(datasets))
    assert sum(len(data) for data in datasets.values()) == 7 * 2
    others = [
        video.dataset("test", data_root=video_root, **SHAPES | dict(seed=seed)).clips[0].name for seed in range(9)
    ]
    assert len(set(others)) > 1


@pytest.mark.parametrize("C", [1, 3])
def test_videos_come_in_grey_or_colour_and_any_stride(video_root, C):
    shapes = dict(in_shape=(2, C, 16, 20), out_shape=(2, C, 16, 20), seed=1)
    data = video.dataset("train", data_root=video_root, **shapes, stride=1, resize="stretch", no_cache=True)
    assert len(data) == 6 * len(data.clips)
    assert data[0][0].shape == (2, C, 16, 20)
    assert not (video_root / ".cache").exists()


def test_two_clips_cannot_be_split(tmp_path):
    for k in range(2):
        files.write_images(tmp_path / f"{k}", files.pictures(9, seed=k))
    with pytest.raises(ValueError, match=r"2 clips \(0, 1\) cannot be split"):
        video.dataset("train", data_root=tmp_path, **SHAPES)


def test_a_copy_under_another_name_counts_once(video_root):
    shutil.copy(video_root / "clip 1.mp4", video_root / "zz copy.mp4")
    shutil.copytree(video_root / "folder/frames", video_root / "frames again")
    datasets = {split: video.dataset(split, data_root=video_root, **SHAPES) for split in SPLITS}
    names = [clip.name for data in datasets.values() for clip in data.clips]
    assert len(names) == 7
    assert ("zz copy.mp4" in names) + ("clip 1.mp4" in names) == 1
    assert ("folder/frames" in names) + ("frames again" in names) == 1
    for data in datasets.values():
        assert sum("a copy of" in reason for reason in data.skipped) == 2


def test_a_run_knows_its_clips_and_refuses_to_test_what_it_has_trained_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("API.evaluation.figures.save_figure", lambda figure, path: path.touch())
    monkeypatch.chdir(tmp_path)
    for k in range(30):
        np.save(f"clips_{k}.npy", np.full((5, 32, 32, 3), 8 * k, np.uint8))  # of equal bytes wherever this runs
    shapes = "--in_shape 2 3 32 32 --out_shape 2 3 32 32 --hid_S 4 --groups 1 --layer_config 1 0 0 0"
    flags = f"--dataname video --data_root . {shapes} --epochs 1 --device cpu --num_workers 0".split()
    main.run(flags)
    kept = json.loads(Path("results/video/splits.json").read_text())
    names = {split: {entry["name"] for entry in clips} for split, clips in kept.items()}
    assert set.union(*names.values()) == {f"clips_{k}.npy" for k in range(30)}
    test = ["test", "--ckpt", "results/video/checkpoints/best.pth", "--device", "cpu"]

    main.run(test)
    assert "when this run began" not in capsys.readouterr().out

    gone = sorted(names["test"])[0]
    shutil.copyfile(sorted(names["train"])[0], "copy.npy")  # counts as one with its original, which was trained on
    Path(gone).rename("gone.hidden")
    np.save("new.npy", np.full((5, 32, 32, 3), 255, np.uint8))
    main.run(test)
    assert f"test is not what it was when this run began: {gone} gone" in capsys.readouterr().out

    with pytest.raises(UserError, match="would be tested, but this run has trained on it") as error:
        main.run([*test, "--seed", "2"])
    assert "\n" not in str(error.value)
    Path("best.pth").write_bytes(Path("results/video/checkpoints/best.pth").read_bytes())
    with pytest.raises(UserError, match="would be tested"):
        main.run([*flags, "--ex_name", "finer", "--init", "results/video/checkpoints/best.pth", "--seed", "2"])
    main.run(["test", "--ckpt", "best.pth", "--device", "cpu", "--seed", "2"])
    assert "no splits.json beside the checkpoint" in capsys.readouterr().out
