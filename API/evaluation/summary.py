"""What a model costs before it runs: parameters, multiply-adds, memory. Counted on shapes alone, no memory is taken."""

import functools
import weakref
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ..speed.compiled import keep_products
from ..speed.recompute import recompute_blocks, replace_forward

CHOICES = ("eager", "--compile", "--checkpoint_blocks")  # what decides how much is kept for backward
ROOM = 1.1  # times what is counted: for the allocator's gaps and the workspaces of cuDNN, cuFFT and cuBLAS


class Ledger(TorchDispatchMode):
    """Within, adds up the bytes of all tensors that are made: `now`, those that still live, and their `peak`.

    weights and inputs are there before, and do not count; copies() are of weights in another precision.
    """

    def __init__(self, weights: Sequence[Tensor] = (), inputs: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.weights, self.inputs = ({x.untyped_storage()._cdata for x in given} for given in (weights, inputs))
        self.alive: dict[int, int] = {}  # by storage
        self.copied: set[int] = set()
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for storage in (x.untyped_storage() for x in tree_leaves(result) if isinstance(x, Tensor)):
            key, size = storage._cdata, storage.nbytes()
            if not any(key in known for known in (self.alive, self.weights, self.inputs)):
                self.alive[key] = size
                self.now += size
                weakref.finalize(storage, self._forget, key)
                if function is torch.ops.aten._to_copy.default and args[0].untyped_storage()._cdata in self.weights:
                    self.copied.add(key)
        self.peak = max(self.peak, self.now)
        return result

    def _forget(self, key: int) -> None:
        self.now -= self.alive.pop(key)
        self.copied.discard(key)

    def copies(self) -> int:
        """Bytes of those that live of copies of weights."""
        return sum(self.alive[key] for key in self.copied)


def step_bytes(model: nn.Module, past: Tensor, bfloat16: bool = False, cache: bool = True) -> dict[str, float]:
    """What a training step of model on past (B, T, C, H, W) takes beside weights, buffers and past, in bytes: "kept"
    for backward a sequence, prediction included, "constant" whatever the batch (bfloat16 copies of the weights), and
    the "peak" of forward and backward, gradients included.

    cache: whether autocast keeps copies of weights from one use to the next; compiled blocks do not."""
    autocast = torch.autocast(past.device.type, torch.bfloat16, enabled=bfloat16, cache_enabled=cache)
    with Ledger([*model.parameters(), *model.buffers()], [past]) as ledger:
        with autocast:
            future = model(past)
        constant, kept = ledger.copies(), ledger.now
        loss = future.float().square().sum()
        del future
        loss.backward()
    model.zero_grad(set_to_none=True)
    return {"kept": (kept - constant) / len(past), "constant": constant, "peak": ledger.peak}


def keep_as(choice: str, blocks: Sequence[nn.Module]) -> None:
    """Let blocks keep for backward what they would with a flag of CHOICES."""
    if choice == "--checkpoint_blocks":
        recompute_blocks(blocks)
    elif choice == "--compile":  # the compiler follows the same policy
        for block in blocks:
            replace_forward(block, lambda forward: functools.partial(keep_products, forward))


def norms_in_float32(model: nn.Module) -> None:
    """Let norms compute in float32, and return it: so autocast has them on a GPU, but not on a CPU."""
    for module in model.modules():
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            module.register_forward_pre_hook(lambda module, inputs: (inputs[0].float(),))


def memory(
    build: Callable[[], nn.Module],
    blocks: Callable[[nn.Module], Sequence[nn.Module]],
    choice: str,
    in_shape: Sequence[int],
    sequences: int = 4,
    bfloat16: bool = False,
    gpu: bool = False,
) -> dict[str, float]:
    """step_bytes of so many sequences (T, C, H, W) with one of CHOICES.

    build makes the model, whose blocks(model) are compiled or recomputed. gpu: as autocast has it there.
    """
    with FakeTensorMode():
        model = build().train()
        if bfloat16 and gpu:
            norms_in_float32(model)
        keep_as(choice, blocks(model))
        past = torch.empty(max(sequences, 2), *in_shape)  # BatchNorm wants two values
        return step_bytes(model, past, bfloat16, cache=choice != "--compile")


def costs(
    build: Callable[[], nn.Module],
    blocks: Callable[[nn.Module], Sequence[nn.Module]],
    in_shape: Sequence[int],
    sequences: int = 4,
    bfloat16: bool = False,
    gpu: bool = False,
) -> dict:
    """ "parameters", "multiply_adds" of a forward pass of one sequence (T, C, H, W) (matrix products and convolutions;
    FFTs and pointwise work are not counted), and "memory" by choice, as of memory()."""
    found = {choice: memory(build, blocks, choice, in_shape, sequences, bfloat16, gpu) for choice in CHOICES}
    return {**work(build, in_shape), "memory": found}


def work(build: Callable[[], nn.Module], in_shape: Sequence[int]) -> dict[str, int]:
    """ "parameters" and "multiply_adds", as of costs()."""
    with FakeTensorMode(), torch.no_grad():
        model = build().eval().requires_grad_(False)  # or the counter breaks on views of parameters
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, *in_shape))
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "multiply_adds": counter.get_total_flops() // 2}


def training_bytes(cost: Mapping, choice: str) -> float:
    """What training takes at most: weights and Adam's two moments in float32, and the peak of a step."""
    return 3 * 4 * cost["parameters"] + cost["memory"][choice]["peak"]


def cost_table(model: nn.Module, cost: Mapping, sequences: int, free: int | None = None) -> str:
    """A few lines for a person: the parts' parameters, the work, and for each of CHOICES the memory of training with so
    many sequences at once; names the first that fits the free bytes, or warns where none does."""
    total = cost["parameters"]
    lines = [f"{'part':<12}{'parameters':>14}"]
    lines += [f"{name:<12}{sum(p.numel() for p in part.parameters()):>14,}" for name, part in model.named_children()]
    lines += [f"{'total':<12}{total:>14,}", ""]
    lines += [f"multiply-adds {cost['multiply_adds'] / 1e9:.2f} G a sequence, forward", ""]
    lines += [f"{'training':<20}{'kept a sequence':>16}{f'memory for {sequences} at once':>26}"]
    needed = {choice: training_bytes(cost, choice) for choice in CHOICES}
    for choice, found in cost["memory"].items():
        lines.append(f"{choice:<20}{found['kept'] / 2**20:>12.0f} MiB{needed[choice] / 2**30:>22.2f} GiB")
    lines.append("(weights, gradients, Adam, activations; on a GPU CUDA's context and workspaces come on top)")
    if free is not None:
        fitting = next((choice for choice in CHOICES if ROOM * needed[choice] <= free), None)
        there = f"free on this machine: {free / 2**30:.2f} GiB"
        if fitting:
            lines.append(f"{there}; {fitting} fits")
        else:
            lines += [there, "warning: training will run out of memory: --accumulate N computes a batch in parts, "
                "--checkpoint_blocks and --precision bf16 keep less, or take a smaller --batch_size"]  # fmt: skip
    return "\n".join(lines)
