import copy
import functools
import inspect
import pickle
from collections import Counter

import pytest
import torch
from conftest import TINY
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from API.run.release import release_name
from core import load_release
from DFDNet import ConvSC, DFDNet, channels_as_frames, frames_as_channels
from TemporalModule import DFDB
from WFL import WeightedFrequencyLoss


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(in_shape=(4, 1, 32, 48), out_shape=(4, 1, 32, 48)),  # H is not W
        dict(in_shape=(4, 3, 20, 12), out_shape=(4, 3, 20, 12)),  # odd feature maps, colour
        dict(in_shape=(4, 5, 32, 32), out_shape=(2, 2, 32, 32)),  # many channels, fewer out
        dict(out_shape=(11, 1, 32, 32)),  # three passes
        dict(layer=2, kernel_size=(3, 5), layer_config=(1, 1)),
        dict(layer=3, kernel_size=3, layer_config=(0, 1, 1)),
        dict(layer=3, kernel_size=[5], layer_config=(0, 1, 1)),
        dict(release=True),
        dict(segments=(2, 4), groups=1),
    ],
    ids=str,
)
def test_shapes_out_are_the_ones_asked_for_and_every_weight_has_a_gradient(changes):
    args = TINY | changes
    model = DFDNet(**args)
    future = model(torch.rand(2, *args["in_shape"]))
    assert future.shape == (2, *args["out_shape"])
    future.square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None and p.requires_grad]
    assert without == []


def test_what_loads_it_from_a_hub_adds_nothing_to_the_model():
    arguments = ["in_shape", "out_shape", "hid_S", "layer", "kernel_size", "COF", "groups", "layer_config", "release"]
    assert list(inspect.signature(DFDNet).parameters) == [*arguments, "segments"]
    model, past = DFDNet(**TINY).eval(), torch.rand(1, 4, 1, 32, 32)
    parts = {name: child.state_dict() for name, child in model.named_children()}
    assert list(parts) == ["encoder", "temporal", "decoder"]
    assert list(model.state_dict()) == [f"{part}.{name}" for part, state in parts.items() for name in state]
    with torch.no_grad():
        future = model(past)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(past), future)


def test_frames_beyond_T_are_predicted_from_the_newest_predictions():
    short = DFDNet(**TINY).eval()
    long = DFDNet(**TINY | dict(out_shape=(10, 1, 32, 32))).eval()
    long.load_state_dict(short.state_dict())
    past = torch.rand(1, 4, 1, 32, 32)
    with torch.no_grad():
        first = short(past)
        second = short(first)
        third = short(second)
        assert torch.equal(long(past), torch.cat([first, second, third], 1)[:, :10])


def test_fewer_frames_are_the_first_ones():
    model = DFDNet(**TINY).eval()
    cut = DFDNet(**TINY | dict(out_shape=(2, 1, 32, 32))).eval()
    cut.load_state_dict(model.state_dict())
    past = torch.rand(1, 4, 1, 32, 32)
    assert torch.equal(cut(past), model(past)[:, :2])


def test_the_input_is_not_changed():
    past = torch.rand(2, 4, 1, 32, 32)
    before = past.clone()
    model = DFDNet(**TINY)
    features = [torch.rand(2, 32, s, s) for s in (32, 16, 16, 8)]
    kept = [f.clone() for f in features]
    model(past)
    out = model.temporal(features)
    assert torch.equal(past, before)
    assert len(features) == len(out) == 4
    assert all(torch.equal(a, b) for a, b in zip(features, kept))


@pytest.fixture
def pretended_gpu(monkeypatch):
    """A context of tensors without values, that say they are on a GPU, and whether there is none."""
    try:
        with FakeTensorMode(), torch.device("cuda"):
            torch.empty(1).uniform_()
    except RuntimeError:
        pytest.skip("this version of PyTorch needs a GPU to pretend one")
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *args, **kwargs: True)
    return FakeTensorMode


@pytest.mark.parametrize("training", [True, False])
def test_on_a_gpu_nothing_lies_elsewhere(pretended_gpu, training):
    """Mixing devices fails as it would there."""
    with pretended_gpu(), torch.device("cuda"):
        model = DFDNet(**TINY | dict(out_shape=(8, 1, 32, 32))).train(training)
        past, future = torch.rand(2, 4, 1, 32, 32), torch.rand(2, 8, 1, 32, 32)
        with torch.set_grad_enabled(training):
            predicted = model(past)
        assert WeightedFrequencyLoss(8, 32, 32)(predicted, future).device == past.device
        with torch.device("cpu"):
            elsewhere = WeightedFrequencyLoss(8, 32, 32)
        with pytest.raises(RuntimeError, match=r"same device|different devices"):
            elsewhere(predicted, future)


