"""Where the time of a training step goes, part by part, beside what the machine's rates allow."""

import copy
from types import MethodType

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from API.run.guard import Guard, gradient_norm
from benchmarks.subjects import Clock, Subject, precision
from DFDNet import Encoder
from TemporalModule import STAU, ThresholdFilter
from TemporalModule.temporal import Stem, Unstem

NAMED = {
    "reduction": "channel reduction, expansion",
    "expansion": "channel reduction, expansion",
    "predict_h": "MLPs",
    "predict_w": "MLPs",
    "embed_h": "recombination products",
    "embed_w": "recombination products",
    "embed_x": "recombination products",
    "decoder": "decoder",
}


def part_of(name: str, module: nn.Module) -> str | None:
    """The part of the model that a module is; None where it is not one as a whole."""
    for kinds, part in (
        (Encoder, "encoder"),
        ((Stem, Unstem), "stems"),
        (STAU, "STAU"),
        (ThresholdFilter, "FFT and filter"),
    ):
        if isinstance(module, kinds):
            return part
    return NAMED.get(name.rpartition(".")[2])


def tensors(value: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


class Breakdown:
    """Adds up the parts of a step, and says each: seconds, and what its arithmetic and its bytes would take."""

    def __init__(self, subject: Subject, machine: dict, clock: Clock, times: int) -> None:
        self.subject, self.machine, self.clock, self.times = subject, machine, clock, times
        self.parts: dict[str, dict[str, float]] = {}

    def add(self, part: str, seconds: float, multiply_adds: float = 0, moved: float = 0) -> None:
        """Count the multiply-adds of a forward pass, and bytes moved in all, against the machine's rates."""
        row = self.parts.setdefault(part, {"seconds": 0.0, "at_matrix_rate": 0.0, "at_copy_rate": 0.0})
        row["seconds"] += seconds
        row["at_matrix_rate"] += 6 * multiply_adds / self.machine["matrix_flops"][self.subject.kind]
        row["at_copy_rate"] += moved / self.machine["copy_bytes"]

    def modules(self, past: Tensor) -> Tensor:
        """Every module that is a part, forward and backward, alone on what it gets in the model. The prediction."""
        calls: list[tuple[str, nn.Module, tuple]] = []
        hooks = [
            module.register_forward_hook(lambda m, x, y, part=part: calls.append((part, m, x)))
            for name, module in self.subject.model.named_modules()
            if (part := part_of(name, module))
        ]
        with torch.no_grad(), precision(self.subject.kind, self.subject.device) as autocast, autocast:
            predicted = self.subject.model(past)
        for hook in hooks:
            hook.remove()
        for part, module, inputs in calls:
            self.module(part, module, inputs)
        return predicted

    def module(self, part: str, module: nn.Module, inputs: tuple) -> None:
        """One call of one module."""
        inputs = tree_map(lambda x: x.detach().requires_grad_() if isinstance(x, Tensor) else x, inputs)

        def step() -> list[Tensor]:
            with precision(self.subject.kind, self.subject.device) as autocast, autocast:
                outputs = tensors(module(*inputs))
            torch.autograd.backward(outputs, [torch.ones_like(o) for o in outputs])
            module.zero_grad(set_to_none=True)
            return outputs

        with FlopCounterMode(display=False) as counter:
            outputs = step()
        moved = 3 * sum(x.nbytes for x in (*tensors(inputs), *outputs, *module.parameters()))
        self.add(part, self.clock.median(step, self.times), counter.get_total_flops() / 6, moved)

    def loss(self, predicted: Tensor, future: Tensor) -> None:
        """The loss, forward and backward."""
        error = predicted.float().detach().requires_grad_()
        seconds = self.clock.median(lambda: self.subject.criterion(error, future).backward(), self.times)
        self.add("loss", seconds, moved=6 * error.nbytes)

    def optimizer(self) -> None:
        """Adam's step, and what the training loop does around it: the gradient's norm, the guard, the schedule."""
        model, optimizer = self.subject.model, self.subject.optimizer
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.zeros_like(p)
        size = sum(p.nbytes for p in model.parameters())
        self.add("optimizer", self.clock.median(optimizer.step, self.times), moved=7 * size)
        guard = Guard(model, optimizer, "stop", None, "")
        guard.optimizer = copy.copy(optimizer)
        guard.optimizer.step = MethodType(lambda self: None, guard.optimizer)  # was timed just now
        scheduler = torch.optim.lr_scheduler.OneCycleLR(guard.optimizer, 1e-5, 10**6)
        loss = torch.ones((), device=self.subject.device)

        def bookkeeping() -> None:
            guard.begin()
            guard.step(0, loss, gradient_norm(guard.parameters), ())
            scheduler.step()

        self.add("schedule, checks, log", self.clock.median(bookkeeping, self.times), moved=size)
        optimizer.zero_grad(set_to_none=True)


def breakdown(subject: Subject, past: Tensor, future: Tensor, machine: dict, clock: Clock, times: int) -> dict:
    """{"step": seconds of a training step, "parts": {part: {"seconds", "at_matrix_rate", "at_copy_rate"}}}.

    at_matrix_rate: seconds of the part's multiply-adds at the machine's matrix rate; at_copy_rate: of its inputs,
    outputs and weights, moved once forward and twice backward, at its copy rate. (Convolutions by Winograd's algorithm
    may take less.)
    """
    subject.model.train()
    found = Breakdown(subject, machine, clock, times)
    found.loss(found.modules(past), future)
    found.optimizer()
    step = clock.median(lambda: subject.train(past, future), times)
    rest = step - sum(row["seconds"] for row in found.parts.values())
    found.add("the rest: norms, gates, layout, recomputation", rest)
    return {"step": step, "parts": found.parts}
