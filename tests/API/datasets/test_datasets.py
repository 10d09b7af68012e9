"""KTH, Human3.6M, SJTU4K, TaxiBJ and the user's own videos, on small files in the real formats."""

import copy
import json
from pathlib import Path

import cv2
import files
import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import main
from API.dataloader import SPLITS, load_data
from API.datasets import human, kth, sjtu4k, taxibj, video
from API.datasets.report import overlaps, report

# KTH -----------------------------------------------------------------------------------------------------------------

KTH_SHAPES = dict(in_shape=(3, 1, 24, 32), out_shape=(3, 1, 24, 32), seed=1)
RANGES = [(1, 10), (11, 20), (25, 30)]  # the gap is before 25


def kth_frames(person: int, action: str) -> list[np.ndarray]:
    return [frame[..., :1].repeat(3, -1) for frame in files.pictures(32, seed=person + len(action))]


def kth_official(root: Path, people=range(1, 26)) -> Path:
    lines = ["KTH sequences, frames from-to", ""]
    for action in ("boxing", "running"):
        for person in people:
            name = f"person{person:02d}_{action}_d1"
            files.write_video(root / f"kth/{action}/{name}_uncomp.avi", kth_frames(person, action))
            lines.append(f"{name}\t\tframes\t" + ", ".join(f"{a}-{b}" for a, b in RANGES))
    lines.append("person13_handclapping_d3\t*missing*")
    (root / "kth/00sequences.txt").write_text("\n".join(lines))
    return root


def kth_folders(root: Path, people=range(1, 26)) -> Path:
    for action in ("boxing", "running"):
        for person in people:
            folder = root / f"kth/{action}/person{person:02d}_{action}_d1_uncomp"
            folder.mkdir(parents=True)
            frames = kth_frames(person, action)
            for number in (n for a, b in RANGES for n in range(a, b + 1)):
                Image.fromarray(frames[number - 1]).save(folder / f"image_{number:04d}_x.jpg", quality=95)
    return root


@pytest.fixture(params=[kth_official, kth_folders], ids=["avi", "folders"])
def kth_root(request, tmp_path) -> Path:
    return request.param(tmp_path)


def test_kth_windows_stay_within_runs_of_frames_and_stride_by_action(kth_root):
    data = kth.dataset("test", data_root=kth_root, **KTH_SHAPES)
    # 9 persons; runs of 20 and of 6 frames, windows of 6: 3 + 1 of boxing, which do not overlap, 5 + 1 of running
    assert len(data) == 9 * (3 + 1) + 9 * (5 + 1)
    starts = {}
    for index in range(len(data)):
        clip, frames = data.sources(index)
        numbers = [f[1] + 1 if isinstance(f, tuple) else int(Path(f).name[6:10]) for f in frames]
        assert numbers == list(range(numbers[0], numbers[0] + 6))
        starts.setdefault(clip, []).append(numbers[0])
    assert starts["boxing/person17_boxing_d1"] == [1, 7, 13, 25]
    assert starts["running/person17_running_d1"] == [1, 4, 7, 10, 13, 25]


def test_kth_layouts_give_the_same_windows(tmp_path):
    avi, folders = (make(tmp_path / name, [1, 17, 18]) for name, make in (("a", kth_official), ("b", kth_folders)))
    one, two = (kth.dataset("test", data_root=root, **KTH_SHAPES) for root in (avi, folders))
    assert len(one) == len(two)
    for index in (0, 5, len(one) - 1):
        assert (one[index][0] - two[index][0]).abs().mean() < 0.03  # two lossy codecs


def test_kth_persons_are_in_one_split(kth_root):
    people = {}
    for split in SPLITS:
        data = kth.dataset(split, data_root=kth_root, **KTH_SHAPES)
        people[split] = {kth.person_of(clip) for clip in data.clips}
    assert people["test"] == set(range(17, 26))
    assert len(people["val"]) == 2
    assert people["train"] | people["val"] == set(range(1, 17))
    assert not people["train"] & people["val"]
    assert kth.persons("val", 1) != kth.persons("val", 2)