@pytest.mark.parametrize("shape", [(4, 1, 32, 32), (4, 3, 16, 24)])
def test_every_feature_map_and_its_gradient_lie_channels_last_in_memory(shape):
    model = DFDNet(**TINY | dict(in_shape=shape, out_shape=shape))
    seen, astray = [], []

    def look(name, tensor):
        seen.append(name)
        if not tensor.is_contiguous(memory_format=torch.channels_last):
            astray.append(name)

    def hook(module, inputs, output, name):
        look(name, output)
        if output.requires_grad and "readout" not in name:  # there are frames again
            output.register_hook(lambda grad: look(f"gradient at {name}", grad))

    for name, module in model.named_modules():
        if isinstance(module, (ConvSC, nn.BatchNorm2d, nn.Conv2d, nn.ConvTranspose2d)) and ".stau" not in name:
            module.register_forward_hook(functools.partial(hook, name=name))
    future = model(torch.rand(2, *shape))
    assert future.is_contiguous()
    future.square().sum().backward()
    assert len(seen) > 50
    assert astray == []


def test_frames_are_the_channels_of_one_map_and_come_back():
    frames = torch.rand(2 * 3, 4, 5, 6)
    beside = frames_as_channels(frames, 3)
    assert torch.equal(beside, frames.reshape(2, 12, 5, 6))
    assert torch.equal(channels_as_frames(beside, 4), frames)


def test_sequences_do_not_mix_in_a_batch():
    model = DFDNet(**TINY).eval()
    past = torch.rand(3, 4, 1, 32, 32)
    with torch.no_grad():
        assert torch.allclose(model(past)[1:2], model(past[1:2]), atol=1e-5)


def test_the_paper_s_moving_mnist_model_has_149_million_parameters():
    assert sum(p.numel() for p in DFDNet(release=True).parameters()) == 149_145_513 - 38 * 2 * 320


def test_deep_stages_add_each_block_s_input():
    depths = {
        stage: [block.residual for block in blocks] for stage, blocks in enumerate(DFDNet(**TINY).temporal.stages)
    }
    assert depths == {0: [False], 1: [True] * 4, 2: [], 3: [False]}


