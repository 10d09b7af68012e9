import numpy as np
import pytest
import torch

from API import UserError
from API.clips.scale import Scale


def test_values_come_back_from_the_unit_interval():
    values = np.random.default_rng(0).uniform(-3, 9, (5, 2, 4, 6)).astype(np.float32)
    scale = Scale([-3, 9, 0, 300], 2)
    unit = scale.to_unit(values)
    assert unit.dtype == np.float32
    assert np.allclose(unit[:, 0], (values[:, 0] + 3) / 12, atol=1e-6)
    assert np.allclose(unit[:, 1], values[:, 1] / 300, atol=1e-6)
    assert np.allclose(scale.to_values(unit), values, atol=1e-4)
    assert np.allclose(Scale([-3, 9], 2).to_unit(values), (values + 3) / 12, atol=1e-6)


def test_predictions_have_the_limits_of_the_channels_that_are_predicted():
    scale = Scale([0, 1, 10, 20, 100, 300], 3, [1, 2])
    assert scale.spans == [10, 200]
    assert scale.to_values(np.full((1, 2, 1, 1), 0.5)).flatten().tolist() == [15, 200]
    past = torch.arange(24.0).view(1, 2, 3, 2, 2)
    assert torch.equal(scale.known(past), past[:, :, 1:])
    assert Scale([0, 1], 3).known(past) is past


@pytest.mark.parametrize(
    ("limits", "targets", "message"),
    [
        ([1, 1], None, "--value_range 1 1: each LOW"),
        ([0, np.inf], None, "--value_range 0 inf: each LOW"),
        ([0, 1, 2], None, "--value_range 0 1 2: give LOW HIGH, or the 6 of 3 channels"),
        ([0, 1], [3], "--target_channels 3: some of 0 to 2"),
        ([0, 1], [1, 0], "--target_channels 1 0"),
        ([0, 1], [1, 1], "--target_channels 1 1"),
    ],
)
def test_limits_and_channels_that_make_no_sense_are_refused_by_flag(limits, targets, message):
    with pytest.raises(UserError, match=message):
        Scale(limits, 3, targets)
