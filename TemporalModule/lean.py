"""Keep less for the backward pass, and compute the rest again when it is needed (activation checkpointing).

PyTorch's own selective checkpointing does what keep_products does, through a Python hook on every operator; that made
bfloat16 training steps of the Moving MNIST model a fifth slower on a CPU, and small models' a third. So here a module
is called twice with a tape: the first time what is dear to compute, matrix products and filters, is noted on it; the
second time, in backward, it is read off, and only norms, activations, gates and changes of layout are computed again.
Where a compiler runs, PyTorch's own costs nothing, and keep_products is that.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts


class Tape:
    """Results in the order in which they come: noted the first time, read off the second."""

    def __init__(self, kept: Sequence[Tensor] = (), again: bool = False) -> None:
        self.kept, self.again, self.place = list(kept), again, 0
        self.unread: Tensor | None = None  # what last() gave the second time

    def note(self, *results: Tensor) -> None:
        self.kept += results

    def read(self, count: int) -> list[Tensor]:
        self.place += count
        return self.kept[self.place - count : self.place]


class _Here(threading.local):
    tape: Tape | None = None
    nothing_kept = False  # inside of keep_inputs, where keep_products has nothing to do


_here = _Here()


def product_dtype(x: Tensor) -> torch.dtype:
    """The precision in which matrix products of x are computed here: autocast's, or x's own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32, or as it is where that is more: for norms, activations and Fourier transforms."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@contextmanager
def _with(tape: Tape) -> Iterator[None]:
    before, _here.tape = _here.tape, tape
    try:
        yield
    finally:
        _here.tape = before


def keep_products(module: nn.Module, *inputs: Tensor) -> Tensor | list[Tensor]:
    """module(*inputs), keeping for backward the inputs and the results of this file's layers and of the filters.

    module must not change any state when it is called. inputs may be one list of tensors, too.
    """
    if not torch.is_grad_enabled():
        return module(*inputs)
    if torch.compiler.is_compiling():
        return checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=_compiled_contexts)
    if _here.nothing_kept or _here.tape is not None:
        return module(*inputs)
    listed = isinstance(inputs[0], list)
    tensors = inputs[0] if listed else inputs
    function = (lambda *tensors: module(list(tensors))) if listed else module
    results = _Lean.apply(function, len(tensors), *tensors, *module.parameters())
    return list(results) if isinstance(results, tuple) else results


class _Lean(torch.autograd.Function):
    """keep_products' two passes."""

    @staticmethod
    def forward(ctx, function: Callable, count: int, *tensors: Tensor):
        with _with(tape := Tape()):
            results = function(*tensors[:count])
        ctx.save_for_backward(*tensors, *tape.kept)
        ctx.function, ctx.count, ctx.all = function, count, len(tensors)
        device = tensors[0].device.type
        ctx.autocast = dict(
            device_type=device, dtype=torch.get_autocast_dtype(device), enabled=torch.is_autocast_enabled(device)
        )
        return tuple(results) if isinstance(results, list) else results

    @staticmethod
    def backward(ctx, *grads: Tensor):
        saved = ctx.saved_tensors
        needed = ctx.needs_input_grad[2:]
        inputs = [x.detach().requires_grad_(need) for x, need in zip(saved[: ctx.count], needed)]
        sources = [*inputs, *saved[ctx.count : ctx.all]]
        tape = Tape([kept.detach() for kept in saved[ctx.all :]], again=True)  # one of them may be the result itself
        with torch.enable_grad(), torch.autocast(**ctx.autocast), _with(tape):
            results = ctx.function(*(x.view_as(x) for x in inputs))
        results = results if isinstance(results, list) else [results]
        assert tape.unread is None or tape.unread.data_ptr() == results[-1].data_ptr(), "something follows last()"
        wanted = [source for source, need in zip(sources, needed) if need]
        found = iter(torch.autograd.grad(results, wanted, grads, allow_unused=True))
        return None, None, *(next(found) if need else None for need in needed)


def _what_a_compiler_keeps(ctx, operator, *args, **kwargs) -> CheckpointPolicy:
    """The policy of PyTorch's selective checkpointing: matrix products, convolutions and what filters give. Depthwise
    convolutions are cheap, as in eager blocks."""
    name = getattr(operator, "__name__", str(operator)).partition(".")[0]
    keep = name in ("mm", "addmm", "bmm", "irfft") or (name == "convolution" and args[-1] == 1)  # groups
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


_compiled_contexts = functools.partial(create_selective_checkpoint_contexts, _what_a_compiler_keeps)


def once(compute: Callable[[], Sequence[Tensor]], count: int) -> Sequence[Tensor]:
    """compute()'s count results, without their graph and noted on the tape; read off it the second time."""
    tape = _here.tape
    if tape is not None and tape.again:
        return tape.read(count)
    with torch.no_grad():
        results = compute()
    if tape is not None:
        tape.note(*results)
    return results


def last(compute: Callable[[], Tensor], like: Tensor) -> Tensor:
    """compute()'s result, without its graph: the last one inside of keep_products, and like another tensor in shape and
    precision. The second time nothing reads it, and it is not computed."""
    tape = _here.tape
    if tape is not None and tape.again:
        tape.unread = like.new_empty(()).expand_as(like)
        return tape.unread
    with torch.no_grad():
        return compute()