def test_a_dfdb_puts_branch_r2_first():
    block = DFDB(8, 4, 4, 1, 0.3125, segments=(2, 4)).eval()
    assert block.branch_r1.dfdu.segments == 2
    block.expansion[0].weight.data[:, 8:] = 0  # deafen the expansion to the second half
    x = torch.rand(1, 8, 4, 4)
    before = block(x)
    block.branch_r1.stau.reduce.bias.data += 1
    assert torch.equal(before, block(x))
    block.branch_r2.stau.reduce.bias.data += 1
    assert not torch.equal(before, block(x))


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        (dict(in_shape=(4, 1, 30, 32), out_shape=(4, 1, 30, 32)), "--in_shape"),
        (dict(in_shape=(4, 1, 32)), "--in_shape"),
        (dict(out_shape=(4, 1, 16, 32)), "--out_shape"),
        (dict(out_shape=(8, 2, 32, 32)), "--out_shape"),
        (dict(hid_S=7), "--hid_S"),
        (dict(hid_S=2), "--segments"),
        (dict(groups=5), "--groups"),
        (dict(layer=1, kernel_size=(3,), layer_config=(1,)), "--layer"),
        (dict(kernel_size=(3, 3)), "--kernel_size"),
        (dict(kernel_size=(3, 3, 4, 3)), "--kernel_size"),
        (dict(layer_config=(1, 1)), "--layer_config"),
        (dict(layer_config=(1, 1, 1, -1)), "--layer_config"),
        (dict(COF=1.5), "--COF"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused_with_the_flag(changes, flag):
    with pytest.raises(ValueError, match=flag) as error:
        DFDNet(**TINY | changes)
    assert "\n" not in str(error.value)


# Against the authors' release -----------------------------------------------------------------------------------------


def test_release_mode_equals_the_release_in_evaluation(golden):
    model = load_release(golden["state_dict"]).eval()
    with torch.no_grad():
        assert (model(golden["x"]) - golden["out_eval"]).abs().max() < 1e-5


def worst_in_training(golden: dict, x: torch.Tensor) -> dict[str, float]:
    """How far outputs, loss and gradient norms in training mode are from the release's, as parts of what is allowed."""
    wfl = WeightedFrequencyLoss(4, 64, 64, release=True)
    model = load_release(golden["state_dict"]).train()
    future = model(x)
    loss = wfl(future, golden["y"])
    loss.backward()
    worst = {
        "out": (future - golden["out_train"]).abs().max().item() / 1e-4,
        "loss": abs(loss.item() / float(golden["wfl"]) - 1) / 1e-5,
    }
    for name, parameter in model.named_parameters():
        expected = golden["grad_norm"].get(release_name(name))
        if parameter.requires_grad and expected is not None:
            # the bias before a BatchNorm has no gradient but rounding noise, in theirs (1e-5) as in ours
            allowed = max(1e-3 * float(expected), 1e-4)
            worst[name] = abs(parameter.grad.norm().item() - float(expected)) / allowed
    assert len(worst) > 350
    return worst


def test_release_mode_equals_the_release_in_training(golden):
    """Outputs, loss and every gradient. A few of the millions of gates and ReLUs are at their edge but for float32's
    rounding, and fall one way or the other by PyTorch's version, threads and layout, as they do if x is moved by 5e-7:
    one of the ways must be the release's (one move in twenty leads there)."""
    wfl = WeightedFrequencyLoss(4, 64, 64, release=True)
    assert wfl(golden["out_train"], golden["y"]).item() == pytest.approx(float(golden["wfl"]), rel=1e-5)
    misses = []
    for attempt in range(200):
        worst = worst_in_training(golden, golden["x"] + (attempt > 0) * 5e-7 * torch.randn_like(golden["x"]))
        if max(worst.values()) < 1:
            return
        misses.append(max(worst, key=worst.get))
    pytest.fail(f"no way that the marginal bins fall is the release's; off most: {Counter(misses)}")


def test_everything_but_frames_out_and_cutoff_is_read_off_a_release_checkpoint(golden):
    model = load_release({"net": golden["state_dict"], "optimizer": {}, "scheduler": {}})
    direct = DFDNet(**golden["config"], release=True)
    assert str(model) == str(direct)


def test_a_release_checkpoint_from_a_file(golden, tmp_path):
    torch.save({"net": golden["state_dict"]}, tmp_path / "theirs.pth")
    model = load_release(tmp_path / "theirs.pth").eval()
    with torch.no_grad():
        assert (model(golden["x"]) - golden["out_eval"]).abs().max() < 1e-5


def test_a_release_checkpoint_starts_a_default_model_that_computes_the_same(golden):
    model = load_release(golden["state_dict"], release=False).eval()
    with torch.no_grad():
        assert (model(golden["x"]) - golden["out_eval"]).abs().max() < 1e-5
    branch = model.temporal.stages[0][0].branch_r1
    assert branch.norm_stau is not branch.norm_dfdu
    assert torch.equal(branch.norm_stau.weight, branch.norm_dfdu.weight)
    assert branch.dfdu.filter_h.threshold.requires_grad


@pytest.mark.parametrize("damage", ["missing", "misshapen", "left over"])
def test_a_release_checkpoint_that_does_not_fit_is_refused_by_name(golden, damage):
    state = copy.copy(golden["state_dict"])
    name = "hid1.net.layer2.1.atten1.STAU.fc2.weight"
    if damage == "missing":
        del state[name]
    elif damage == "misshapen":
        state[name] = state[name][:-1]
    else:
        name = "hid1.net.layer9.extra"
        state[name] = torch.zeros(1)
    with pytest.raises(ValueError, match=name):
        load_release(state)


def test_what_is_no_release_checkpoint_is_refused(tmp_path):
    (tmp_path / "text.pth").write_text("hello")
    for wrong in ({}, {"net": 3}, {"net": {"a": torch.zeros(1)}}, tmp_path / "none.pth", tmp_path / "text.pth"):
        with pytest.raises(ValueError, match=r"checkpoint|No such file"):
            load_release(wrong)
