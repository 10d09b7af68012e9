import math

import pytest
import torch
from models import tiny

from TemporalModule.filter import ThresholdFilter
from TemporalModule.watch import filter_report, filter_statistics, filters_as, filters_of, removed, spectra


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


@pytest.mark.parametrize("length", [10, 11])
@pytest.mark.parametrize("soft", [False, True])
def test_the_energy_removed_is_what_the_filtered_signals_lack(length, soft, monkeypatch):
    """By Parseval's theorem, from the signals themselves; for a gate that closes halfway, too."""
    module, x = ThresholdFilter(2, 3, length, COF=0.2).double(), torch.randn(4, 6, length, dtype=torch.float64)
    low, high = module.spectrum(x)
    gate = torch.rand(high.shape[:-1], dtype=torch.float64) if soft else module.gate(high)
    monkeypatch.setattr(module, "gate", lambda high: gate)
    spectrum = torch.view_as_complex(torch.cat([low, high * gate.unsqueeze(-1)], 2))
    y = torch.fft.irfft(spectrum, n=length, norm="ortho")
    bins, energy = removed(module, x).tolist()
    assert energy == pytest.approx(1 - (y.square().sum() / x.square().sum()).item())
    assert bins == pytest.approx(1 - gate.mean().item())


def test_filters_outside_the_stages_and_those_not_called_are_left_out():
    model = tiny().eval()
    model.encoder.filter = ThresholdFilter(1, 1, 8, COF=0.25)
    block = model.temporal.stages[0][0]
    block.branch_r1.forward = block.branch_r2.forward = lambda x: x
    with torch.no_grad(), filter_statistics(model) as notes:
        model(torch.rand(1, 4, 1, 32, 32, dtype=torch.float64))
        model.encoder.filter(torch.rand(1, 1, 8))
    assert [stage["stage"] for stage in filter_report(model, notes)] == [1, 3]  # 2 has no DFDB


def positive_parameter(monkeypatch):
    """The threshold as a property: the softplus of what learns."""
    for module in (model := tiny().eval()).modules():
        if isinstance(module, ThresholdFilter):
            module.raw = torch.nn.Parameter(module.threshold.detach().abs().expm1().log())
            del module.threshold
    monkeypatch.setattr(
        ThresholdFilter, "threshold", property(lambda self: torch.nn.functional.softplus(self.raw)), raising=False
    )
    return model


def positive_in_the_gate(monkeypatch):
    def gate(self, high):
        magnitude = torch.linalg.vector_norm(high, dim=-1)
        return (magnitude >= torch.nn.functional.softplus(self.threshold).flatten().unsqueeze(-1)).to(high.dtype)

    monkeypatch.setattr(ThresholdFilter, "gate", gate)
    return tiny().eval()


@pytest.mark.parametrize("edit", [lambda _: tiny().eval(), positive_parameter, positive_in_the_gate])
@torch.no_grad()
def test_filters_switch_off_and_pass_low_frequencies_only_however_the_threshold_is_made(edit, monkeypatch):
    model, past = edit(monkeypatch), torch.rand(1, 4, 1, 32, 32, dtype=torch.float64)
    learned = model(past)

    def shares() -> list[float]:
        with filter_statistics(model) as notes:
            model(past)
        return [note[0].item() for (note,) in notes.values()]

    assert any(0 < share < 1 for share in shares())
    for mode, share in (("off", 0), ("low", 1)):
        with filters_as(model, mode):
            assert set(shares()) == {share}
            assert not torch.equal(model(past), learned)
    with filters_as(model, "learned"):
        assert torch.equal(model(past), learned)
    assert torch.equal(model(past), learned)


@torch.no_grad()
def test_a_gate_that_one_filter_has_of_its_own_comes_back():
    model, past = tiny().eval(), torch.rand(1, 4, 1, 32, 32, dtype=torch.float64)
    own = next(iter(filters_of(model).values()))
    own.gate = lambda high: torch.full_like(high[..., 0], 0.5)
    learned = model(past)
    with filters_as(model, "off"):
        assert not torch.equal(model(past), learned)
    assert torch.equal(model(past), learned)


def test_a_boolean_gate_and_a_call_by_name_are_seen_like_any_other(monkeypatch):
    class Outer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.filter = ThresholdFilter(2, 3, 10, COF=0.2)

        def forward(self, x):
            return self.filter(x=x)

    model, x = Outer(), torch.randn(4, 6, 10)
    with filter_statistics(model) as expected:
        model(x)
    ours = type(model.filter).gate
    monkeypatch.setattr(ThresholdFilter, "gate", lambda self, high: ours(self, high) > 0.5)
    with filter_statistics(model) as notes:
        model(x)
    assert torch.equal(notes["filter"][0], expected["filter"][0])


def test_spectra_are_of_every_call_of_a_filter():
    """Of a model that predicts twice as many frames as it takes, in two calls."""
    model, past = tiny(out_shape=(8, 1, 32, 32)).eval(), torch.rand(2, 4, 1, 32, 32, dtype=torch.float64)
    first = spectra(tiny().eval(), past)
    with torch.no_grad():
        second = spectra(tiny().eval(), tiny().eval()(past))
    for name, found in spectra(model, past).items():
        for key in ("before", "after", "removed", "energy_removed"):
            assert found[key] == pytest.approx((first[name][key] + second[name][key]) / 2)