def test_kth_mistakes_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="download_kth"):
        kth.dataset("train", data_root=tmp_path, **KTH_SHAPES)
    root = kth_official(tmp_path, [17])
    (root / "kth/00sequences.txt").write_text("person17_boxing_d1 frames 9-3\n")
    with pytest.raises(ValueError, match=r"00sequences.txt, line 1"):
        kth.dataset("test", data_root=root, **KTH_SHAPES)
    (root / "kth/00sequences.txt").write_text("person17_boxing_d1 frames 1-30\n")
    with pytest.raises(ValueError, match=r"no line for person17_running_d1_uncomp.avi"):
        kth.dataset("test", data_root=root, **KTH_SHAPES)
    (root / "kth/00sequences.txt").unlink()
    with pytest.raises(FileNotFoundError, match="frame ranges"):
        kth.dataset("test", data_root=root, **KTH_SHAPES)


def test_kth_counts_are_the_published_ones_where_the_data_is_complete():
    """Skipped without the data; where they are, the counts tell whether the convention is the field's."""
    root = Path(__file__).parents[1] / "data"
    if len(list(root.glob("kth/*/person*"))) < kth.VIDEOS:
        pytest.skip("the whole of KTH is not in data/kth")
    shapes = dict(in_shape=(10, 1, 128, 128), out_shape=(20, 1, 128, 128), seed=1)
    counts = {split: len(kth.dataset(split, data_root=root, **shapes)) for split in SPLITS}
    assert counts["train"] + counts["val"] == kth.PUBLISHED["train"]
    assert counts["test"] == kth.PUBLISHED["test"]


# Human3.6M -----------------------------------------------------------------------------------------------------------

HUMAN_SHAPES = dict(in_shape=(2, 3, 24, 32), out_shape=(2, 3, 24, 32), seed=1)