class Linear(nn.Linear):
    """nn.Linear whose result keep_products keeps, and its weight as rounded for autocast."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or _here.nothing_kept:
            return super().forward(x)
        y, weight = once(lambda: self.compute(x), 2)
        return _KnownLinear.apply(x, self.weight, self.bias, weight, y) if torch.is_grad_enabled() else y

    def compute(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The result, and the weight in the precision it was computed in."""
        weight = self.weight.to(product_dtype(x))
        return F.linear(x, weight, self.bias), weight


class AddedLinear(Linear):
    """nn.Linear whose result is added to another tensor. keep_products keeps the sum instead of the result, which
    backward does not need: as many bytes, and less to compute again."""

    def forward(self, x: Tensor, to: Tensor, arrange: Callable[[Tensor], Tensor] = lambda y: y) -> Tensor:
        """to + arrange(the linear layer's result for x); arrange: a change of layout."""
        if torch.compiler.is_compiling() or _here.nothing_kept:
            return to + arrange(super().forward(x))

        def compute() -> tuple[Tensor, Tensor]:
            y, weight = self.compute(x)
            return to + arrange(y), weight

        total, weight = once(compute, 2)
        if not torch.is_grad_enabled():
            return total
        unread = weight.new_empty(()).expand(*x.shape[:-1], self.out_features)  # stands for the result
        return _KnownSum.apply(to, arrange(_KnownLinear.apply(x, self.weight, self.bias, weight, unread)), total)


class _KnownLinear(torch.autograd.Function):
    """A linear layer with its result at hand, and its weight as it was read for that."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, read: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, read)
        ctx.weight, ctx.bias = weight.dtype, None if bias is None else bias.dtype
        return y.view_as(y)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        to_x = (rows @ weight.to(grad.dtype)).view(x.shape).to(x.dtype) if ctx.needs_input_grad[0] else None
        to_weight = to_bias = None
        if ctx.needs_input_grad[1]:
            to_weight = (rows.T @ x.to(grad.dtype).reshape(-1, x.shape[-1])).to(ctx.weight)
        if ctx.needs_input_grad[2]:
            to_bias = rows.sum(0).to(ctx.bias)
        return to_x, to_weight, to_bias, None, None


class _KnownSum(torch.autograd.Function):
    """A sum of two tensors with its result at hand."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, total: Tensor) -> Tensor:
        ctx.dtypes = a.dtype, b.dtype
        return total.view_as(total)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return *(grad.to(dtype) for dtype in ctx.dtypes), None


class _KeptConvolution:
    """Makes of a convolution one whose result keep_products keeps."""

    def forward(self, x: Tensor) -> Tensor:
        compute = super().forward
        if torch.compiler.is_compiling() or _here.nothing_kept:
            return compute(x)
        (y,) = once(lambda: [compute(x)], 1)
        if not torch.is_grad_enabled():
            return y
        extra = self.output_padding if self.transposed else (0, 0)
        how = (self.stride, self.padding, self.dilation, self.transposed, extra, self.groups)
        return _KnownConvolution.apply(x, self.weight, self.bias, y, how)


class Conv2d(_KeptConvolution, nn.Conv2d):
    """nn.Conv2d whose result keep_products keeps."""


class ConvTranspose2d(_KeptConvolution, nn.ConvTranspose2d):
    """nn.ConvTranspose2d whose result keep_products keeps."""


class _KnownConvolution(torch.autograd.Function):
    """A convolution with its result at hand. Sums the bias's gradient by itself: channels last, PyTorch's transposed
    convolution takes ten times as long for it on a CPU."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, y: Tensor, how: tuple) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = how
        return y.view_as(y)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad[:3]
        to_x, to_weight, _ = torch.ops.aten.convolution_backward(
            grad, x.to(grad.dtype), weight.to(grad.dtype), None, *ctx.how, (for_x, for_weight, False)
        )
        to_x = to_x.to(x.dtype) if for_x else None
        to_weight = to_weight.to(weight.dtype) if for_weight else None
        return to_x, to_weight, grad.sum((0, 2, 3)).to(weight.dtype) if for_bias else None, None, None


def keep_inputs(module: nn.Module, *inputs: Tensor) -> Tensor | list[Tensor]:
    """module(*inputs), keeping for backward the inputs alone. All of it, matrix products too, is done again."""
    if not torch.is_grad_enabled():
        return module(*inputs)

    def contexts() -> tuple:
        return _keep_nothing(), _keep_nothing(module)

    return checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


@contextmanager
def _keep_nothing(again: nn.Module | None = None) -> Iterator[None]:
    """keep_products does nothing; the second time, BatchNorm's running statistics stay as they were."""
    modules = again.modules() if again is not None else ()
    norms = [m for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    statistics = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    before, _here.nothing_kept = _here.nothing_kept, True
    try:
        yield
    finally:
        _here.nothing_kept = before
        for buffer, old in statistics:
            buffer.copy_(old)
