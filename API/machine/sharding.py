"""One model on many processes: a copy in each, or with --shard a part of every weight in each."""

import inspect
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from .. import UserError
from .distributed import World


def distribute(
    model: nn.Module, world: World, device: torch.device, blocks: Sequence[nn.Module], shard: bool, compress: bool
) -> nn.Module:
    """The module to call in a training step, with model in it: every process gets the gradients of the whole batch.

    shard: weights, gradients and the optimizer's state are spread over the processes, block by block; otherwise every
    process has all of them, and gradients travel while backward still runs, as bfloat16 with compress.
    """
    if world.size == 1:
        return model
    torch._dynamo.config.optimize_ddp = False  # it would cut the compiled blocks to fit its buckets
    if shard:
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # nothing here changes its output in place
        fully_shard = find_fully_shard()
        for block in blocks:
            fully_shard(block)
        return fully_shard(model)
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

    # A depthwise kernel's gradient (h, 1, 3, 3) may have another stride for its axis of one. That is no matter.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    # Every process computes the same statistics, so there is no need to send the first one's around each step.
    known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    alone = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    devices = [device.index] if device.type == "cuda" else None
    wrapped = nn.parallel.DistributedDataParallel(
        model, device_ids=devices, gradient_as_bucket_view=True, **{alone: False}
    )
    if compress:
        wrapped.register_comm_hook(None, bf16_compress_hook)
    return wrapped


def find_fully_shard() -> Callable:
    """PyTorch's fully_shard. Raises UserError where there is none."""
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        raise UserError(f"--shard: PyTorch {torch.__version__} has no fully_shard; 2.6 and later have") from None
    return fully_shard


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights are spread over the processes."""
    return hasattr(model, "set_requires_gradient_sync")


def without_exchange(model: nn.Module, skip: bool):
    """A context in which backward leaves the gradients with each process, where skip: for all parts but the last."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return model.no_sync() if skip else nullcontext()
    if is_sharded(model):
        model.set_requires_gradient_sync(not skip)
    return nullcontext()


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Within, a sharded model's weights are whole in every process, and to call it takes no exchange."""
    parts = [m for m in model.modules() if is_sharded(m)]
    try:
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not model, recurse=False)
            part.reshard()


def _whole(value: object) -> object:
    """A tensor put together from its shards, on the host; anything else as it is. Every process must take part."""
    return value.full_tensor().cpu() if hasattr(value, "full_tensor") else value


def _like(value: object, parameter: Tensor) -> object:
    """A whole tensor spread as parameter is."""
    if not (isinstance(value, Tensor) and value.shape == parameter.shape and hasattr(parameter, "device_mesh")):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def whole_states(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict]:
    """{"model", "optimizer"}: state dicts of whole tensors, the same with and without --shard; "order": the names of
    the optimizer's parameters, by which their moments are found again."""
    state = optimizer.state_dict()
    moments = {i: {name: _whole(v) for name, v in moment.items()} for i, moment in state["state"].items()}
    weights = {name: _whole(value) for name, value in model.state_dict().items()}
    return {"model": weights, "optimizer": {**state, "state": moments}, "order": order(model, optimizer)}


def order(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """The names of the optimizer's parameters, in its order."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [names.get(parameter, "") for group in optimizer.param_groups for parameter in group["params"]]


def restore_states(model: nn.Module, optimizer: torch.optim.Optimizer, states: Mapping) -> None:
    """Undo whole_states."""
    own = model.state_dict()
    model.load_state_dict({name: _like(v, own[name]) if name in own else v for name, v in states["model"].items()})
    state = states["optimizer"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    own, then = order(model, optimizer), states.get("order")  # checkpoints of before have none
    if then is not None and len(set(own)) == len(own):
        refuse_other_groups(
            [{then[i] for i in group["params"]} for group in state["param_groups"]],
            [{own[i] for i in group["params"]} for group in optimizer.state_dict()["param_groups"]],
        )
        # Lines of a model may have been put in another order.
        state = {**state, "state": {own.index(then[i]): moment for i, moment in state["state"].items()}}
    moments = {i: {name: _like(v, parameters[i]) for name, v in moment.items()} for i, moment in state["state"].items()}
    optimizer.load_state_dict({**state, "state": moments})


def refuse_other_groups(then: Sequence[set[str]], now: Sequence[set[str]]) -> None:
    """Raise ValueError, naming a parameter, where an optimizer's groups are not of the parameters that they were of."""
    if then != now:
        moved = [sorted(a ^ b) for a, b in itertools.zip_longest(then, now, fillvalue=set()) if a != b]
        raise ValueError(f"{moved[0][0]} was learned otherwise: is it frozen now, or in another parameter group?")
