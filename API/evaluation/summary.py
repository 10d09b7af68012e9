"""What a model costs before it runs: parameters, multiply-adds, memory. Counted on shapes alone, no memory is taken."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


class StorageLedger(TorchDispatchMode):
    """Within, notes the memory of every tensor that is made; alive() adds up what of it still lives, in bytes.

    After a forward pass, with the result dropped or small, that is what backward keeps, by whatever means.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return result

    def alive(self, without: set[int] = frozenset()) -> int:
        """Bytes; without: the keys (storage._cdata) of memory that does not count."""
        return sum(size for key, (ref, size) in self.made.items() if key not in without and not ref.expired())


def kept_bytes(model: nn.Module, past: torch.Tensor, bfloat16: bool) -> int:
    """What model keeps for backward after predicting from past (B, T, C, H, W): all but past, weights and buffers."""
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers(), past)}
    with StorageLedger() as ledger, torch.autocast(past.device.type, torch.bfloat16, enabled=bfloat16):
        future = model(past)
    kept = ledger.alive(own)
    del future
    return kept


def costs(build: Callable[[], nn.Module], in_shape: Sequence[int], bfloat16: bool = False) -> dict[str, float]:
    """Of the model that `build` makes, for one sequence (T, C, H, W): parameters, multiply-adds of a forward pass
    (matrix products and convolutions; FFTs and pointwise work are not counted), bytes kept for backward a sequence,
    and bytes kept whatever the batch (bfloat16 copies of the weights).
    """
    with FakeTensorMode():
        model = build().train()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(2, *in_shape))  # two, as BatchNorm wants more than one value
        two, four = (kept_bytes(model, torch.empty(batch, *in_shape), bfloat16) for batch in (2, 4))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "multiply_adds": counter.get_total_flops() / 4,
        "activation_bytes": (four - two) / 2,
        "constant_bytes": 2 * two - four,
    }


def training_bytes(cost: Mapping[str, float], sequences: int) -> float:
    """What training takes with so many sequences at once: weights, gradients, Adam's two moments in float32, and what
    backward keeps. The work space of single operators comes on top."""
    return 4 * 4 * cost["parameters"] + cost["constant_bytes"] + cost["activation_bytes"] * sequences


def cost_table(model: nn.Module, cost: Mapping[str, float], sequences: int, free: int | None = None) -> str:
    """A few lines for a person: the parts' parameters, the work, and the memory of training with so many sequences at
    once; with a warning where the free bytes are fewer."""
    total = cost["parameters"]
    lines = [f"{'part':<12}{'parameters':>14}"]
    lines += [f"{name:<12}{sum(p.numel() for p in part.parameters()):>14,}" for name, part in model.named_children()]
    lines += [f"{'total':<12}{total:>14,}", ""]
    needed = training_bytes(cost, sequences)
    lines += [
        f"multiply-adds   {cost['multiply_adds'] / 1e9:8.2f} G a sequence, forward",
        f"activations     {cost['activation_bytes'] / 2**20:8.0f} MiB a sequence, kept for backward",
        f"training        {needed / 2**30:8.2f} GiB for {sequences} sequences at once "
        "(weights, gradients, Adam, activations)",
    ]
    if free is not None:
        lines.append(f"free            {free / 2**30:8.2f} GiB on this machine")
        if 1.1 * needed > free:  # a tenth for the work space of operators
            lines.append(
                "warning: training will run out of memory: --accumulate N computes a batch in parts, "
                "--checkpoint_blocks and --precision bf16 keep less, or take a smaller --batch_size"
            )
    return "\n".join(lines)
