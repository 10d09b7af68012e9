import pytest
import torch
from torch.utils.data import Dataset

from API.dataloader import EpochBatches, load_data

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
