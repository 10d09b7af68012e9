"""One of those that speed.py times, in a process of its own, where no other's settings reach it.

    python benchmarks/subject.py REPO NAME MODEL DEVICE      NAME: product, compiled, graphed, plain, TAU or matrices

It answers requests, one JSON object a line: {"what", "kind", "batch"} -> ANSWER {…}, where what is
    train, infer    {"seconds"} of a step: forward, loss, backward, Adam; or of a prediction
    counts          {"launches", "peak_bytes"}: kernels of a training step, and what the allocator of a GPU gave at most
    compiled        {"seconds"} that accelerating the model took
and kind fp32, tf32 or bf16. MODEL is a preset; REPO this checkout or another one of this project.
"""

import copy
import functools
import json
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor, nn

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}

FLAGS = {
    "product": ["--no-compile"],
    "compiled": ["--compile"],
    "graphed": ["--compile", "--graphs"],  # on a GPU alone
    "plain": ["--plain"],
}


class Product:
    """The model as main.py trains it and predicts with it."""

    def __init__(self, name: str, model: str, device: str) -> None:
        import core
        import main

        _, defaults, given = main.parse(["--dataname", model, "--device", device, *FLAGS[name]])
        self.core, self.config = core, SimpleNamespace(**defaults | given)
        self.machine = core.prepare(self.config)
        self.device, self.in_shape, self.out_shape = self.machine.device, defaults["in_shape"], defaults["out_shape"]
        self.compile_seconds = None

    @functools.cached_property
    def training(self) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
        """Model, loss, optimizer."""
        model = self.core.build_model(self.config).to(self.device).train()
        began = time.perf_counter()
        for line in self.core.speed_up(model, self.config, self.machine, self.config.batch_size):
            print(line, flush=True)
        self.compile_seconds = time.perf_counter() - began
        optimizer, _ = self.core.build_optimizer(model, self.config, 10**6)
        return model, self.core.build_criterion(self.config).to(self.device), optimizer

    @functools.cache  # noqa: B019 - lives as long as the process
    def predictor(self, kind: str) -> nn.Module:
        """The model for inference, another one for every precision."""
        model = self.core.build_model(self.config).to(self.device).eval()
        if not self.config.plain:
            self.core.prepare_inference(model, self.core.example(self.config, self.machine, 1), kind)
        if self.config.compile:
            example = self.core.example(self.config, self.machine, self.config.val_batch_size)
            for line in self.core.accelerate(
                model, model.blocks(), compile=True, example=example, autocast=self.machine.autocast
            ):
                print(line, flush=True)
        return model

    def precision(self, kind: str) -> torch.autocast:
        """Everything set as --precision sets it; gives the autocast context."""
        self.machine.precision = kind
        return self.machine.autocast()

    def replayed(self, function: Callable[..., Tensor], model: nn.Module) -> Callable[..., Tensor]:
        """function as a CUDA graph, with --graphs."""
        return self.core.Graphed(function, model, print) if getattr(self.config, "graphs", False) else function


class Other:
    """TAU, trained as its authors do; its precisions as --precision sets them."""

    def __init__(self, model: str, device: str) -> None:
        if model != "mmnist":
            raise SystemExit("TAU is of its authors' size for Moving MNIST")
        self.device, self.in_shape, self.out_shape = torch.device(device), [10, 1, 64, 64], [10, 1, 64, 64]
        self.compile_seconds = None

    @functools.cached_property
    def training(self) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
        from tau import TAU, TAULoss

        model = TAU(10, 1).to(self.device).train()
        return model, TAULoss().to(self.device), torch.optim.Adam(model.parameters(), lr=1e-5)

    @functools.cache  # noqa: B019
    def predictor(self, kind: str) -> nn.Module:
        return copy.deepcopy(self.training[0]).eval()

    def precision(self, kind: str) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=kind == "bf16")

    def replayed(self, function: Callable[..., Tensor], model: nn.Module) -> Callable[..., Tensor]:
        return function


