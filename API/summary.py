"""What a model costs before it runs: parameters, multiply-adds, memory. Counted on shapes alone, no memory is taken."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode


def costs(build: Callable[[], nn.Module], in_shape: Sequence[int], bfloat16: bool = False) -> dict[str, float]:
    """Of the model that `build` makes, for one sequence (T, C, H, W): parameters, multiply-adds of a forward pass
    (matrix products and convolutions; FFTs and pointwise work are not counted), and bytes that autograd keeps.
    """
    kept: dict[int, int] = {}
    alive: list[torch.Tensor] = []  # while we count, an address stays the same tensor's

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=bfloat16)
    with FakeTensorMode():
        model, past = build().train(), torch.empty(2, *in_shape)  # two, as BatchNorm wants more than one value
        weights = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
        with FlopCounterMode(display=False) as counter, hooks, autocast:
            model(past)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "multiply_adds": counter.get_total_flops() / 2 / len(past),
        "activation_bytes": sum(kept.values()) / len(past),
    }


def cost_table(model: nn.Module, cost: dict[str, float], batch_size: int) -> str:
    """A few lines for a person: the parts' parameters, the work, and the memory of training with this batch size."""
    total = cost["parameters"]
    lines = [f"{'part':<12}{'parameters':>14}"]
    lines += [f"{name:<12}{sum(p.numel() for p in part.parameters()):>14,}" for name, part in model.named_children()]
    lines += [f"{'total':<12}{total:>14,}", ""]
    state = 4 * 4 * total  # weights, gradients and Adam's two moments in float32
    activations = cost["activation_bytes"] * batch_size
    lines += [
        f"multiply-adds   {cost['multiply_adds'] / 1e9:8.2f} G a sequence, forward",
        f"activations     {cost['activation_bytes'] / 2**20:8.0f} MiB a sequence, kept for backward",
        f"training        {(state + activations) / 2**30:8.2f} GiB for a batch of {batch_size} "
        "(weights, gradients, Adam, activations)",
    ]
    return "\n".join(lines)
