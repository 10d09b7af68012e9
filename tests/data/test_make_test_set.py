"""data/moving_mnist/make_test_set.py, on small numbers of digits and sequences."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from data_roots import idx_file

from API import UserError
from API.datasets import mmnist

SCRIPT = Path(__file__).parents[2] / "data/moving_mnist/make_test_set.py"


@pytest.fixture(scope="module")
def script():
    spec, path = importlib.util.spec_from_file_location("make_test_set", SCRIPT), list(sys.path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


@pytest.fixture
def digits(tmp_path) -> np.ndarray:
    """Twenty that differ in their grey level, in the file that the script reads."""
    digits = np.full((20, 28, 28), 10, np.uint8) + np.arange(0, 200, 10, dtype=np.uint8)[:, None, None]
    idx_file(tmp_path / "t10k-images-idx3-ubyte.gz", digits)
    return digits


def test_a_test_set_has_the_published_format_and_is_the_same_every_time(script, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "AT_ONCE", 3)
    script.make(tmp_path / "t10k-images-idx3-ubyte.gz", tmp_path / "one.npy", 7)
    script.make(tmp_path / "t10k-images-idx3-ubyte.gz", tmp_path / "two.npy", 7)
    one = np.load(tmp_path / "one.npy")
    assert one.shape == (20, 7, 64, 64)
    assert one.dtype == np.uint8
    assert np.array_equal(one, np.load(tmp_path / "two.npy"))
    assert len({one[:, i].tobytes() for i in range(7)}) == 7
    assert set(np.unique(one)) <= {0, *digits[:, 0, 0].tolist()}
    moved = np.abs(np.diff(one.astype(int), axis=0)).sum((2, 3)) > 0
    assert moved.all()  # every frame differs from the one before
    assert sorted(path.name for path in tmp_path.glob("*.npy*")) == ["one.npy", "two.npy"]


def test_what_is_scored_on_it_says_that_it_is_generated(script, digits, tmp_path):
    (tmp_path / "moving_mnist").mkdir()
    script.make(tmp_path / "t10k-images-idx3-ubyte.gz", tmp_path / mmnist.SEQUENCES, 4)
    shape = (10, 1, 64, 64)
    data = mmnist.dataset("test", data_root=tmp_path, in_shape=shape, out_shape=shape, seed=1)
    assert len(data) == 4
    assert data.note.startswith("generated, not the published set")


def test_no_file_is_written_over_and_what_is_missing_is_named(script, digits, tmp_path):
    (tmp_path / "there.npy").write_bytes(b"published")
    with pytest.raises(UserError, match=r"there\.npy is there already"):
        script.make(tmp_path / "t10k-images-idx3-ubyte.gz", tmp_path / "there.npy", 4)
    assert (tmp_path / "there.npy").read_bytes() == b"published"
    with pytest.raises(UserError, match=r"nothing\.gz is missing"):
        script.make(tmp_path / "nothing.gz", tmp_path / "new.npy", 4)
    with pytest.raises(UserError, match=r"new\.npy: cannot be written"):
        script.make(tmp_path / "t10k-images-idx3-ubyte.gz", tmp_path / "no folder/new.npy", 4)
