"""A computation on a GPU as one CUDA graph: all of its kernels in one launch, instead of thousands by Python."""

import gc
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ..run.checkpoint import random_states, restore_random_states

WARM_UP = 3  # calls before capture: libraries choose their kernels, compilers settle
TOLERANCE = 1e-2  # between a call and its replay, relative; what is stale is off by far more, rounding by far less


class Graphed:
    """function(*inputs) -> a tensor; gradients that it gives the parameters of model, which have none before, too.

    After WARM_UP calls it is captured, and from then on replayed: inputs are copied to where the graph reads them, and
    **Python does not run again**, so what it decides or counts stays as it was. Random numbers are drawn as before.
    Inputs of another shape go to the function itself. All inputs do where the capture fails, where the replay computes
    something else than the function, and where the function draws random numbers on the host: tell gets a line that
    says why.

    The next replay overwrites the gradients; the result is a copy.
    """

    def __init__(self, function: Callable[..., Tensor], model: nn.Module, tell: Callable[[str], object]) -> None:
        self.function, self.model, self.tell = function, model, tell
        self.calls, self.works = 0, True
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        self.calls += 1
        if self.graph and all(own.shape == x.shape for own, x in zip(self.inputs, inputs)):
            return self.replay(inputs)
        if self.graph or not self.works or self.calls <= WARM_UP:
            return self.function(*inputs)
        return self.capture(inputs)

    def replay(self, inputs: Sequence[Tensor]) -> Tensor:
        """What function(*inputs) would do."""
        for own, x in zip(self.inputs, inputs):
            own.copy_(x)
        self.graph.replay()
        for p, gradient in zip(self.parameters, self.gradients):
            p.grad = gradient
        return self.result.clone()

    def capture(self, inputs: Sequence[Tensor]) -> Tensor:
        """function(*inputs), and a graph of it, if it is a faithful one."""
        buffers, before = [b.clone() for b in self.model.buffers()], random_states()
        problem = None
        try:
            with no_waiting():
                result = self.function(*inputs)
        except RuntimeError as error:
            problem = describe(error)
        if problem:
            self.give_up(problem)
            self.model.zero_grad(set_to_none=True)
            restore_random_states(before)
            copy_buffers(self.model.buffers(), buffers)
            return self.function(*inputs)
        if not torch.isfinite(result).all():
            return result  # nothing to compare with
        self.parameters = [p for p in self.model.parameters() if p.grad is not None]
        gradients, after = [p.grad for p in self.parameters], random_states()
        try:
            with buffers_as(self.model, buffers):
                restore_random_states(before)
                self.record(inputs)
                problem = self.unfaithful(inputs, result, gradients, before, after)
        except RuntimeError as error:
            problem = describe(error)
        restore_random_states(after)
        for p, gradient in zip(self.parameters, gradients):
            p.grad = gradient
        if problem:
            self.give_up(problem)
        return result

    def give_up(self, problem: str) -> None:
        """From now on function runs as it is."""
        self.works, self.graph, self.result, self.gradients = False, None, None, []
        self.tell(f"warning: a step is no CUDA graph, going on without ({problem})")

    def record(self, inputs: Sequence[Tensor]) -> None:
        """Capture function; nothing is computed."""
        self.inputs = [x.clone() for x in inputs]
        for p in self.parameters:
            p.grad = None
        gc.collect()  # autograd's nodes for the parameters, if any are left: they belong to another stream
        graph = torch.cuda.CUDAGraph()
        torch.clear_autocast_cache()  # of weights that were rounded outside of the graph
        # Other threads may go on, such as the one that pins the memory of batches.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.result = self.function(*self.inputs)
        torch.clear_autocast_cache()
        self.gradients = [p.grad for p in self.parameters]
        self.graph = graph

    def unfaithful(self, inputs, result: Tensor, gradients: Sequence[Tensor], before: dict, after: dict) -> str | None:
        """What a replay does otherwise than the function did, from the same buffers and random numbers."""
        drawn = [kind for kind in ("python", "numpy") if before[kind] != after[kind]]
        if drawn or not before["torch"].equal(after["torch"]):
            return "it draws random numbers on the host"
        replayed = self.replay(inputs)
        off = max(difference([replayed], [result]), difference(self.gradients, gradients))
        return None if off <= TOLERANCE else f"replayed, it differs by {off:.1e}"


@contextmanager
def buffers_as(model: nn.Module, before: Sequence[Tensor]) -> Iterator[None]:
    """Within, model's buffers have the values `before`; then again those that they have now."""
    buffers = list(model.buffers())
    now = [buffer.clone() for buffer in buffers]
    try:
        copy_buffers(buffers, before)
        yield
    finally:
        copy_buffers(buffers, now)


@torch.no_grad()
def copy_buffers(buffers: Iterable[Tensor], values: Sequence[Tensor]) -> None:
    """Give buffers these values, in place."""
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value)


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The norm of found - expected, over all of them together, relative to that of expected."""
    if not expected:
        return 0.0
    norms = torch.stack([torch.stack([(a - b).norm(), b.norm()]).float() for a, b in zip(found, expected)]).norm(dim=0)
    return (norms[0] / norms[1].clamp(min=1e-30)).item()


@contextmanager
def no_waiting() -> Iterator[None]:
    """Within, what would wait for the GPU raises RuntimeError. In a capture it would be worse: PyTorch before 2.12 does
    not recover from one that has failed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prototype, says PyTorch
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def describe(error: RuntimeError) -> str:
    """The first line of what went wrong first, and the last line of code outside of PyTorch that it came through."""
    torch_is_in = Path(torch.__file__).parent
    while error.__context__ is not None:  # the end of a capture that has failed fails, too
        error = error.__context__
    frames = [f for f in traceback.extract_tb(error.__traceback__) if torch_is_in not in Path(f.filename).parents]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{str(error).strip().splitlines()[0][:150]}{place}"
