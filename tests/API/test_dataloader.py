import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

from API.dataloader import EpochBatches, Flag, load_data

REPO = Path(__file__).parents[2]
SHAPES = dict(in_shape=(4, 1, 32, 32), out_shape=(4, 1, 32, 32), batch_size=4, val_batch_size=7)


class Stored(Dataset):
    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n


def first_batches(loader, epoch: int, count: int = 3) -> list[torch.Tensor]:
    loader.batch_sampler.epoch = epoch
    return [past for _, (past, _) in zip(range(count), loader)]


def test_batches_are_the_same_whatever_the_number_of_workers():
    alone, two = (load_data("digits", **SHAPES, num_workers=n, splits=["train"])["train"] for n in (0, 2))
    for epoch in (0, 5):
        assert all(torch.equal(a, b) for a, b in zip(first_batches(alone, epoch), first_batches(two, epoch)))


def test_epochs_differ_and_come_back():
    loader = load_data("digits", **SHAPES, splits=["train"])["train"]
    zero, one = first_batches(loader, 0), first_batches(loader, 1)
    assert not torch.equal(zero[0], one[0])
    assert torch.equal(zero[0], first_batches(loader, 0)[0])


def test_test_set_comes_whole_and_in_order_with_a_ragged_last_batch():
    loader = load_data("digits", **SHAPES, splits=["test"])["test"]
    sizes = [len(past) for past, _ in loader]
    assert sizes == [7] * 71 + [3]
    assert torch.equal(next(iter(loader))[0][2], loader.dataset[2][0])


def test_stored_data_is_shuffled_anew_each_epoch_each_item_once():
    batches = EpochBatches(Stored(20), 5, shuffle=True, seed=1)
    epochs = []
    for batches.epoch in range(3):
        epochs.append([i for batch in batches for i in batch])
        assert sorted(epochs[-1]) == list(range(20))
    assert epochs[0] != epochs[1] != epochs[2]
    batches.epoch = 1
    assert [i for batch in batches for i in batch] == epochs[1]


def test_an_epoch_can_be_entered_in_its_middle():
    batches = EpochBatches(Stored(20), 4, shuffle=True, seed=1)
    whole = list(batches)
    batches.start = 3
    assert list(batches) == whole[3:]


def test_training_takes_whole_batches_but_for_the_only_one():
    assert [len(b) for b in EpochBatches(Stored(11), 4, shuffle=True, seed=0)] == [4, 4]
    assert [len(b) for b in EpochBatches(Stored(3), 4, shuffle=True, seed=0)] == [3]
    assert [len(b) for b in EpochBatches(Stored(11), 4, shuffle=False, seed=0)] == [4, 4, 3]


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="--dataname nonsense: unknown, choose from mmnist, digits"):
        load_data("nonsense", **SHAPES)


def test_the_global_random_generator_is_left_alone():
    before = torch.get_rng_state()
    next(iter(load_data("digits", **SHAPES, splits=["train"])["train"]))
    assert torch.equal(before, torch.get_rng_state())


def full(self) -> None:
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)")


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="the patch reaches forked processes only")
def test_batches_arrive_though_there_is_no_shared_memory_and_one_line_says_so(monkeypatch, capfd):
    alone = load_data("digits", **SHAPES, splits=["train"])["train"]
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    loader = load_data("digits", **SHAPES, num_workers=2, splits=["train"])["train"]
    for epoch in (0, 1):
        for one, two in zip(first_batches(alone, epoch, 6), first_batches(loader, epoch, 6)):
            assert torch.equal(one, two)
            assert two.is_contiguous()
            two.add_(1)  # writable
    assert 1 <= capfd.readouterr().err.count("warning: /dev/shm") <= 2  # workers may find out at the same time


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="the patch reaches forked processes only")
def test_workers_move_batches_to_shared_memory_themselves(monkeypatch):
    """Left to multiprocessing's own thread, a full /dev/shm would lose the batch without an error."""
    monkeypatch.setattr(torch.Tensor, "share_memory_", lambda self: self.fill_(7))
    loader = load_data("digits", **SHAPES, num_workers=1, splits=["val"])["val"]
    assert all((frames == 7).all() for batch in loader for frames in batch)
    assert not (loader.collate_fn([loader.dataset[0]])[0] == 7).any()  # this process needs none


KILLED = """
import multiprocessing, os, signal, sys
from API.datasets import digits
from API.dataloader import load_data

def dies(self, indices):
    # At the worst instant: while it looks whether to end, in _worker_loop, which an Event does under a lock.
    frame = sys._getframe()
    while "done_event" not in frame.f_locals:
        frame = frame.f_back
    lock = getattr(frame.f_locals["done_event"], "_cond", None)
    if lock is not None:
        lock.acquire()
    os.kill(os.getpid(), signal.SIGKILL)

multiprocessing.set_start_method("fork")
digits.SEQUENCES = {"train": 8, "val": 4, "test": 4}
shape = (4, 1, 32, 32)
loaders = load_data("digits", in_shape=shape, out_shape=shape, batch_size=2, val_batch_size=2, num_workers=2)
type(loaders["train"].dataset).__getitems__ = dies
try:
    next(iter(loaders["train"]))
except RuntimeError as error:
    print(error)
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="processes here are not forked")
def test_a_data_process_killed_at_the_worst_instant_keeps_nobody_waiting():
    command = [sys.executable, "-c", KILLED]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPO, timeout=60)
    assert "exited unexpectedly" in done.stdout or "is killed by signal" in done.stdout


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_flag_is_seen_by_processes_however_they_start(method):
    context, flag = multiprocessing.get_context(method), Flag()
    assert not flag.is_set()
    process = context.Process(target=flag.set)
    process.start()
    process.join()
    assert flag.is_set()
