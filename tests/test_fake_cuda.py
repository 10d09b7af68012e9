"""Training and validation on CUDA tensors that have no memory, on any machine: no two devices meet, nothing waits.

PyTorch's fake tensors carry a device and a shape and compute nothing. Every operator of a step is run on them as it
would be dispatched on a GPU; what the host would have to wait for is counted.
"""

import contextlib
from collections import Counter, defaultdict
from types import SimpleNamespace
from typing import ClassVar
from unittest import mock

import pytest
import torch
from conftest import TINY
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import core
from API.run.guard import Guard
from API.run.progress import Progress
from API.run.state import TrainingState
from DFDNet import DFDNet
from WFL import WeightedFrequencyLoss

try:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch.autograd.function import BackwardCFunction
except ImportError as error:  # all of them are internal, or new
    pytest.skip(f"this PyTorch has no fake tensors that can be differentiated: {error}", allow_module_level=True)

READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "unique2", "equal", "is_nonzero")
STEPS = 2


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for the GPU: values that it reads, and copies that are not asynchronous."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = operator.overloadpacket.__name__
        if name in READS and args[0].is_cuda:
            self.found[name] += 1
        if name == "_local_scalar_dense" and isinstance(args[0], FakeTensor):
            return False if args[0].dtype == torch.bool else 1  # it has no value: a good verdict, some number
        result = operator(*args, **kwargs)
        if name == "copy_":
            self.copied(name, args[1], args[0], kwargs.get("non_blocking", len(args) > 2 and args[2]))
        elif name == "_to_copy":
            self.copied(name, args[0], result, kwargs.get("non_blocking", False))
        return result

    def copied(self, name: str, source: Tensor, target: Tensor, asynchronous: bool) -> None:
        """A copy between host and device waits unless it is asked not to. One with gaps goes through memory that is
        not pinned, which waits, too."""
        if source.device.type != target.device.type and not (asynchronous and source.is_contiguous()):
            self.found[f"{name} from {source.device.type} to {target.device.type}"] += 1


def differentiate(root: Tensor) -> None:
    """root.backward(), node by node in Python: PyTorch's own engine asks for the streams of a GPU."""
    waits_for, order = Counter(), [root.grad_fn]
    for node in order:  # it grows
        for after, _ in node.next_functions:
            if after is not None:
                waits_for[after] += 1
                if waits_for[after] == 1:
                    order.append(after)
    gradients = defaultdict(dict, {root.grad_fn: {root.output_nr: torch.ones_like(root)}})
    ready = [root.grad_fn]
    while ready:
        node = ready.pop()
        found = apply_node(node, gradients.pop(node, {}))
        for gradient, (after, place) in zip(found, node.next_functions):
            if after is None:
                continue
            if gradient is not None:
                add_gradient(gradients[after], place, gradient, after._input_metadata[place])
            waits_for[after] -= 1
            ready += [after] * (waits_for[after] == 0)


@torch.no_grad()
def apply_node(node, gradients: dict[int, Tensor]) -> list[Tensor | None]:
    """What a node of the graph makes of the gradients of its outputs: one for each of next_functions."""
    if hasattr(node, "variable"):
        for gradient in gradients.values():
            before = node.variable.grad
            node.variable.grad = gradient if before is None else before + gradient
        return []
    if not gradients:
        return [None] * len(node.next_functions)
    if not isinstance(node, BackwardCFunction):
        found = node(*(gradients.get(i) for i in range(len(node._input_metadata))))
        return list(found) if isinstance(found, tuple) else [found]
    zeros = (torch.zeros(m.shape, dtype=m.dtype, device=m.device) for m in node._input_metadata)
    found = node.apply(*(gradients.get(i, zero) for i, zero in enumerate(zeros)))
    found = found if isinstance(found, tuple) else (found,)
    needed = iter([gradient for gradient, need in zip(found, node.needs_input_grad) if need])
    return [None if after is None else next(needed) for after, _ in node.next_functions]


def add_gradient(gradients: dict[int, Tensor], place: int, gradient: Tensor, wanted) -> None:
    """Sum up, in the shape and dtype of the tensor; refuse another device, as PyTorch's engine does."""
    if gradient.device != wanted.device:
        raise RuntimeError(f"a gradient on {gradient.device} for a tensor on {wanted.device}")
    gradient = gradient.sum_to_size(wanted.shape).to(wanted.dtype)
    gradients[place] = gradients[place] + gradient if place in gradients else gradient


def test_gradients_computed_node_by_node_are_those_of_the_engine():
    torch.manual_seed(0)
    model, criterion = DFDNet(**TINY), WeightedFrequencyLoss(4, 32, 32)
    past, future = batch()
    found = []
    for backward in (Tensor.backward, differentiate):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            predicted = model(past)
        backward(criterion(predicted, future))
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, expected in found[0].items():
        assert torch.allclose(found[1][name], expected, rtol=1e-2, atol=1e-3 * expected.abs().max()), name


class Event:
    """torch.cuda's, which a GPU without memory does not have."""

    made: ClassVar[list["Event"]] = []
    waited_for = False

    def record(self) -> None:
        self.made.append(self)

    def synchronize(self) -> None:
        self.waited_for = True


