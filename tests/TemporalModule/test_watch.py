import math

import pytest
import torch
from models import tiny

from TemporalModule.watch import filter_report, filter_statistics, filters_of


def test_noise_moves_a_parameter_as_far_as_the_report_assumes():
    parameter = torch.nn.Parameter(torch.zeros(20_000))
    optimizer = torch.optim.Adam([parameter], lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=300, final_div_factor=1e4)
    squares = 0.0
    for _ in range(300):
        parameter.grad = torch.randn(20_000)
        optimizer.step()
        squares += schedule.get_last_lr()[0] ** 2
        schedule.step()
    model = tiny(torch.float32).eval()
    with torch.no_grad(), filter_statistics(model) as notes:
        model(torch.rand(2, 4, 1, 32, 32))
    for module in filters_of(model).values():  # each as far away from its start as noise has moved the parameter
        module.threshold.data = module.start + parameter.detach()[: module.start.numel()].view_as(module.start)
    moved = parameter.abs().mean().item()
    for stage in filter_report(model, notes, squares):
        assert stage["threshold_moved"] == pytest.approx(moved, rel=0.3)  # of some thresholds, not all 20,000
        own = stage["threshold_moved"] / moved
        assert stage["threshold_moved_over_noise"] == pytest.approx(own, rel=0.05)
        assert abs(stage["threshold_drift"]) < 0.3 * moved


def test_drift_is_signed_and_movement_is_not():
    model = tiny().eval()
    with torch.no_grad(), filter_statistics(model) as notes:
        model(torch.rand(1, 4, 1, 32, 32, dtype=torch.float64))
    for module in filters_of(model).values():
        up = torch.arange(module.start.numel()).view_as(module.start) % 4 == 0  # a quarter up, the others down
        module.threshold.data = module.start + torch.where(up, 0.1, -0.1)
    for stage in filter_report(model, notes, math.nan):
        assert stage["threshold_moved"] == pytest.approx(0.1)
        assert stage["threshold_drift"] == pytest.approx(-0.05)
        assert "threshold_moved_over_noise" not in stage  # the learning rates are not known