@pytest.fixture
def human_root(tmp_path) -> Path:
    """Seven subjects, two videos each, both lists naming all of them, as the published ones do."""
    lists = {"train": [], "test": []}
    for subject in (1, 5, 6, 7, 8, 9, 11):
        for action in ("Walking", "Eating 1"):
            prefix = f"images/S{subject}_{action}.5413_"
            for number in range(0, 60, 5):
                path = tmp_path / f"human/{prefix}{number:06d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(files.picture(number, seed=subject)).save(path, quality=95)
            lists["train"] += [f"{prefix},0,15", f"{prefix},20,35"]
            lists["test"].append(f"{prefix},10,40")
    for name, lines in lists.items():
        (tmp_path / f"human/{name}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_human_windows_are_every_fifth_frame_from_the_first_in_rgb(human_root):
    data = human.dataset("test", data_root=human_root, **HUMAN_SHAPES)
    assert len(data) == 14
    _, frames = data.sources(0)
    assert [Path(frame).name for frame in frames] == [f"S1_Walking.5413_{n:06d}.jpg" for n in (10, 15, 20, 25)]
    picture = cv2.resize(files.picture(10, seed=1), (32, 24), interpolation=cv2.INTER_AREA).transpose(2, 0, 1)
    assert np.abs(data[0][0][0].numpy() * 255 - picture).mean() < 6  # JPEG; red and blue swapped would be 60 off


def test_human_lists_leak_and_the_report_says_so(human_root):
    datasets = {split: human.dataset(split, data_root=human_root, **HUMAN_SHAPES) for split in SPLITS}
    lines = overlaps(datasets)
    assert "overlap: train and val share nothing" in lines[0]
    assert "LEAK: share 13 of 13 and 14 files" in lines[1]
    assert "26 of 104 and 56 frames" not in lines[0]
    shared = {"files": 13, "windows": 0, "frames": 13 * 4}  # test's 10, 15, 20, 25 are trained on as 10, 15 and 20, 25
    for kind, count in shared.items():
        assert f"{count} of " in lines[1], kind


def test_human_split_by_subject_does_not_leak(human_root):
    datasets = {
        split: human.dataset(split, data_root=human_root, **HUMAN_SHAPES, split_by="subject") for split in SPLITS
    }
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
def test_human_list_entries_that_do_not_work_are_named(human_root, line, words):
    with (human_root / "human/train.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=words) as error:
        [human.dataset(split, data_root=human_root, **HUMAN_SHAPES) for split in ("train", "val")]
    assert "\n" not in str(error.value)
    if "skip_bad" in str(error.value):
        both = [human.dataset(split, data_root=human_root, **HUMAN_SHAPES, skip_bad=True) for split in ("train", "val")]
        assert len(both[0]) + len(both[1]) == 28
        assert len(both[0].skipped) + len(both[1].skipped) == 1


# SJTU4K --------------------------------------------------------------------------------------------------------------

SJTU_SHAPES = dict(in_shape=(2, 3, 24, 32), out_shape=(2, 3, 24, 32), seed=1)


@pytest.fixture
def sjtu_root(tmp_path) -> Path:
    root = tmp_path / "sjtu4k"
    files.write_yuv(root / "Bund_Nightscape_64x48.yuv", files.pictures(9))
    files.write_yuv(root / "Tall Buildings 64x48 10bit.yuv", files.pictures(9), 10)
    files.write_images(root / "rush hour", files.pictures(9))
    files.write_video(root / "Marathon.mp4", files.pictures(9))
    return tmp_path


def test_sjtu4k_takes_every_kind_of_clip_and_splits_by_the_list(sjtu_root):
    names = {}
    for split in SPLITS:
        data = sjtu4k.dataset(split, data_root=sjtu_root, **SJTU_SHAPES)
        names[split] = [clip.name for clip in data.clips]
        assert len(data) == 2 * len(data.clips)
        assert data[0][0].shape == (2, 3, 24, 32)
    assert names == {
        "train": ["Bund_Nightscape_64x48.yuv", "Marathon.mp4"],
        "val": ["Tall Buildings 64x48 10bit.yuv"],
        "test": ["rush hour"],
    }


def test_sjtu4k_splits_all_fifteen_clips():
    split = sjtu4k.read_split()
    assert len(split) == 15
    assert set(split.values()) == set(SPLITS)


def test_sjtu4k_names_a_clip_that_is_not_listed(sjtu_root):
    files.write_images(sjtu_root / "sjtu4k/Somewhere Else", files.pictures(9))
    with pytest.raises(ValueError, match=r"Somewhere Else: not in the split; add a line .*split\.txt"):
        sjtu4k.dataset("train", data_root=sjtu_root, **SJTU_SHAPES)


# TaxiBJ --------------------------------------------------------------------------------------------------------------

TAXI_SHAPES = dict(in_shape=(4, 2, 32, 32), out_shape=(4, 2, 32, 32), seed=1)


def taxi_npz(root: Path, **changes) -> Path:
    rng = np.random.default_rng(0)
    arrays = {
        f"{name}_{side}": rng.uniform(-1, 1, (n, 4, 2, 32, 32))
        for side, n in (("train", 40), ("test", 7))
        for name in "XY"
    }
    (root / "taxibj").mkdir(exist_ok=True)
    arrays |= changes
    np.savez(root / "taxibj/dataset.npz", **{name: a for name, a in arrays.items() if a is not None})
    return root


def taxi_h5(root: Path) -> dict[str, np.ndarray]:
    """Four files; the last has 40 days, one half hour of its first day missing."""
    rng, flows = np.random.default_rng(0), {}
    (root / "taxibj").mkdir()
    for year, month, days in (
        ("BJ13", "201307", 3),
        ("BJ14", "201403", 3),
        ("BJ15", "201503", 3),
        ("BJ16", "201601", 31),
    ):
        stamps = [f"{month}{day:02d}{slot:02d}" for day in range(1, days + 1) for slot in range(1, 49)]
        if year == "BJ16":
            del stamps[20]
        flows[year] = rng.integers(0, 1000, (len(stamps), 2, 32, 32)).astype(np.float64)
        with h5py.File(root / f"taxibj/{year}_M32x32_T30_InOut.h5", "w") as file:
            file["data"], file["date"] = flows[year], np.array(stamps, dtype="S10")
    return flows


def test_taxibj_npz_is_scaled_to_zero_to_one_and_split_as_in_the_file(tmp_path):
    taxi_npz(tmp_path)
    stored = np.load(tmp_path / "taxibj/dataset.npz")
    data = taxibj.dataset("test", data_root=tmp_path, **TAXI_SHAPES)
    assert len(data) == 7
    past, future = data[3]
    assert np.allclose(past, (stored["X_test"][3] + 1) / 2, atol=1e-6)
    assert np.allclose(future, (stored["Y_test"][3] + 1) / 2, atol=1e-6)
    lengths = {split: len(taxibj.dataset(split, data_root=tmp_path, **TAXI_SHAPES)) for split in SPLITS}
    assert lengths == {"train": 40 - 4 - 7, "val": 4, "test": 7}  # 7 that could overlap validation are left out


def test_taxibj_h5_windows_have_no_gap_and_the_last_four_weeks_test(tmp_path):
    flows = taxi_h5(tmp_path)
    datasets = {split: taxibj.dataset(split, data_root=tmp_path, **TAXI_SHAPES) for split in SPLITS}
    assert len(datasets["test"]) == 28 * 48 - 7
    largest = max(*(flows[year].max() for year in ("BJ13", "BJ14", "BJ15")), flows["BJ16"][: 3 * 48 - 1].max())
    first = datasets["test"][0][0]
    assert np.allclose(first, (flows["BJ16"][3 * 48 - 1 : 3 * 48 + 3] / largest).clip(0, 1), atol=1e-6)
    assert all("share nothing" in line for line in overlaps(datasets))
    # 3 runs of 144, then 20 and 123 half hours; val is the newest tenth
    whole = sum(n - 7 for n in (144, 144, 144, 20, 123))
    assert whole - 2 * 7 <= len(datasets["train"]) + len(datasets["val"]) <= whole


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(Y_test=None), "no array Y_test"),
        (dict(X_train=np.zeros((3, 4, 2, 16, 16))), "X_train is"),
        (dict(X_test=np.array([{}], dtype=object)), "Object arrays"),
        (dict(X_test=np.full((7, 4, 2, 32, 32), np.nan)), "X_test is not within"),
        (dict(X_test=np.full((7, 4, 2, 32, 32), 9.0)), "X_test is not within"),
        (dict(Y_test=np.zeros((6, 4, 2, 32, 32))), "do not hold"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_taxibj_npz_mistakes_are_named(tmp_path, changes, words):
    taxi_npz(tmp_path, **changes)
    with pytest.raises(ValueError, match=rf"dataset\.npz: .*{words}") as error:
        taxibj.dataset("test", data_root=tmp_path, **TAXI_SHAPES)
    assert "\n" not in str(error.value)


def test_taxibj_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"dataset\.npz is missing"):
        taxibj.dataset("test", data_root=tmp_path, **TAXI_SHAPES)
    taxi_h5(tmp_path)
    broken = tmp_path / "taxibj/BJ15_M32x32_T30_InOut.h5"
    for content in ("no data", "text", "missing"):
        if content == "no data":
            with h5py.File(broken, "w") as file:
                file["date"] = np.zeros(3)
        elif content == "text":
            broken.write_text("hello")
        else:
            broken.unlink()
        with pytest.raises((ValueError, FileNotFoundError), match="BJ15") as error:
            taxibj.dataset("test", data_root=tmp_path, **TAXI_SHAPES)
        assert "\n" not in str(error.value)
    (tmp_path / "taxibj/dataset.npz").write_text("hello")
    with pytest.raises(ValueError, match="not a sound npz"):
        taxibj.dataset("test", data_root=tmp_path, **TAXI_SHAPES)


# The user's own videos -----------------------------------------------------------------------------------------------

VIDEO_SHAPES = dict(in_shape=(2, 3, 24, 32), out_shape=(2, 3, 24, 32), seed=1)


@pytest.fixture
def video_root(tmp_path) -> Path:
    root = tmp_path / "my videos"
    for k, kind in enumerate(("avi", "mp4", "mov", "mkv")):
        files.write_video(root / f"clip {k}.{kind}", files.pictures(9, seed=k))
    files.write_gif(root / "été.gif", files.pictures(9, seed=5))
    files.write_images(root / "folder/frames", files.pictures(9, seed=6), "{:02d}.jpg")
    np.save(root / "array.npy", np.stack(files.pictures(9, seed=7)))
    return root


def test_videos_are_split_by_file_and_the_seed_decides(video_root):
    datasets = {split: video.dataset(split, data_root=video_root, **VIDEO_SHAPES) for split in SPLITS}
    assert {split: len(data.clips) for split, data in datasets.items()} == {"train": 5, "val": 1, "test": 1}
    assert all("share nothing" in line for line in overlaps(datasets))
    assert sum(len(data) for data in datasets.values()) == 7 * 2
    others = [
        video.dataset("test", data_root=video_root, **VIDEO_SHAPES | dict(seed=seed)).clips[0].name for seed in range(9)
    ]
    assert len(set(others)) > 1


@pytest.mark.parametrize("C", [1, 3])
def test_videos_come_in_grey_or_colour_and_any_stride(video_root, C):
    shapes = dict(in_shape=(2, C, 16, 20), out_shape=(2, C, 16, 20), seed=1)
    data = video.dataset("train", data_root=video_root, **shapes, stride=1, resize="stretch", no_cache=True)
    assert len(data) == 5 * 6
    assert data[0][0].shape == (2, C, 16, 20)
    assert not (video_root / ".cache").exists()


def test_two_clips_cannot_be_split(tmp_path):
    for k in range(2):
        files.write_images(tmp_path / f"{k}", files.pictures(9))
    with pytest.raises(ValueError, match="2 clips"):
        video.dataset("train", data_root=tmp_path, **VIDEO_SHAPES)


# All of them ---------------------------------------------------------------------------------------------------------


def data_root_of(name: str, tmp_path: Path, request) -> Path:
    if name == "kth":
        return kth_official(tmp_path)
    if name == "taxibj":
        return taxi_npz(tmp_path)
    if name == "mmnist":
        return request.getfixturevalue("mnist_root")
    return request.getfixturevalue({"human": "human_root", "sjtu4k": "sjtu_root", "video": "video_root"}[name])


SMALL = {  # frames short and small enough for the tiny files; the rest is the preset's
    "mmnist": ["--in_shape", "10", "1", "64", "64", "--out_shape", "10", "1", "64", "64", "--segments", "4", "8"],
    "kth": ["--in_shape", "4", "1", "32", "32", "--out_shape", "8", "1", "32", "32"],
    "human": ["--in_shape", "2", "3", "32", "32", "--out_shape", "2", "3", "32", "32"],
    "sjtu4k": ["--in_shape", "2", "3", "32", "48", "--out_shape", "2", "3", "32", "48"],
    "taxibj": [],
    "video": ["--in_shape", "2", "3", "32", "32", "--out_shape", "2", "3", "32", "32"],
}


@pytest.mark.parametrize("name", SMALL)
def test_every_preset_trains_and_tests_on_files_in_the_real_format(name, tmp_path, request, monkeypatch):
    root = data_root_of(name, tmp_path / "data" if name == "kth" else tmp_path, request)
    monkeypatch.setattr("API.datasets.mmnist.EPOCH", 6)
    monkeypatch.setattr("API.datasets.mmnist.VAL_SEQUENCES", 4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("API.figures.save_figure", lambda figure, path: path.touch())  # most of a tiny run's time
    small = [*SMALL[name], "--hid_S", "8", "--groups", "1", "--layer_config", "1", "1", "1", "1", "--num_workers", "0"]
    if name == "kth":
        monkeypatch.setattr("API.datasets.kth.FAST_STRIDE", 50)  # a window a run, so that few do
    flags = [
        "--dataname",
        name,
        "--data_root",
        str(root),
        "--epochs",
        "1",
        "--batch_size",
        "3",
        "--device",
        "cpu",
        *small,
    ]
    main.run([*flags, "--precision", "fp32", "--save_predictions", "2"])
    saved = np.load(tmp_path / f"results/{name}/predictions.npz")
    expected = [int(n) for n in SMALL[name][6:10]] or [4, 2, 32, 32]
    assert saved["predicted"].shape == (2, *expected)
    assert np.isfinite(saved["predicted"]).all()
    record = json.loads((tmp_path / f"results/{name}/metrics.jsonl").read_text())
    assert np.isfinite(record["train_loss"])


@pytest.mark.parametrize("name", ["human", "video", "taxibj", "mmnist"])
def test_data_mode_reports_files_windows_values_and_overlap_and_draws_samples(
    name, tmp_path, request, monkeypatch, capsys
):
    root = data_root_of(name, tmp_path, request)
    monkeypatch.chdir(tmp_path)
    main.run(["data", "--dataname", name, "--data_root", str(root), *SMALL[name]])
    printed = capsys.readouterr().out
    for words in ("train", "val", "test", "mean 0.", "range", "overlap"):
        assert words in printed
    assert ("LEAK" in printed) == (name == "human")
    assert Image.open(tmp_path / f"results/{name}/figures/data.png").size[0] > 300


def test_what_skip_bad_leaves_out_is_said_when_training(video_root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("API.figures.save_figure", lambda figure, path: path.touch())
    (video_root / "bad one.mp4").write_text("hello")
    small = [
        *SMALL["video"],
        "--hid_S",
        "8",
        "--groups",
        "1",
        "--layer_config",
        "1",
        "0",
        "0",
        "0",
        "--num_workers",
        "0",
    ]
    flags = ["--dataname", "video", "--data_root", str(video_root), "--epochs", "1", "--device", "cpu", *small]
    with pytest.raises(ValueError, match=r"bad one\.mp4.*--skip_bad"):
        main.run(flags)
    main.run([*flags, "--skip_bad"])
    assert capsys.readouterr().out.count("bad one.mp4") == 1


def test_data_mode_names_every_unreadable_file(video_root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("bad one.mp4", "bad two.mkv"):
        (video_root / name).write_text("hello")
    main.run(["data", "--dataname", "video", "--data_root", str(video_root), *SMALL["video"]])
    printed = capsys.readouterr().out
    assert "bad one.mp4" in printed
    assert "bad two.mkv" in printed


def test_every_set_gives_float32_in_zero_to_one_through_load_data(tmp_path, video_root):
    for name, root in (("taxibj", taxi_npz(tmp_path)), ("video", video_root)):
        shapes = TAXI_SHAPES if name == "taxibj" else VIDEO_SHAPES
        shapes = {key: shapes[key] for key in ("in_shape", "out_shape")}
        loaders = load_data(name, data_root=root, **shapes, batch_size=2, val_batch_size=2)
        for loader in loaders.values():
            for past, future in loader:
                assert past.dtype == future.dtype == torch.float32
                assert past.shape[1:] == shapes["in_shape"]
                assert min(past.min(), future.min()) >= 0
                assert max(past.max(), future.max()) <= 1


def test_overlap_by_frame_is_found_between_windows_that_share_only_some(video_root):
    one = video.dataset("train", data_root=video_root, **VIDEO_SHAPES)
    two = copy.copy(one)
    two.windows = one.windows[:1] + np.array([0, 1, 1, 1, 1])
    (line,) = overlaps({"a": one, "b": two})
    assert "1 of 5 and 1 files, 0 of 10 and 1 windows, 4 of 40 and 4 frames" in line
    assert "5 videos of" in report("video", {"a": one})
