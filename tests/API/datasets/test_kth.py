"""KTH, on small files in the real formats, and on the official list of ranges where it is."""

from pathlib import Path

import av
import cv2
import data_roots
import numpy as np
import pytest

from API import UserError
from API.dataloader import SPLITS
from API.datasets import kth

SHAPES = dict(in_shape=(3, 1, 24, 32), out_shape=(3, 1, 24, 32), seed=1)
OFFICIAL = Path(__file__).parents[4] / "shared/cases/00sequences.txt"


@pytest.fixture(params=[data_roots.kth_official, data_roots.kth_folders], ids=["avi", "folders"])
def kth_root(request, tmp_path) -> Path:
    return request.param(tmp_path)


def numbers_in(data, index: int) -> list[int]:
    """The official numbers of a window's frames."""
    return [f[1] + 1 if isinstance(f, tuple) else int(Path(f).name[6:10]) for f in data.sources(index)[1]]


@pytest.fixture(scope="module")
def official() -> dict[str, list[tuple[int, int]]]:
    if not OFFICIAL.is_file():
        pytest.skip("the official list of ranges is not beside this checkout")
    return kth.read_ranges(OFFICIAL)


def backwards(numbers: list[int], length: int, stride: int) -> list[int]:
    """The field's loop, which goes through the frames one by one from the last: first positions, ascending."""
    starts, last = [], len(numbers) - 1
    while last >= length - 1:
        first = last - length + 1
        if numbers[last] - numbers[first] == length - 1:
            starts.append(first)
            last -= stride
        else:
            last -= 1
    return starts[::-1]


def test_the_official_ranges_give_the_windows_of_the_field(official):
    counts = dict.fromkeys(SPLITS, 0)
    for name, ranges in official.items():
        action, numbers = name.split("_")[1], kth.frames_of(ranges)
        stride = kth.stride_of(action, 30)
        starts = kth.window_starts(numbers, 30, stride)
        assert starts.tolist() == backwards(numbers.tolist(), 30, stride), name
        assert stride == (3 if action in ("jogging", "running") else 30)
        person = int(name[6:8])
        counts[next(split for split in SPLITS if person in kth.persons(split, seed=1))] += len(starts)
    assert len(official) == 599
    assert counts == {"train": 7528, "val": 1255, "test": 5045}
    assert counts["train"] + counts["val"] == 8783


def test_windows_are_laid_from_the_end_of_each_run_backwards(kth_root):
    data = kth.dataset("test", data_root=kth_root, **SHAPES)
    # 9 persons; runs of 20 and of 6 frames, windows of 6: 3 + 1 of boxing, which do not overlap, 5 + 1 of running
    assert len(data) == 9 * (3 + 1) + 9 * (5 + 1)
    starts = {}
    for index in range(len(data)):
        numbers = numbers_in(data, index)
        assert numbers == list(range(numbers[0], numbers[0] + 6))
        starts.setdefault(data.sources(index)[0], []).append(numbers[0])
    assert starts["boxing/person17_boxing_d1"] == [3, 9, 15, 25]
    assert starts["running/person17_running_d1"] == [3, 6, 9, 12, 15, 25]


def test_runs_shorter_than_a_window_give_none():
    numbers = np.array([1, 2, 3, 7, 8, 9, 10, 11, 20])
    assert kth.window_starts(numbers, 4, 4).tolist() == [4]
    assert kth.window_starts(numbers, 4, 1).tolist() == [3, 4]
    assert kth.window_starts(numbers[:3], 4, 1).tolist() == []
    assert kth.window_starts(numbers[:0], 4, 1).tolist() == []


def test_layouts_give_the_same_windows(tmp_path):
    makers = (("a", data_roots.kth_official), ("b", data_roots.kth_folders))
    one, two = (kth.dataset("test", data_root=make(tmp_path / name, [1, 17, 18]), **SHAPES) for name, make in makers)
    assert len(one) == len(two)
    for index in (0, 5, len(one) - 1):
        assert numbers_in(one, index) == numbers_in(two, index)
        assert (one[index][0] - two[index][0]).abs().mean() < 0.03  # two lossy codecs


def test_frames_are_resized_bilinearly(tmp_path):
    data = kth.dataset("test", data_root=data_roots.kth_folders(tmp_path, [17]), **SHAPES)
    picture = cv2.imread(str(data.sources(0)[1][0]), cv2.IMREAD_GRAYSCALE)
    resized = cv2.resize(picture, (32, 24), interpolation=cv2.INTER_LINEAR)
    assert np.abs((data[0][0][0, 0] * 255).numpy() - resized).max() <= 1  # grey of equal colours may round


