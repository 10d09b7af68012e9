from types import SimpleNamespace

import pytest
import torch
from conftest import TINY
from torch import Tensor, nn

import core
from API.evaluation.summary import work
from benchmarks.variants import CHANGES, LOSSES, changed
from TemporalModule.temporal import DFDB, Branch
from TemporalModule.watch import filter_statistics, filters_of

PAST = torch.rand(2, 4, 1, 32, 32, generator=torch.Generator().manual_seed(1))
CONFIG = SimpleNamespace(kernel_size=[3], layer=4, groups=2, COF=0.3125, segments=(4, 8), release=False, **TINY)


def build(*names: str) -> nn.Module:
    with changed(names):
        return core.build_model(CONFIG)


@pytest.mark.parametrize("name", [name for name in CHANGES if not name.endswith("_full")])
def test_a_changed_model_learns_with_every_parameter_it_has(name):
    model = build(name).train()
    model(PAST).square().mean().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None and p.requires_grad]
    assert not without
    assert model.eval()(PAST).shape == (2, 4, 1, 32, 32)
    assert work(lambda: build(name), CONFIG.in_shape)["multiply_adds"] > 0


def test_changes_end_with_the_context():
    before = core.build_model, core.build_criterion
    build("no_stau")
    assert (core.build_model, core.build_criterion) == before
    with pytest.raises(KeyError), changed(["no such change"]):
        pass


@pytest.mark.parametrize("percent", [1, 5, 10])
def test_relative_starts_remove_their_share_of_the_first_batch_and_of_no_later_one(percent):
    model = build(f"start_{percent}_percent").train()
    model(PAST)
    started = {name: module.threshold.clone() for name, module in filters_of(model).items()}
    with filter_statistics(model) as notes:
        model(PAST)
    # Filters behind another one see what it lets pass, so only those of the first DFDB see the same features again.
    for name in [name for name in notes if ".0.0.branch" in name]:
        assert notes[name][0][1].item() == pytest.approx(percent / 100, rel=0.1)
    model(PAST + 1)
    assert all(torch.equal(module.threshold, started[name]) for name, module in filters_of(model).items())


def test_a_moved_threshold_is_not_set_again_after_a_resume():
    model = build("start_10_percent").train()
    for module in filters_of(model).values():
        module.threshold.data += 0.01
    model(PAST)
    assert all((module.threshold == module.start + 0.01).all() for module in filters_of(model).values())


def test_shared_thresholds_are_one_a_segment_with_the_sum_of_the_gradients():
    module = next(iter(filters_of(build("shared_thresholds")).values()))
    stored = module.parametrizations.threshold.original
    assert stored.shape == (module.threshold.shape[0], 1)
    weights = torch.rand_like(module.threshold)
    (module.threshold * weights).sum().backward()
    assert torch.allclose(stored.grad[:, 0], weights.sum(1))


def test_soft_shrinkage_takes_the_threshold_off_every_magnitude():
    module = next(iter(filters_of(build("soft_shrinkage")).values()))
    x = torch.randn(2, module.threshold.numel(), module.length)
    high = module.spectrum(x)[1]
    shrunk = (high * module.gate(high).unsqueeze(-1)).square().sum(-1).sqrt()
    magnitude = high.square().sum(-1).sqrt()
    assert torch.allclose(shrunk, (magnitude - module.threshold.flatten()[:, None]).clamp(min=0), atol=1e-5)


def test_low_only_equals_a_low_pass():
    module = next(iter(filters_of(build("low_only")).values()))
    x = torch.randn(1, module.threshold.numel(), module.length)
    spectrum = torch.fft.rfft(x)
    spectrum[..., module.cutoff :] = 0
    assert torch.allclose(module(x), torch.fft.irfft(spectrum, n=module.length)[..., ::2], atol=1e-5)


def test_one_branch_and_no_stau_are_what_they_are_called():
    for name, kept in (("r1_alone", 4), ("r2_alone", 8)):
        blocks = [module for module in build(name).modules() if isinstance(module, DFDB)]
        assert all(sum(isinstance(m, Branch) for m in block.modules()) == 1 for block in blocks)
        assert all(block.branch.dfdu.segments == kept for block in blocks)
    branch = next(module for module in build("no_stau").modules() if isinstance(module, Branch))
    x: Tensor = torch.randn(1, *(branch.dfdu.height, branch.dfdu.width), branch.norm_dfdu.normalized_shape[0])
    assert torch.equal(branch(x), x + branch.dfdu(branch.norm_dfdu(x)))


def test_losses_are_of_their_formulas():
    config = SimpleNamespace(out_shape=(4, 1, 32, 32), release=False)
    future = torch.rand_like(PAST)
    for name in LOSSES:
        with changed([name]):
            criterion = core.build_criterion(config)
        assert criterion(future, future).abs() < 1e-6
        assert criterion(PAST, future) > 0
    with changed(["mse"]):
        assert core.build_criterion(config)(PAST, future) == (PAST - future).square().mean()
    with changed(["released_loss"]):
        assert core.build_criterion(config).release