def train(subject: Product | Other, kind: str, batch: int) -> None:
    """One training step."""
    _, _, optimizer = subject.training
    for group in optimizer.param_groups:
        group["lr"] = 1e-5  # on noise: keep the weights sound
    forward_backward(subject, kind, batch)(*inputs(subject, batch))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@functools.lru_cache(maxsize=len(DTYPES))  # graphs of another batch size give their memory back
def forward_backward(subject: Product | Other, kind: str, batch: int) -> Callable[..., Tensor]:
    """What computes the loss of a batch of this size and its gradient."""
    model, criterion, _ = subject.training

    def compute(past: Tensor, future: Tensor) -> Tensor:
        with subject.precision(kind):
            predicted = model(past)
        loss = criterion(predicted, future)
        loss.backward()
        return loss.detach()

    return subject.replayed(compute, model)


@torch.no_grad()
def infer(subject: Product | Other, kind: str, batch: int) -> None:
    """One prediction."""
    predict(subject, kind, batch)(inputs(subject, batch)[0])


@functools.lru_cache(maxsize=len(DTYPES))
def predict(subject: Product | Other, kind: str, batch: int) -> Callable[[Tensor], Tensor]:
    """What predicts from a batch of this size."""
    model = subject.predictor(kind)  # prepared without autocast

    def compute(past: Tensor) -> Tensor:
        with subject.precision(kind):
            return model(past)

    return subject.replayed(compute, model)


@functools.cache
def inputs(subject: Product | Other, batch: int) -> tuple[Tensor, Tensor]:
    """Random (past, future)."""
    return tuple(torch.rand(batch, *shape, device=subject.device) for shape in (subject.in_shape, subject.out_shape))


@functools.cache
def matrices(kind: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two large ones, whose product tells what rate the machine has."""
    n = 8192 if device.type == "cuda" else 4096
    return tuple(torch.randn(n, n, device=device).to(DTYPES[kind]) for _ in range(2))


def seconds(work, device: torch.device) -> float:
    """Of one call: on a GPU the mean of five, after two to warm up, as the memory that they take is given back."""
    gpu = device.type == "cuda"
    for _ in range(2 if gpu else 0):
        work()
    if gpu:
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(5 if gpu else 1):
        work()
    if gpu:
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / (5 if gpu else 1)


def launches(work) -> int | None:
    """Kernels that work() runs on a GPU, copies, fills and those in graphs, too; None where the profiler sees none."""
    for _ in range(5):  # until a graph is captured
        work()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events()) or None


def peak(work) -> int:
    """The most bytes that a GPU's allocator has given while work() runs."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def answer(subject: Product | Other | None, device: torch.device, what: str, kind: str, batch: int) -> dict:
    """The answer to one request."""
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = kind == "tf32"
    if subject is None:
        a, b = matrices(kind, device)
        return {"seconds": seconds(lambda: a @ b, device), "flops": 2 * len(a) ** 3}
    if what == "compiled":
        return {"seconds": subject.compile_seconds}
    work = functools.partial(infer if what == "infer" else train, subject, kind, batch)
    try:
        found = (
            {"launches": launches(work), "peak_bytes": peak(work)}
            if what == "counts"
            else {"seconds": seconds(work, device)}
        )
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        found = {"error": "out of memory"}
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def run(repo: str, name: str, model: str, device: str) -> None:
    """Answer until standard input ends."""
    sys.path.insert(0, repo)
    torch.manual_seed(1)
    if name == "matrices":
        subject = None
    elif name == "TAU":
        subject = Other(model, device)
    else:
        subject = Product(name, model, device)
    print("ANSWER {}", flush=True)
    for line in sys.stdin:
        print("ANSWER " + json.dumps(answer(subject, torch.device(device), **json.loads(line))), flush=True)


if __name__ == "__main__":
    run(*sys.argv[1:])
