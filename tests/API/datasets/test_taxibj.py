"""TaxiBJ, on small files in the real formats."""

import data_roots
import h5py
import numpy as np
import pytest

from API.dataloader import SPLITS
from API.datasets import taxibj
from API.datasets.report import overlaps

SHAPES = dict(in_shape=(4, 2, 32, 32), out_shape=(4, 2, 32, 32), seed=1)


def test_npz_is_scaled_to_zero_to_one_and_split_as_in_the_file(tmp_path):
    data_roots.taxi_npz(tmp_path)
    stored = np.load(tmp_path / "taxibj/dataset.npz")
    data = taxibj.dataset("test", data_root=tmp_path, **SHAPES)
    assert len(data) == 7
    past, future = data[3]
    assert np.allclose(past, (stored["X_test"][3] + 1) / 2, atol=1e-6)
    assert np.allclose(future, (stored["Y_test"][3] + 1) / 2, atol=1e-6)
    lengths = {split: len(taxibj.dataset(split, data_root=tmp_path, **SHAPES)) for split in SPLITS}
    assert lengths == {"train": 40 - 4 - 7, "val": 4, "test": 7}  # 7 that could overlap validation are left out


def test_h5_windows_have_no_gap_and_the_last_four_weeks_test(tmp_path):
    flows = data_roots.taxi_h5(tmp_path)
    datasets = {split: taxibj.dataset(split, data_root=tmp_path, **SHAPES) for split in SPLITS}
    assert len(datasets["test"]) == 28 * 48 - 7
    largest = max(*(flows[year].max() for year in ("BJ13", "BJ14", "BJ15")), flows["BJ16"][: 3 * 48 - 1].max())
    first = datasets["test"][0][0]
    assert np.allclose(first, (flows["BJ16"][3 * 48 - 1 : 3 * 48 + 3] / largest).clip(0, 1), atol=1e-6)
    assert all("share nothing" in line for line in overlaps(datasets))
    # 3 runs of 144, then 20 and 123 half hours; val is the newest tenth
    whole = sum(n - 7 for n in (144, 144, 144, 20, 123))
    assert whole - 2 * 7 <= len(datasets["train"]) + len(datasets["val"]) <= whole


def test_dates_of_h5_may_be_numbers(tmp_path):
    data_roots.taxi_h5(tmp_path)
    before = taxibj.dataset("test", data_root=tmp_path, **SHAPES)
    for path in (tmp_path / "taxibj").glob("*.h5"):
        with h5py.File(path, "r+") as file:
            dates = file["date"][:].astype(np.int64)
            del file["date"]
            file["date"] = dates
    after = taxibj.dataset("test", data_root=tmp_path, **SHAPES)
    assert np.array_equal(after.windows, before.windows)
    assert np.array_equal(after.frames, before.frames)


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
def test_npz_mistakes_are_named(tmp_path, changes, words):
    data_roots.taxi_npz(tmp_path, **changes)
    with pytest.raises(ValueError, match=rf"dataset\.npz: .*{words}") as error:
        taxibj.dataset("test", data_root=tmp_path, **SHAPES)
    assert "\n" not in str(error.value)


def test_damaged_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"dataset\.npz is missing"):
        taxibj.dataset("test", data_root=tmp_path, **SHAPES)
    data_roots.taxi_h5(tmp_path)
    broken = tmp_path / "taxibj/BJ15_M32x32_T30_InOut.h5"
    for content in ("no data", "text", "missing"):
        if content == "no data":
            with h5py.File(broken, "w") as file:
                file["date"] = np.zeros(3)
        elif content == "text":
            broken.write_text("hello")
        else:
            broken.unlink()
        with pytest.raises(ValueError, match="BJ15") as error:
            taxibj.dataset("test", data_root=tmp_path, **SHAPES)
        assert "\n" not in str(error.value)
    (tmp_path / "taxibj/dataset.npz").write_text("hello")
    with pytest.raises(ValueError, match="not a sound npz"):
        taxibj.dataset("test", data_root=tmp_path, **SHAPES)
