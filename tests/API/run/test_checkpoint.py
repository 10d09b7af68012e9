"""Checkpoints: whole at every instant, on any file system, and never a program."""

import errno
import multiprocessing
import os
import pickle
import random
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from API import UserError
from API.run.checkpoint import (
    Saver,
    last_checkpoint,
    load_checkpoint,
    on_host,
    previous,
    random_states,
    restore_random_states,
    save_checkpoint,
)


def state() -> dict:
    return {
        "model": {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)},
        "epoch": 2,
        "config": {"lr": 0.1, "s": [1, 2]},
    }


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    save_checkpoint(tmp_path / "a.pth", state())
    loaded = load_checkpoint(tmp_path / "a.pth")
    assert torch.equal(loaded["model"].pop("w"), torch.arange(6.0).view(2, 3))
    assert loaded == {"model": {"n": torch.tensor(3)}, "epoch": 2, "config": {"lr": 0.1, "s": [1, 2]}}
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "a.pth", state())
    before = (tmp_path / "a.pth").read_bytes()

    def full_disk(content, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(ValueError, match=r"a\.pth .No space left on device"):
        save_checkpoint(tmp_path / "a.pth", state())
    assert (tmp_path / "a.pth").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


class Bomb:
    def __reduce__(self):
        return (os.mkdir, (os.environ["BOMB"],))


@pytest.mark.parametrize(
    "how", ["missing", "cut", "flipped", "text", "empty", "a list", "pickle", "zipped pickle", "folder"]
)
def test_what_is_no_sound_checkpoint_is_refused_in_one_line_and_never_run(tmp_path, monkeypatch, how):
    monkeypatch.setenv("BOMB", str(tmp_path / "the bomb went off"))
    path = tmp_path / "a.pth"
    save_checkpoint(path, state())
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[:-500])
    elif how == "flipped":  # a bit of a weight
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("data/0"))
            at = data.index(archive.read(name))
        path.write_bytes(data[: at + 5] + bytes([data[at + 5] ^ 1]) + data[at + 6 :])
    elif how == "text":
        path.write_text("hello")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "a list":
        torch.save([1, 2], path)
    elif how == "pickle":
        path.write_bytes(pickle.dumps(Bomb(), protocol=2))
    elif how == "zipped pickle":
        torch.save({"config": {}, "model": Bomb()}, path)
    elif how == "folder":
        path.unlink()
        path.mkdir()
    with pytest.raises(ValueError, match=r"a\.pth") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "the bomb went off").exists()


def test_random_states_come_back(tmp_path):
    def draw():
        return random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002

    draw()
    save_checkpoint(tmp_path / "a.pth", random_states())
    expected = draw()
    draw()
    restore_random_states(load_checkpoint(tmp_path / "a.pth"))
    assert draw() == expected


@pytest.fixture
def no_hard_links(monkeypatch):
    """A file system as exFAT, FAT, Google Drive and many network drives are."""

    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)


def epochs_in(folder: Path) -> dict[str, int]:
    return {path.name: load_checkpoint(path)["epoch"] for path in folder.iterdir()}


def test_without_hard_links_the_last_two_checkpoints_are_kept_as_with_them(tmp_path, no_hard_links):
    last = tmp_path / "last.pth"
    for epoch in (1, 2, 3):
        save_checkpoint(last, state() | {"epoch": epoch})
    assert epochs_in(tmp_path) == {"last.pth": 3, "last.previous.pth": 2}


def test_without_hard_links_a_write_that_fails_leaves_a_checkpoint_to_go_on_from(tmp_path, no_hard_links, monkeypatch):
    last, replace = tmp_path / "checkpoints/last.pth", Path.replace
    last.parent.mkdir()
    save_checkpoint(last, state() | {"epoch": 1})

    def fails_for_the_new_one(path, target):
        if path.suffix == ".partial":
            raise OSError(errno.EIO, "Input/output error")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fails_for_the_new_one)
    with pytest.raises(UserError, match=r"last\.pth .Input/output error"):
        save_checkpoint(last, state() | {"epoch": 2})
    assert last_checkpoint(tmp_path)[1]["epoch"] == 1


def test_without_hard_links_a_kill_at_any_instant_leaves_a_whole_checkpoint(tmp_path, no_hard_links):
    chance, folder, epoch = random.Random(0), tmp_path / "checkpoints", 0
    folder.mkdir()
    context = multiprocessing.get_context("fork")
    saved = context.Value("i", 0)

    def save_for_ever(epoch: int) -> None:
        while True:
            epoch += 1
            weights = torch.full((1000,), epoch)
            save_checkpoint(folder / "last.pth", {"epoch": epoch, "w": weights}, [folder / "best.pth"])
            saved.value = epoch

    for _ in range(20):
        process = context.Process(target=save_for_ever, args=(epoch,))
        process.start()
        while saved.value == epoch:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.01))
        process.kill()
        process.join()
        found = last_checkpoint(tmp_path)[1]
        assert saved.value <= found["epoch"] <= saved.value + 1
        assert saved.value <= load_checkpoint(folder / "best.pth")["epoch"] <= saved.value + 1
        saved.value = epoch = found["epoch"]


