"""Tiny data on disk, a tiny model, and the release's numbers where they are at hand."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of what tests start, too: workers of pytest share the cores

import pytest
import torch

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "release_tiny.pt"
TINY = dict(in_shape=(4, 1, 32, 32), out_shape=(4, 1, 32, 32), hid_S=8, layer_config=(1, 4, 0, 1))
# The same on the command line, with a data set that needs no files.
TINY_FLAGS = [
    "--dataname", "digits", "--in_shape", "4", "1", "32", "32", "--out_shape", "4", "1", "32", "32",
    "--hid_S", "8", "--layer_config", "1", "1", "1", "1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _repeatable():
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the models here are too small to share among cores


@pytest.fixture(scope="session")
def golden() -> dict:
    """The release's weights, inputs and outputs of a small configuration."""
    if not GOLDEN.exists():
        pytest.skip("the release's numbers are not beside this checkout")
    return torch.load(GOLDEN, weights_only=True)
