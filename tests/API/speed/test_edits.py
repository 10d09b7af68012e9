"""A researcher's edits of the model, one to three lines each: plain, recomputed and compiled, they train with the
gradient of plain autograd, or stop with a clear error."""

import copy
import random

import numpy as np
import pytest
import torch
from models import batch, compiles, differences, tiny, training_step
from torch import Tensor, nn

from API.speed import accelerate
from API.speed.inference import prepare_inference
from DFDNet import Decoder, Encoder
from TemporalModule import DFDB, DFDU, Branch, HardGate
from TemporalModule.filter import WIDTH, ThresholdFilter, analyse
from TemporalModule.temporal import Stem
from TemporalModule.watch import filter_statistics

WAYS = {"eager": {}, "recomputed": dict(recompute=True)}
COMPILED = dict(compile=True, backend="aot_eager_decomp_partition")  # what Inductor keeps, without its code


def dropout_in_dfdu(model, patch):
    for unit in (m for m in model.modules() if isinstance(m, DFDU)):
        unit.embed_x = nn.Sequential(unit.embed_x, nn.Dropout(0.3))


def second_dfdu(model, patch):
    for branch in (m for m in model.modules() if isinstance(m, Branch)):
        branch.again = copy.deepcopy(branch.dfdu)
    patch.setattr(Branch, "forward", lambda self, x: branch_forward(self, x) + self.again(self.norm_dfdu(x)))


def branch_forward(self, x: Tensor) -> Tensor:
    x = x + self.stau(self.norm_stau(x))
    return x + self.dfdu(self.norm_dfdu(x))


def attribute_conditioning(model, patch):
    """The DFDB hands its branches a tensor as an attribute."""
    forward = DFDB.forward

    def conditioned(self, x):
        self.branch_r1.context = self.branch_r2.context = x.mean((2, 3)).mean(1)[:, None, None, None]
        return forward(self, x)

    patch.setattr(DFDB, "forward", conditioned)
    patch.setattr(Branch, "forward", lambda self, x: branch_forward(self, x * (1 + self.context)))


def parameter_of_the_block(model, patch):
    """A parameter that the DFDB owns and its branches use."""
    for block in (m for m in model.modules() if isinstance(m, DFDB)):
        block.gain = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))
    forward = DFDB.forward

    def with_gain(self, x):
        self.branch_r1.__dict__["gain"] = self.branch_r2.__dict__["gain"] = self.gain
        return forward(self, x)

    patch.setattr(DFDB, "forward", with_gain)
    patch.setattr(Branch, "forward", lambda self, x: branch_forward(self, x) * self.gain)


def other_recombination(model, patch):
    def forward(self, x):
        h = x + self.compose_h(self.predict_h(self.filter_h(self.decompose_h(x))))
        w = x + self.compose_w(self.predict_w(self.filter_w(self.decompose_w(x))))
        return h * self.embed_w(w.mean(2, keepdim=True)).sigmoid() - w * self.embed_h(h.mean(1, keepdim=True)).tanh()

    patch.setattr(DFDU, "forward", forward)
    for unit in (m for m in model.modules() if isinstance(m, DFDU)):
        del unit.embed_x


def soft_gate(model, patch):
    def gate(self, high):
        magnitude = torch.linalg.vector_norm(high, dim=-1)
        return torch.sigmoid((magnitude - self.threshold.flatten().unsqueeze(-1)) / WIDTH)

    patch.setattr(ThresholdFilter, "gate", gate)


