import gzip
import hashlib
import pickle

import numpy as np
import pytest
import torch
from data_roots import idx_file, moving_mnist

from API import UserError
from API.datasets import mmnist

SHAPES = dict(in_shape=(10, 1, 64, 64), out_shape=(10, 1, 64, 64), seed=1)
IMAGES, SEQUENCES = mmnist.IMAGES, mmnist.SEQUENCES


@pytest.fixture
def mnist_root(tmp_path):
    return moving_mnist(tmp_path)


def test_idx_images_come_back_as_written(tmp_path):
    images = np.arange(3 * 28 * 28).reshape(3, 28, 28).astype(np.uint8)
    assert np.array_equal(mmnist.read_idx_images(idx_file(tmp_path / "a.gz", images)), images)


def test_the_test_set_is_the_file(mnist_root):
    data = mmnist.dataset("test", data_root=mnist_root, **SHAPES)
    file = np.load(mnist_root / SEQUENCES)
    assert len(data) == 6
    past, future = data[4]
    assert np.array_equal(torch.cat([past, future])[:, 0].numpy(), file[:, 4].astype(np.float32) / 255)


def test_training_and_validation_digits_are_different_images(mnist_root):
    train, val = (mmnist.dataset(split, data_root=mnist_root, **SHAPES) for split in ("train", "val"))
    assert len(train) == 10_000
    assert not {d.tobytes() for d in train.digits} & {d.tobytes() for d in val.digits}
    assert len(train.digits) + len(val.digits) == 60


def test_val_digits_is_how_many_are_held_out(mnist_root):
    every = {d.tobytes() for d in mmnist.read_idx_images(mnist_root / IMAGES)}
    for held_out in (1, 20, 59):
        train, val = (
            mmnist.dataset(split, data_root=mnist_root, **SHAPES, val_digits=held_out) for split in ("train", "val")
        )
        assert len(val.digits) == held_out
        assert {d.tobytes() for d in train.digits} | {d.tobytes() for d in val.digits} == every
        assert len(train.digits) + len(val.digits) == 60
        assert val.note == ""


def test_without_held_out_digits_training_has_all_and_validation_other_motions_and_says_so(mnist_root):
    train, val = (mmnist.dataset(split, data_root=mnist_root, **SHAPES, val_digits=0) for split in ("train", "val"))
    assert len(train.digits) == len(val.digits) == 60
    assert "digits that are trained on" in val.note
    seeds = [mmnist.dataset("val", data_root=mnist_root, **SHAPES | dict(seed=s), val_digits=0)[3][0] for s in (1, 2)]
    assert torch.equal(*seeds)  # the same for every run
    starts = {tuple(corners[:, :, 0].ravel()) for corners in (train.script([n])[1][0] for n in range(2000))}
    shared = sum(tuple(val.script([n])[1][0][:, :, 0].ravel()) in starts for n in range(200))
    assert shared <= 3  # of 37^4 beginnings


@pytest.mark.parametrize("digits", [60, 61])
def test_holding_out_all_digits_is_refused(mnist_root, digits):
    with pytest.raises(UserError, match=f"--val_digits {digits}: must leave some of the 60 digits"):
        mmnist.dataset("train", data_root=mnist_root, **SHAPES, val_digits=digits)


def test_only_the_file_of_the_published_sum_goes_without_a_note(mnist_root, monkeypatch):
    data = mmnist.dataset("test", data_root=mnist_root, **SHAPES)
    found = hashlib.md5((mnist_root / SEQUENCES).read_bytes()).hexdigest()
    assert data.note == f"generated, not the published set: mnist_test_seq.npy has md5 {found}"
    monkeypatch.setattr(mmnist, "MD5", found)
    assert mmnist.dataset("test", data_root=mnist_root, **SHAPES).note == ""


@pytest.mark.parametrize(
    ("in_shape", "out_shape"), [((10, 1, 32, 32), (10, 1, 32, 32)), ((10, 1, 64, 64), (11, 1, 64, 64))]
)
def test_shapes_the_test_file_does_not_have_are_refused(mnist_root, in_shape, out_shape):
    with pytest.raises(ValueError, match="--in_shape"):
        mmnist.dataset("test", data_root=mnist_root, in_shape=in_shape, out_shape=out_shape, seed=1)


def break_images(path, how):
    if how == "missing":
        path.unlink()
    elif how == "no gzip":
        path.write_bytes(b"plain text, not gzip")
    elif how == "cut gzip":
        path.write_bytes(path.read_bytes()[:-2000])
    elif how == "damaged gzip":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    elif how == "labels":
        idx_file(path, np.zeros((10, 28, 28)), magic=2049)
    elif how == "short":
        with gzip.open(path, "wb") as file:
            file.write(np.array([2051, 60, 28, 28], dtype=">i4").tobytes() + bytes(100))
    elif how == "huge header":
        with gzip.open(path, "wb") as file:
            file.write(np.array([2051, 2**31 - 1, 2**15, 2**15], dtype=">i4").tobytes())
    elif how == "empty":
        path.write_bytes(b"")


BROKEN_IMAGES = ["missing", "no gzip", "cut gzip", "damaged gzip", "labels", "short", "huge header", "empty"]


@pytest.mark.parametrize("how", BROKEN_IMAGES)
def test_broken_images_are_named_in_one_line_with_the_way_out(mnist_root, how):
    break_images(mnist_root / IMAGES, how)
    with pytest.raises(UserError) as error:
        mmnist.dataset("train", data_root=mnist_root, **SHAPES)
    message = str(error.value)
    assert "\n" not in message
    assert IMAGES in message
    assert "download_mmnist.sh" in message
    assert "--dataname digits" in message


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was run",))


def break_sequences(path, how):
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    elif how == "text":
        path.write_text("hello")
    elif how == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    elif how == "objects":
        np.save(path, np.array([Bomb()], dtype=object), allow_pickle=True)
    elif how == "shape":
        np.save(path, np.zeros((10, 6, 64, 64), np.uint8))
    elif how == "dtype":
        np.save(path, np.zeros((20, 6, 64, 64), np.float32))
    elif how == "empty":
        path.write_bytes(b"")


@pytest.mark.parametrize("how", ["missing", "cut", "text", "pickle", "objects", "shape", "dtype", "empty"])
def test_broken_sequences_are_named_in_one_line_and_never_unpickled(mnist_root, how):
    break_sequences(mnist_root / SEQUENCES, how)
    with pytest.raises(UserError) as error:
        mmnist.dataset("test", data_root=mnist_root, **SHAPES)
    message = str(error.value)
    assert "\n" not in message
    assert SEQUENCES in message
    assert "download_mmnist.sh" in message
