"""The weights that come with the repo."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import core
from API.dataloader import load_data
from DFDNet import DFDNet

WEIGHTS = Path(__file__).parents[1] / "weights" / "moving_mnist"
SHAPE = (10, 1, 64, 64)


def test_the_shipped_model_predicts_digits_that_it_has_never_seen():
    flags = dict(in_shape=SHAPE, out_shape=SHAPE, batch_size=4, val_batch_size=24, splits=("test",))
    past, future = next(iter(load_data("digits", **flags)["test"]))  # scikit-learn's; it was trained on MNIST's
    predictor = core.load_predictor(WEIGHTS, "cpu", "fp32")
    predicted = np.stack([predictor(video) for video in past[:, :, 0].numpy()])
    truth = future[:, :, 0].numpy()
    mse = np.square(predicted - truth).sum((2, 3)).mean()
    copied = np.square(past[:, -1:, 0].numpy() - truth).sum((2, 3)).mean()
    assert mse < 0.4 * copied
    assert mse < 0.5 * np.square(truth).sum((2, 3)).mean()  # black


def test_it_loads_as_a_module_that_predicts_the_same():
    model = DFDNet.from_pretrained(WEIGHTS)
    video = np.random.default_rng(1).random((10, 64, 64), np.float32)
    with torch.no_grad():
        future = model(torch.from_numpy(video)[None, :, None])[0, :, 0].clamp(0, 1).numpy()
    assert np.abs(core.load_predictor(WEIGHTS, "cpu", "fp32")(video) - future).max() < 0.01  # a step of uint8 is 0.004


def test_it_is_small_and_says_where_it_comes_from():
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) <= 4_000_000
    flags, card = json.loads((WEIGHTS / "config.json").read_text()), (WEIGHTS / "README.md").read_text()
    assert flags["dataname"] == "mmnist"
    for word in ("commit", "PyTorch", "10000 test sequences", "generated, not the published set", "copy last"):
        assert word in card
    with pytest.raises(StopIteration):  # no path of the machine that it was made on
        next(line for line in card.splitlines() if "/tmp" in line or "/home" in line)