def test_best_is_the_same_file_as_last_and_stays_when_last_moves_on(tmp_path):
    best, last = tmp_path / "best.pth", tmp_path / "last.pth"
    with Saver() as saver:
        saver.save(state() | {"epoch": 1}, best, last)
        saver.wait()
        assert best.samefile(last)
        saver.save(state() | {"epoch": 2}, last)
        saver.wait()
        assert epochs_in(tmp_path) == {"best.pth": 1, "last.pth": 2, "last.previous.pth": 1}
        saver.save(state() | {"epoch": 3}, best, last)
    assert epochs_in(tmp_path) == {"best.pth": 3, "last.pth": 3, "last.previous.pth": 2}


def test_without_hard_links_best_is_a_copy(tmp_path, no_hard_links):
    best, last = tmp_path / "best.pth", tmp_path / "last.pth"
    with Saver() as saver:
        saver.save(state(), best, last)
    assert best.read_bytes() == last.read_bytes()
    assert not best.samefile(last)
    assert {path.name for path in tmp_path.iterdir()} == {"best.pth", "last.pth"}


def test_best_is_in_place_before_last_says_so(tmp_path, monkeypatch):
    """A kill between the two must not leave a last.pth that remembers a best error whose weights are nowhere."""
    order, replace = [], Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, target: (order.append(target.name), replace(path, target))[1])
    save_checkpoint(tmp_path / "last.pth", state(), [tmp_path / "best.pth"])
    assert order == ["best.pth", "last.pth"]


def test_what_is_saved_is_a_copy_in_value_type_and_layout(tmp_path):
    tensors = {
        "plain": torch.randn(3, 4),
        "transposed": torch.randn(3, 4).T,
        "expanded": torch.randn(3, 1).expand(3, 4),
        "channels last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "half": torch.randn(5).bfloat16(),
        "learned": torch.nn.Parameter(torch.randn(2)),
    }
    before, gpus = {name: value.detach().clone() for name, value in tensors.items()}, set()
    copy = on_host({"a": [tensors, (1, "x")]}, gpus)
    for name, value in tensors.items():
        if name != "expanded":
            value.detach().add_(1)  # training goes on
    assert copy["a"][1] == (1, "x")
    assert gpus == set()
    for name, value in copy["a"][0].items():
        assert torch.equal(value, before[name]), name
        assert value.dtype == before[name].dtype
        assert not value.requires_grad


def test_numbers_of_numpy_come_back_as_plain_ones(tmp_path):
    """A schedule with NumPy in it leaves them in the optimizer's state."""
    state = {"lr": np.float64(0.1), "groups": [{"lr": np.float32(0.5), "betas": (np.int64(2), True)}], "none": None}
    with Saver() as saver:
        saver.save(state, tmp_path / "last.pth")
        saver.wait()
    back = load_checkpoint(tmp_path / "last.pth")
    assert back == {"lr": 0.1, "groups": [{"lr": 0.5, "betas": (2, True)}], "none": None}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_copies_from_a_gpu_are_pinned_wait_for_nothing_and_hold_the_values_of_their_step(tmp_path):
    busy, w = torch.randn(4096, 4096, device="cuda"), torch.zeros(2**22, device="cuda")
    with Saver() as saver:
        saver.save({"w": w}, tmp_path / "first.pth")  # allocates the pinned memory
        saver.wait()
        for _ in range(200):
            busy = busy @ busy.T / 64
        done = torch.cuda.Event()
        w += 1
        saver.save({"w": w}, tmp_path / "last.pth")
        done.record()
        assert not done.query()  # save has returned, and the GPU is still at the products
        w += 1
    assert torch.equal(load_checkpoint(tmp_path / "last.pth")["w"], torch.ones(2**22))
    assert on_host(w, set()).is_pinned()


def test_a_checkpoint_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "a.pth", state())

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(UserError, match=r"a\.pth: cannot be read .Permission denied"):
        load_checkpoint(tmp_path / "a.pth")


def test_the_checkpoint_before_is_found_where_a_kill_left_it_alone(tmp_path):
    last = tmp_path / "checkpoints/last.pth"
    last.parent.mkdir()
    save_checkpoint(last, state())
    last.rename(previous(last))
    assert last_checkpoint(tmp_path)[0] == previous(last)