def test_persons_are_in_one_split(kth_root):
    people = {}
    for split in SPLITS:
        data = kth.dataset(split, data_root=kth_root, **SHAPES)
        people[split] = {kth.person_of(clip) for clip in data.clips}
    assert people["test"] == set(range(17, 26))
    assert len(people["val"]) == 2
    assert people["train"] | people["val"] == set(range(1, 17))
    assert not people["train"] & people["val"]
    assert kth.persons("val", 1) != kth.persons("val", 2)


def cut_at_frame(path: Path, frame: int) -> None:
    """End an avi file in the middle of the data of a frame, counted from 0."""
    with av.open(str(path)) as container:
        position = [packet.pos for packet in container.demux(video=0) if packet.size][frame]
    path.write_bytes(path.read_bytes()[: position + 20])


def test_of_a_file_damaged_at_its_end_the_windows_before_the_damage_are_used_and_the_rest_told(tmp_path):
    root = data_roots.kth_official(tmp_path, [17, 18])
    whole = kth.dataset("test", data_root=root, **SHAPES)
    assert whole.skipped == []
    cut_at_frame(root / "kth/boxing/person17_boxing_d1_uncomp.avi", 16)
    data = kth.dataset("test", data_root=root, **SHAPES)  # without skip_bad
    windows = {tuple(numbers_in(data, i)) for i in range(len(data)) if data.sources(i)[0].startswith("boxing/person17")}
    assert windows == {tuple(range(3, 9)), tuple(range(9, 15))}  # as laid in the whole file; gone: from 15 and from 25
    assert len(whole) - len(data) == 2
    (told,) = data.skipped
    assert told.startswith("2 of 4 windows of ")
    assert "person17_boxing_d1_uncomp.avi, of which 16 frames can be read" in told
    again = kth.dataset("test", data_root=root, **SHAPES)  # from the cache
    assert len(again) == len(data)
    assert again.skipped == data.skipped
    assert (data[0][0] == whole[0][0]).all()


def test_a_file_of_which_nothing_can_be_read_stops_unless_skipped(tmp_path):
    root = data_roots.kth_official(tmp_path, [17])
    (root / "kth/boxing/person17_boxing_d1_uncomp.avi").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"person17_boxing_d1_uncomp\.avi.*--skip_bad"):
        kth.dataset("test", data_root=root, **SHAPES)
    data = kth.dataset("test", data_root=root, **SHAPES, skip_bad=True)
    assert [clip.name for clip in data.clips] == ["running/person17_running_d1"]


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="download_kth"):
        kth.dataset("train", data_root=tmp_path, **SHAPES)
    root = data_roots.kth_official(tmp_path, [17])
    (root / "kth/00sequences.txt").write_text("person17_boxing_d1 frames 9-3\n")
    with pytest.raises(ValueError, match=r"00sequences.txt, line 1"):
        kth.dataset("test", data_root=root, **SHAPES)
    (root / "kth/00sequences.txt").write_text("person17_boxing_d1 frames 1-30\n")
    with pytest.raises(ValueError, match=r"no line for person17_running_d1_uncomp.avi"):
        kth.dataset("test", data_root=root, **SHAPES)
    (root / "kth/00sequences.txt").unlink()
    with pytest.raises(ValueError, match="frame ranges"):
        kth.dataset("test", data_root=root, **SHAPES)


def test_counts_are_the_fields_where_the_data_is_complete():
    """Skipped without the data. The two layouts hold different frames, so each has counts of its own."""
    root = Path(__file__).parents[3] / "data"
    official, folders = (len(list(root.glob(f"kth/*/person*{end}"))) for end in ("_uncomp.avi", "_uncomp/"))
    if max(official, folders) < 599:
        pytest.skip("the whole of KTH is not in data/kth")
    shapes = dict(in_shape=(10, 1, 128, 128), out_shape=(20, 1, 128, 128), seed=1)
    data = kth.dataset("test", data_root=root, **shapes)
    assert data.skipped or len(data) == (5045 if official else 3167)


def test_a_video_that_is_there_as_file_and_as_folder_is_refused(tmp_path):
    data_roots.kth_official(tmp_path)
    data_roots.kth_folders(tmp_path)
    with pytest.raises(UserError, match=r"person.*_uncomp.* the same video as .*person.*keep one of them"):
        kth.dataset("test", data_root=tmp_path, **SHAPES)