def learnable_spectrum(model, patch):
    """At first it changes nothing."""
    for module in (m for m in model.modules() if isinstance(m, ThresholdFilter)):
        module.gain = nn.Parameter(torch.ones(module.length // 2 + 1, 1, dtype=torch.float64))
    patch.setattr(ThresholdFilter, "analyse", lambda self, x: self.gain * analyse(x))


def batch_norm_in_encoder(model, patch):
    for layer in (*model.encoder.layers, *model.decoder.layers):
        layer.norm = nn.BatchNorm2d(layer.norm.num_channels).double()


def dilated_stem(model, patch):
    old = model.temporal.stem_first[0]
    conv = nn.Conv2d(old.in_channels, old.out_channels, 3, padding=2, dilation=2, padding_mode="reflect", bias=False)
    model.temporal.stem_first[0] = conv.double()


class Scaled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * super().forward(x)


def subclass_before_batch_norm(model, patch):
    for block in (m for m in model.modules() if isinstance(m, DFDB)):
        block.reduction[0].__class__ = Scaled


def layer_scale_after_dfdu(model, patch):
    for branch in (m for m in model.modules() if isinstance(m, Branch)):
        branch.scale = nn.Parameter(torch.full((branch.norm_dfdu.normalized_shape[0],), 0.7, dtype=torch.float64))

    def forward(self, x):
        x = x + self.stau(self.norm_stau(x))
        return x + self.scale * self.dfdu(self.norm_dfdu(x))

    patch.setattr(Branch, "forward", forward)


def drop_path_after_dfdu(model, patch):
    def forward(self, x):
        x = x + self.stau(self.norm_stau(x))
        keep = torch.rand(len(x), 1, 1, 1, dtype=x.dtype) < 0.7
        return x + keep * self.dfdu(self.norm_dfdu(x))

    patch.setattr(Branch, "forward", forward)


def drop_path_drawn_by_the_host(model, patch):
    """Half by Python's generator, half by NumPy's; both are set back with PyTorch's."""

    def forward(self, x):
        drawn = [random.random() + np.random.rand() for _ in x]  # noqa: NPY002
        keep = torch.tensor(drawn, dtype=x.dtype).view(-1, 1, 1, 1) < 1
        x = x + self.stau(self.norm_stau(x))
        return x + keep * self.dfdu(self.norm_dfdu(x))

    patch.setattr(Branch, "forward", forward)
    step = torch.manual_seed
    patch.setattr(torch, "manual_seed", lambda seed: (random.seed(seed), np.random.seed(seed), step(seed))[-1])  # noqa: NPY002


def attention_after_dfdu(model, patch):
    for branch in (m for m in model.modules() if isinstance(m, Branch)):
        branch.attend = nn.MultiheadAttention(branch.norm_dfdu.normalized_shape[0], 1, batch_first=True).double()

    def forward(self, x):
        x = branch_forward(self, x)
        tokens = x.flatten(1, 2)
        return x + self.attend(tokens, tokens, tokens, need_weights=False)[0].view_as(x)

    patch.setattr(Branch, "forward", forward)


def tied_dfdbs(model, patch):
    """One DFDB, twice."""
    (block,) = model.temporal.stages[3]
    model.temporal.stages[3] = nn.Sequential(block, block)


EDITS = [
    dropout_in_dfdu, second_dfdu, attribute_conditioning, parameter_of_the_block, other_recombination, soft_gate,
    learnable_spectrum, batch_norm_in_encoder, dilated_stem, subclass_before_batch_norm, layer_scale_after_dfdu,
    drop_path_after_dfdu, drop_path_drawn_by_the_host, attention_after_dfdu, tied_dfdbs,
]  # fmt: skip
RANDOM = (dropout_in_dfdu, drop_path_after_dfdu)  # compiled, they may draw other numbers than eagerly
# Compiling takes seconds: what can be edited at once is compiled at once, in those blocks alone that the edits change.
AT_ONCE = {
    "refused": ([attribute_conditioning], DFDB),  # a compiled block sets no attributes
    "refused, too": ([parameter_of_the_block], DFDB),
    "random": (RANDOM, DFDB),
    "second DFDU": ([second_dfdu], DFDB),
    "attention": ([tied_dfdbs, attention_after_dfdu], DFDB),
    "DFDU": (
        [other_recombination, soft_gate, learnable_spectrum, subclass_before_batch_norm, layer_scale_after_dfdu], DFDB
    ),
    "outside": ([batch_norm_in_encoder, dilated_stem], (Encoder, Decoder, Stem)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_an_edited_model_trains_with_the_gradient_of_plain_autograd(edit, way, monkeypatch):
    torch.manual_seed(5)
    plain = tiny(layer_config=(0, 0, 0, 1))
    edit(plain, monkeypatch)
    model = copy.deepcopy(plain)
    past, future = batch()
    accelerate(model, model.blocks(), example=past, **WAYS[way])
    if edit in RANDOM:
        numerical_gradient(copy.deepcopy(model), past, future)
    assert_trains_as(plain, model, past, future)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", AT_ONCE)
def test_edited_and_compiled_it_does_too_or_says_in_a_line_that_it_stays_plain(name, monkeypatch):
    edits, blocks = AT_ONCE[name]
    stays_plain = name.startswith("refused") or not compiles()  # asked before the model is edited
    torch.manual_seed(5)
    plain = tiny(layer_config=(0, 0, 0, 1))
    for edit in edits:
        edit(plain, monkeypatch)
    model = copy.deepcopy(plain)
    past, future = batch()
    lines = accelerate(model, [m for m in model.blocks() if isinstance(m, blocks)], example=past, **COMPILED)
    assert lines[-1].startswith("warning: compiling failed, going on without") == stays_plain
    if edits is RANDOM:
        numerical_gradient(model, past, future)
    else:
        assert_trains_as(plain, model, past, future)


def assert_trains_as(plain: nn.Module, model: nn.Module, past: Tensor, future: Tensor) -> None:
    """Two steps of model, the second with what the first left in its buffers, compute what those of plain do."""
    for _ in range(2):
        expected = training_step(plain, past, future)
        worst = differences(training_step(model, past, future), expected)
        assert max(worst.values()) < 1e-8, max(worst, key=worst.get)
    assert any(value.abs().max() > 0 for name, value in expected.items() if "dfdu" in name)


def numerical_gradient(model: nn.Module, past: Tensor, future: Tensor) -> None:
    """The gradient in some weights equals the slope of a float64 loss, under the same random numbers."""
    with torch.no_grad():
        for module in (m for m in model.modules() if isinstance(m, ThresholdFilter)):
            module.threshold.fill_(-1.0)  # no gate flips

    def loss() -> Tensor:
        torch.manual_seed(11)
        return (model(past) * future).sum()

    model.zero_grad()
    loss().backward()
    unit = model.temporal.stages[3][0].branch_r1.dfdu
    for weight in (unit.predict_h.weight, unit.embed_h.weight, unit.predict_w.weight):
        slope, eps = weight.grad, 1e-6
        place = tuple(int(i) for i in torch.unravel_index(slope.abs().argmax(), slope.shape))
        losses = []
        for step in (eps, -2 * eps):
            with torch.no_grad():
                weight[place] += step
            losses.append(loss().item())
        with torch.no_grad():
            weight[place] += eps
        assert (losses[0] - losses[1]) / (2 * eps) == pytest.approx(slope[place].item(), rel=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", [*WAYS, "compiled"])
def test_another_rule_in_the_gate_holds_wherever_the_gate_is_used(way, monkeypatch):
    """Training and testing, statistics and pictures follow one rule: here, everything below the threshold passes."""

    def forward(ctx, magnitude, threshold):
        ctx.save_for_backward(magnitude, threshold)
        return (magnitude < threshold).to(magnitude.dtype)

    past, future = batch()
    before = training_step(tiny(layer_config=(1, 0, 0, 0)), past, future)["future"]
    monkeypatch.setattr(HardGate, "forward", staticmethod(forward))
    plain, model = (tiny(layer_config=(1, 0, 0, 0)) for _ in range(2))
    blocks = model.temporal.stages[0] if way == "compiled" else model.blocks()
    accelerate(model, blocks, example=past, **(WAYS | {"compiled": COMPILED})[way])
    ours, expected = training_step(model, past, future), training_step(plain, past, future)
    assert not torch.allclose(expected["future"], before, atol=1e-6)
    assert max(differences(ours, expected).values()) < 1e-8
    with torch.no_grad(), filter_statistics(model.eval()) as notes:
        model(past)
    for name, (note,) in notes.items():
        module = model.get_submodule(name)
        if (module.threshold <= 0).all():  # nothing is below
            assert note[0] == 1
    with torch.no_grad():
        assert torch.allclose(model(past), plain.eval()(past), rtol=0, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("edit", [subclass_before_batch_norm, dilated_stem, batch_norm_in_encoder])
def test_an_edited_model_predicts_prepared_as_it_does_plain(edit, monkeypatch):
    plain = tiny(open_gates=True)
    edit(plain, monkeypatch)
    for norm in (m for m in plain.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    model, past = copy.deepcopy(plain.eval()), batch()[0]
    prepare_inference(model, past, "fp32")
    assert torch.allclose(model(past), plain(past), rtol=0, atol=1e-9)


def test_a_mistake_in_an_edited_block_keeps_its_own_error(monkeypatch):
    def forward(self, x):
        raise ValueError("my shapes are wrong")

    model = tiny(torch.float32, layer_config=(1, 0, 0, 0))
    monkeypatch.setattr(Branch, "forward", forward)
    example = batch(torch.float32)[0]
    lines = accelerate(model, model.blocks(), compile=True, example=example, backend="eager", recompute=True)
    assert "warning: compiling failed" in "".join(lines)
    with pytest.raises(ValueError, match="my shapes are wrong"):
        model(example)