@contextlib.contextmanager
def fake_gpu():
    """Within, there is a GPU, all new tensors are fake, and what waits is counted."""
    Event.made = []
    here = {
        "cuda.is_available": lambda: True,
        "cuda.device_count": lambda: 1,
        "cuda.current_device": lambda: 0,
        "cuda.set_device": lambda device: None,
        "cuda.device": contextlib.nullcontext,
        "cuda.get_device_capability": lambda *_: (9, 0),
        "cuda.is_bf16_supported": lambda *_, **__: True,
        "cuda.is_current_stream_capturing": lambda: False,
        "cuda.Event": Event,
        "cuda.amp.common.amp_definitely_not_available": lambda: False,
        "Tensor.backward": differentiate,
    }
    not_shown = mock.patch.object(Progress, "due", return_value=False)  # to show the loss, it has to be waited for
    with contextlib.ExitStack() as stack:
        for name, value in here.items():
            stack.enter_context(mock.patch(f"torch.{name}", value))
        stack.enter_context(not_shown)
        # Fake tensors of "cuda:0" alone must not start CUDA.
        stack.enter_context(mock.patch.object(FakeTensorMode, "avoid_device_init", True, create=True))
        stack.enter_context(FakeTensorMode())
        yield stack.enter_context(Waits())


def why_not() -> str | None:
    """What keeps this PyTorch from making such tensors, if anything does."""
    try:
        with fake_gpu():
            torch.nn.Linear(2, 2, device="cuda:0")
    except Exception as error:  # whatever their internals raise
        return f"PyTorch {torch.__version__} makes no CUDA tensors without memory: {str(error).splitlines()[0]}"
    return None


NO_FAKES = why_not()
pytestmark = pytest.mark.skipif(NO_FAKES is not None, reason=str(NO_FAKES))


class Run(TrainingState):
    """Notes what has waited by the end of each step."""

    def __init__(self, waits: Waits, *args) -> None:
        super().__init__(*args)
        self.waits, self.steps = waits, []

    def after_step(self, *args) -> None:
        super().after_step(*args)
        self.steps.append(Counter(self.waits.found))
        assert not Event.made[-1].waited_for, "a step waits for its own verdict"


def batch(size: int = 2) -> tuple[Tensor, Tensor]:
    """Past and future, on the host."""
    return torch.rand(size, *TINY["in_shape"]), torch.rand(size, *TINY["out_shape"])


def train_and_validate(
    folder, precision: str = "fp32", make_batch=batch, fault=lambda *_: 0, **changes
) -> tuple[Counter, Counter]:
    """What has waited in the steps after the first of an epoch, and in the batches after the first of a validation.

    fault(predicted, future) is added to the loss. changes: of the model.
    """
    flags = TINY | dict(layer_config=(0, 1, 0, 0)) | changes
    with fake_gpu() as waits:
        machine = core.Machine("cuda", 0, precision, 1, False)
        with torch.device(machine.device):
            model, criterion = DFDNet(**flags), WeightedFrequencyLoss(4, 32, 32, changes.get("release", False))
        criterion.register_forward_hook(lambda module, inputs, loss: loss + fault(*inputs))
        optimizer, scheduler = core.build_optimizer(model, SimpleNamespace(lr=1e-3, epochs=1, shard=False), STEPS)
        run = Run(waits, model, optimizer, scheduler, flags, machine.world)
        batches = [make_batch() for _ in range(STEPS)]
        with run.save_in(folder):
            guard = Guard(model, optimizer, "stop", None, "test")
            core.train_one_epoch(model, criterion, batches, run, guard, machine, grad_clip=1.0, accumulate=2)
        learned = [p for p in model.parameters() if p.requires_grad]
        assert all(p.grad is not None and p.grad.device == machine.device for p in learned)
        assert len(Event.made) == STEPS
        validated = []
        for some in (batches[:1], batches):
            before = Counter(waits.found)
            core.validate(model, criterion, some, machine)
            validated.append(waits.found - before)
    return run.steps[-1] - run.steps[0], validated[1] - validated[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("release", [False, True])
def test_no_two_devices_meet_and_nothing_waits_in_a_step_nor_in_a_batch_of_validation(tmp_path, precision, release):
    found = train_and_validate(tmp_path, precision, release=release, layer_config=(1, 1, 0, 1))
    assert found == (Counter(), Counter())


def with_gaps() -> tuple[Tensor, Tensor]:
    """Views of one array of whole sequences."""
    return torch.rand(2, 8, 1, 32, 32).split(4, 1)


FAULTS = {
    "a value that is read": dict(fault=lambda predicted, future: 0 * predicted.mean().item()),
    "a value that decides": dict(fault=lambda predicted, future: 1 if predicted.mean() > 2 else 0),
    "a number sent to the GPU": dict(fault=lambda predicted, future: predicted.new_tensor([1.0]).sum()),
    "a tensor sent to the GPU": dict(fault=lambda predicted, future: torch.ones(3).to(predicted.device).sum()),
    "a batch with gaps": dict(make_batch=with_gaps),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_waits_is_found(tmp_path, fault):
    trained, validated = train_and_validate(tmp_path, **FAULTS[fault])
    assert trained
    assert validated


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("device", lambda predicted, future: (predicted * torch.ones(32)).sum()),  # left on the host
        ("nonzero", lambda predicted, future: predicted[predicted > 2].sum()),  # a size that depends on values
    ],
)
def test_what_cannot_be_computed_without_values_or_on_one_device_is_found(tmp_path, name, fault):
    with pytest.raises(RuntimeError, match=name):
        train_and_validate(tmp_path, fault=fault)
