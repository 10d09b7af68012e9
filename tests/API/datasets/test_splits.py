"""Splits by clip that stay what they were, and the checks of a run's splits.json."""

import base64
import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest

from API import UserError
from API.clips.clip import Clip
from API.clips.reading import find_clips
from API.datasets import splits, video

SHAPES = dict(in_shape=(2, 3, 24, 32), out_shape=(2, 3, 24, 32), seed=1)
CASES = Path(__file__).parents[4] / "shared/cases"


def clips_of(folder: Path, count: int, first: int = 0) -> list[Clip]:
    """Files of known bytes; a split does not decode."""
    folder.mkdir(exist_ok=True)
    for k in range(first, first + count):
        (folder / f"{k:03d}.npy").write_bytes(bytes([k % 256, k // 256]) * 500)
    return find_clips(folder)


def names_by_split(clips: list[Clip], seed: int) -> dict[str, set[str]]:
    return {split: {clip.name for clip in part} for split, part in splits.split_clips(clips, seed).items()}


# Where a clip belongs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 4, 10, 50])
def test_every_clip_is_in_one_split_and_every_split_has_one(tmp_path, count):
    clips = clips_of(tmp_path, count)
    for seed in range(100):
        parts = names_by_split(clips, seed)
        assert min(map(len, parts.values())) >= 1
        assert sum(map(len, parts.values())) == count == len(set.union(*parts.values()))


@pytest.mark.parametrize("seed", [451, 649])  # all three in the tail of val, or of test
def test_three_items_make_three_splits_wherever_their_numbers_are(seed):
    parts = splits.split_by({item: f"{seed} {item}" for item in "012"})
    assert sorted(parts["train"] + parts["val"] + parts["test"]) == ["0", "1", "2"]
    assert {len(part) for part in parts.values()} == {1}


def test_shares_are_eight_one_one_on_average_and_the_seed_decides(tmp_path):
    clips = clips_of(tmp_path, 300)
    counts = Counter()
    for seed in range(30):
        counts += Counter({split: len(names) for split, names in names_by_split(clips, seed).items()})
    for split, share in {"train": 0.8, "val": 0.1, "test": 0.1}.items():
        assert counts[split] / 9000 == pytest.approx(share, abs=0.015)
    assert names_by_split(clips, 1)["test"] != names_by_split(clips, 2)["test"]


def test_one_clip_more_moves_no_trained_clip_into_the_test_set(tmp_path):
    before, after = clips_of(tmp_path, 20), clips_of(tmp_path, 1, first=20)
    assert len(after) == 21
    for seed in range(200):
        trained = names_by_split(before, seed)["train"]
        assert not trained & names_by_split(after, seed)["test"], seed


def test_one_clip_less_moves_no_other_while_its_split_has_more(tmp_path):
    clips = clips_of(tmp_path, 100)
    for seed in range(20):
        parts = names_by_split(clips, seed)
        if min(map(len, parts.values())) < 2:
            continue
        without = names_by_split(clips[1:], seed)
        assert without == {split: names - {clips[0].name} for split, names in parts.items()}


def test_another_name_order_or_date_moves_no_clip(tmp_path):
    clips = clips_of(tmp_path / "a", 30)
    renamed = {}
    (tmp_path / "b").mkdir()
    for k, clip in enumerate(reversed(clips)):
        renamed[clip.name] = f"clip {k * 7 % 30}.npy"
        shutil.copyfile(clip.path, tmp_path / "b" / renamed[clip.name])
    one, two = names_by_split(clips, 5), names_by_split(find_clips(tmp_path / "b"), 5)
    assert {split: {renamed[name] for name in names} for split, names in one.items()} == two


def test_files_that_differ_outside_of_what_is_sampled_are_not_copies(tmp_path):
    data = bytearray(10 * splits.SAMPLE)
    (tmp_path / "a.npy").write_bytes(data)
    data[len(data) // 4] = 1
    (tmp_path / "b.npy").write_bytes(data)
    shutil.copy(tmp_path / "b.npy", tmp_path / "c.npy")
    kept, copies = splits.distinct(find_clips(tmp_path))
    assert [clip.name for clip in kept] == ["a.npy", "b.npy"]
    assert copies == [f"{tmp_path / 'c.npy'}: a copy of b.npy, counted once"]


# Films that look alike -----------------------------------------------------------------------------------------------


def film(seed: int, frames: int = 40) -> list[np.ndarray]:
    """Blobs that drift over a still background, (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    background = cv2.resize(rng.uniform(0, 120, (4, 6, 3)), (96, 64), interpolation=cv2.INTER_CUBIC)
    return with_blobs(background, rng, frames)


def with_blobs(background: np.ndarray, rng: np.random.Generator, frames: int) -> list[np.ndarray]:
    y, x = np.mgrid[:64, :96]
    place, velocity = rng.uniform(10, 60, (3, 2)), rng.uniform(-1, 1, (3, 2))
    film = []
    for t in range(frames):
        centres = place + t * velocity
        blobs = sum(np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 100) for cy, cx in centres)
        film.append((background + 120 * blobs[..., None]).clip(0, 255).astype(np.uint8))
    return film


def encode(path: Path, frames: list[np.ndarray], quality: int, size: tuple[int, int] = (96, 64)) -> Path:
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height = size
        stream.pix_fmt, stream.options = "yuv420p", {"crf": str(quality)}
        for frame in frames:
            frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def looks_alike(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    looks = [splits.look_of(np.stack(frames).transpose(0, 3, 1, 2)) for frames in (one, other)]
    return list(splits.look_alike(np.stack(looks))) == [(0, 1)]


def test_looks_survive_noise_and_brightness_but_not_another_film():
    one, rng = film(0), np.random.default_rng(0)
    noisy = [(frame + rng.normal(0, 12, frame.shape)).clip(0, 255).astype(np.uint8) for frame in one]
    brighter = [(frame * 0.97 + 3).astype(np.uint8) for frame in one]
    assert looks_alike(one, one)
    assert looks_alike(one, noisy)
    assert looks_alike(one, brighter)
    assert not looks_alike(one, film(1))
    assert not looks_alike(one, one[::-1])


def test_films_of_one_fixed_camera_do_not_look_alike():
    background = np.full((64, 96, 3), 60) + 60 * np.sin(np.arange(96) / 9)[None, :, None]
    one, other = (with_blobs(background, np.random.default_rng(seed), 40) for seed in (1, 2))
    assert not looks_alike(one, other)


def test_still_clips_of_neighbouring_grey_levels_do_not_look_alike():
    assert not looks_alike(*([np.full((32, 32, 3), grey, np.uint8)] * 8 for grey in (20, 25)))


def test_a_film_encoded_twice_is_warned_of_where_it_is_in_two_splits(tmp_path):
    films = [film(seed) for seed in range(12)]
    for seed, frames in enumerate(films):
        encode(tmp_path / f"{seed:02d}.mp4", frames, 23)
        encode(tmp_path / f"{seed:02d} again.mp4", frames, 35, size=(48, 32))
    datasets = {split: video.dataset(split, data_root=tmp_path, **SHAPES) for split in ("train", "val", "test")}
    split_of = {clip.name: split for split, data in datasets.items() for clip in data.clips}
    apart = {k for k in range(12) if split_of[f"{k:02d}.mp4"] != split_of[f"{k:02d} again.mp4"]}
    lines = splits.suspects(splits.split_manifest(datasets))
    assert len(lines) == len(apart)
    for k in apart:
        assert any(f"{k:02d}.mp4 (" in line and f"{k:02d} again.mp4 (" in line for line in lines)


def test_real_clips_encoded_anew_look_alike(tmp_path):
    """Five real films, and each of them encoded again in half the size; none looks like another one."""
    names = ("b0.mp4", "carphone_distorted.mp4", "odd444.mp4", "tree.avi", "vfr.mkv")
    if not all((CASES / name).is_file() for name in names):
        pytest.skip("the real clips are not beside this checkout")

    def decoded(path: Path) -> list[np.ndarray]:
        with av.open(str(path)) as container:
            return [cv2.resize(frame.to_ndarray(format="rgb24"), (320, 240)) for frame in container.decode(video=0)]

    films = [decoded(CASES / name) for name in names]
    films += [decoded(encode(tmp_path / f"{k}.mp4", film, 33, size=(160, 120))) for k, film in enumerate(films)]
    looks = np.stack([splits.look_of(np.stack(film).transpose(0, 3, 1, 2)) for film in films])
    assert list(splits.look_alike(looks)) == [(k, k + len(names)) for k in range(len(names))]


# What a run keeps ----------------------------------------------------------------------------------------------------


def manifest(**clips: str) -> splits.Manifest:
    """manifest(train="abc", test="d"): clips named a.mp4, …, of contents A, …."""
    return {
        split: [{"name": f"{letter}.mp4", "content": letter.upper()} for letter in names]
        for split, names in clips.items()
    }


def test_nothing_is_said_of_the_same_clips():
    run = manifest(train="abc", val="d", test="e")
    assert splits.check_manifest(run, run) == []
    assert splits.check_manifest(run, {"test": run["test"]}) == []


def test_other_names_of_the_same_clips_are_no_change():
    now = {"test": [{"name": "new name.mp4", "content": "E"}]}
    assert splits.check_manifest(manifest(train="abc", val="d", test="e"), now) == []


def test_what_is_new_and_gone_is_said():
    lines = splits.check_manifest(manifest(train="abc", val="d", test="ef"), manifest(train="ab", val="d", test="egh"))
    assert lines == [
        "train is not what it was when this run began: c.mp4 gone",
        "test is not what it was when this run began: g.mp4, h.mp4 new, f.mp4 gone",
    ]


def test_a_trained_clip_is_not_tested():
    with pytest.raises(UserError, match=r"b\.mp4 would be tested, but this run has trained on it") as error:
        splits.check_manifest(manifest(train="abc", val="d", test="e"), manifest(test="eb"))
    assert "\n" not in str(error.value)


def test_a_published_split_that_leaks_stays_testable():
    run = manifest(train="abc", val="d", test="ab")
    assert splits.check_manifest(run, {"test": run["test"]}) == []


def test_a_validated_clip_that_is_tested_is_said():
    lines = splits.check_manifest(manifest(train="abc", val="d", test="e"), manifest(test="ed"))
    assert lines[-1] == "test: d.mp4 validated this run, so chose its best checkpoint"


def test_a_trained_clip_that_was_encoded_again_in_place_is_not_tested():
    looks = [
        base64.b64encode(splits.look_of(np.stack(film(seed)).transpose(0, 3, 1, 2)).tobytes()).decode()
        for seed in (0, 1)
    ]
    run = {"train": [{"name": "a.mp4", "content": "A", "look": looks[0]}], "val": [], "test": []}
    with pytest.raises(UserError, match=r"a\.mp4 would be tested"):
        splits.check_manifest(run, {"test": [{"name": "a.mp4", "content": "B", "look": looks[0]}]})
    assert splits.check_manifest(run, {"test": [{"name": "a.mp4", "content": "B", "look": looks[1]}]}) == [
        "test is not what it was when this run began: a.mp4 new"
    ]


def test_a_run_keeps_its_clips_and_refuses_another_seed(tmp_path):
    for k in range(30):
        np.save(tmp_path / f"{k:02d}.npy", np.stack(film(k, frames=4)))
    run = tmp_path / "run"
    run.mkdir()

    def data(seed: int, *names: str) -> dict:
        return {split: video.dataset(split, data_root=tmp_path, **SHAPES | dict(seed=seed)) for split in names}

    first, lines = splits.settle_splits(None, data(1, "train", "val", "test"))
    assert lines == []
    splits.write_manifest(run, first)
    kept = json.loads((run / "splits.json").read_text())
    assert sorted(entry["name"] for clips in kept.values() for entry in clips) == [f"{k:02d}.npy" for k in range(30)]
    assert splits.check_splits(run, data(1, "test")) == []
    with pytest.raises(UserError, match=r"would be tested, but this run has trained on it"):
        splits.check_splits(run, data(2, "test"))
    gone = kept["train"][0]["name"]
    (tmp_path / gone).unlink()
    resumed, (line,) = splits.settle_splits(run, data(1, "train", "val", "test"))
    assert line == f"train is not what it was when this run began: {gone} gone"
    assert gone in [entry["name"] for entry in resumed["train"]]  # it was trained on all the same
    with pytest.raises(UserError, match=r"would be tested, but this run has trained on it"):
        splits.settle_splits(run, data(2, "train", "val", "test"))


def test_data_without_clips_is_not_checked(tmp_path):
    datasets = {"train": SimpleNamespace(), "test": SimpleNamespace()}
    manifest, lines = splits.settle_splits(None, datasets)
    splits.write_manifest(tmp_path, manifest)
    assert lines == []
    assert splits.read_manifest(tmp_path) == {"train": None, "test": None}
    assert splits.check_splits(tmp_path, datasets) == []
    assert splits.check_splits(None, datasets) == []


def test_a_checkpoint_without_its_run_is_tested_with_a_word(tmp_path):
    clips = clips_of(tmp_path / "clips", 3)
    (line,) = splits.check_splits(None, {"test": SimpleNamespace(clips=clips)})
    assert "not checked" in line


@pytest.mark.parametrize("text", ["", "[1]", '{"train": [{"name": "a"}]}', '{"train": [3]}', "\x00"])
def test_a_damaged_splits_json_is_named(tmp_path, text):
    (tmp_path / "splits.json").write_text(text)
    with pytest.raises(UserError, match=r"splits\.json: damaged") as error:
        splits.read_manifest(tmp_path)
    assert "\n" not in str(error.value)


def test_hundreds_of_files_are_listed_in_a_line():
    assert splits.listed(list("abc")) == "a, b, c"
    assert splits.listed(list("abcdefg")) == "a, b, c, d, e and 2 more"
