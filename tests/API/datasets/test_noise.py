import pickle

import pytest
import torch

from API.dataloader import load_data
from API.datasets.noise import NoisyPast

SHAPE = (10, 1, 64, 64)


def loaders(noise: float, **flags) -> dict:
    flags = dict(in_shape=SHAPE, out_shape=SHAPE, batch_size=4, val_batch_size=4, noise=noise) | flags
    return load_data("digits", **flags)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_noise_of_the_asked_deviation_is_on_the_past_alone(split):
    clean, noisy = (next(iter(loaders(sigma)[split])) for sigma in (0.0, 0.2))
    difference = noisy[0] - clean[0]
    assert torch.equal(noisy[1], clean[1])
    assert abs(difference.mean()) < 0.2 / difference.numel() ** 0.5 * 4
    assert difference.std().item() == pytest.approx(0.2, rel=0.01)
    assert noisy[0].is_contiguous()


def test_noise_depends_on_seed_and_item_and_on_nothing_else():
    data = loaders(0.1)["train"].dataset
    batch = data.__getitems__([5, 90_000, 2])[0]
    assert torch.equal(batch[1], pickle.loads(pickle.dumps(data))[90_000][0])
    noise = [
        NoisyPast(data.data, 1.0, seed)[index][0] - data.data[index][0] for seed, index in ((1, 5), (2, 5), (1, 6))
    ]
    assert not torch.allclose(noise[0], noise[1], atol=0.1)
    assert not torch.allclose(noise[0], noise[2], atol=0.1)


def test_every_seed_is_tested_under_the_same_noise():
    first, second = (next(iter(loaders(0.1, seed=seed)["test"])) for seed in (1, 2))
    assert torch.equal(first[0], second[0])


def test_a_noisy_data_set_is_otherwise_the_one_it_was():
    clean, noisy = (loaders(sigma)["train"].dataset for sigma in (0.0, 0.1))
    assert noisy.generated
    assert len(noisy) == len(clean)
    assert noisy.sources(3) == clean.sources(3)
    assert "0.1" in noisy.note
    assert not hasattr(noisy, "clips")
